//! What is sent to the model API and what of its answer is passed on: pure.

use caisson_domain::redact::Redactor;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, COOKIE, EXPECT, HOST,
    SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use url::Url;

/// What may be asked of the model API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// `POST v1/messages`: metered.
    Messages,
    /// `POST v1/messages/count_tokens`.
    CountTokens,
    /// `GET v1/models`.
    Models,
    /// `HEAD` of anything: answered here.
    Head,
}

/// The route of a request; `rest` is the path behind `/model/`, compared as it came.
pub(super) fn route(method: &Method, rest: &str) -> Option<Route> {
    match (method, rest) {
        (&Method::HEAD, _) => Some(Route::Head),
        (&Method::POST, "v1/messages") => Some(Route::Messages),
        (&Method::POST, "v1/messages/count_tokens") => Some(Route::CountTokens),
        (&Method::GET, "v1/models") => Some(Route::Models),
        _ => None,
    }
}

/// The upstream URL: the base with `rest` behind its path and the query as it came.
pub(super) fn upstream_url(base: &Url, rest: &str, query: Option<&str>) -> Url {
    let mut url = base.clone();
    let path = format!("{}/{rest}", base.path().trim_end_matches('/'));
    url.set_path(&path);
    url.set_query(query);
    url
}

/// Headers that belong to one connection, or that only we may set.
fn is_ours(name: &HeaderName) -> bool {
    const OURS: [HeaderName; 11] = [
        AUTHORIZATION,
        COOKIE,
        HOST,
        CONNECTION,
        CONTENT_LENGTH,
        TRANSFER_ENCODING,
        TE,
        TRAILER,
        UPGRADE,
        EXPECT,
        ACCEPT_ENCODING,
    ];
    let text = name.as_str();
    OURS.contains(name)
        || matches!(text, "x-api-key" | "keep-alive" | "forwarded" | "via" | "cookie2")
        || ["proxy-", "x-caisson-", "x-forwarded-"].iter().any(|prefix| text.starts_with(prefix))
}

/// The request's headers as they go upstream, without the credential.
pub(super) fn request_headers(headers: &HeaderMap) -> HeaderMap {
    let mut kept: HeaderMap = passed(headers, is_ours);
    kept.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    kept
}

/// Whether a reply's body is something else than its bytes say: then secrets could be in it unseen.
pub(super) fn is_encoded(headers: &HeaderMap) -> bool {
    let other = |name: HeaderName, plain: &[u8]| {
        headers.get_all(name).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(plain))
    };
    other(CONTENT_ENCODING, b"identity") || other(TRANSFER_ENCODING, b"chunked")
}

/// The reply's headers as they go to the sandbox. Those that repeat a live secret do not.
pub(super) fn reply_headers(headers: &HeaderMap, redactor: &Redactor) -> HeaderMap {
    let hidden = |name: &HeaderName| {
        let text = name.as_str();
        [CONNECTION, TRANSFER_ENCODING, TE, TRAILER, UPGRADE, SET_COOKIE].contains(name)
            || matches!(text, "keep-alive" | "alt-svc" | "set-cookie2")
            || text.starts_with("proxy-")
    };
    let mut kept = HeaderMap::new();
    for (name, value) in &passed(headers, hidden) {
        let text = String::from_utf8_lossy(value.as_bytes());
        if redactor.text(&text) == text {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// All headers but the hidden ones and those that `Connection` names.
fn passed<F: Fn(&HeaderName) -> bool>(headers: &HeaderMap, hidden: F) -> HeaderMap {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<String> =
        values.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase()).collect();
    let kept = headers
        .iter()
        .filter(|(name, _)| !hidden(name) && !named.iter().any(|hop| hop.as_str() == name.as_str()));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_paths_are_forwarded() {
        let of = |method: Method, rest: &str| route(&method, rest);
        assert_eq!(of(Method::POST, "v1/messages"), Some(Route::Messages));
        assert_eq!(of(Method::POST, "v1/messages/count_tokens"), Some(Route::CountTokens));
        assert_eq!(of(Method::GET, "v1/models"), Some(Route::Models));
        assert_eq!(of(Method::HEAD, "api/hello"), Some(Route::Head));
        for (method, rest) in [
            (Method::GET, "v1/messages"),
            (Method::POST, "v1/messages/"),
            (Method::POST, "v1/messages/../files"),
            (Method::POST, "v1/messages/batches"),
            (Method::DELETE, "v1/models"),
            (Method::GET, "v1/organizations/api_keys"),
            (Method::POST, "/v1/messages"),
        ] {
            assert_eq!(of(method, rest), None, "{rest}");
        }
    }

    #[test]
    fn the_base_keeps_its_path_and_the_query_is_passed_on() {
        let of = |base: &str, query| upstream_url(&base.parse().unwrap(), "v1/messages", query).to_string();
        assert_eq!(of("https://h", Some("beta=true")), "https://h/v1/messages?beta=true");
        assert_eq!(of("https://h:1/a/b/", None), "https://h:1/a/b/v1/messages");
    }

    #[test]
    fn credentials_and_connection_headers_stay_behind_and_the_rest_passes() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer grant"),
            ("x-api-key", "k"),
            ("cookie", "c"),
            ("proxy-authorization", "p"),
            ("x-caisson-protocol", "1"),
            ("host", "gateway"),
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("accept-encoding", "gzip, br"),
            ("expect", "100-continue"),
            ("anthropic-beta", "a"),
            ("anthropic-beta", "b"),
            ("x-claude-code-session-id", "s"),
            ("x-stainless-timeout", "600"),
            ("user-agent", "claude-cli/2"),
            ("content-type", "application/json"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let sent = request_headers(&headers);
        let mut names: Vec<&str> = sent.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let expected = [
            "accept-encoding",
            "anthropic-beta",
            "content-type",
            "user-agent",
            "x-claude-code-session-id",
            "x-stainless-timeout",
        ];
        assert_eq!(names, expected);
        assert_eq!(sent["accept-encoding"], "identity");
        assert_eq!(sent.get_all("anthropic-beta").iter().count(), 2);
    }

    #[test]
    fn the_reply_keeps_its_limits_and_loses_its_cookies() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("retry-after", "7"), ("request-id", "r"), ("set-cookie", "c"), ("connection", "close")]
        {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let passed = reply_headers(&headers, &Redactor::default());
        assert_eq!(passed.len(), 2);
        assert_eq!(passed["retry-after"], "7");
    }
}
