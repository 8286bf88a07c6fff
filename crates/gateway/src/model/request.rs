//! What is sent to the model API and what of its answer is passed on: pure.

use caisson_domain::redact::Redactor;
use caisson_domain::usage::{PriceTable, TokenCounts};
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, COOKIE, EXPECT, HOST,
    SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::meter::model_name;
use crate::bounds::{
    BYTES_PER_TOKEN, OUTPUT_ESTIMATE_TOKENS, OUTPUT_LAST_TOKENS, OUTPUT_SLICE_TOKENS, OUTPUT_UNSTATED_TOKENS,
};

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

/// What a call is counted as until its reply tells better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) model: String,
    pub(super) estimate: TokenCounts,
    /// Whether the reply comes bit by bit, so that it can be cut where its budget ends.
    pub(super) streamed: bool,
    /// Most output tokens that it asks for.
    pub(super) output_most: Option<i64>,
    /// What its input costs at most.
    pub(super) caching: Caching,
}

/// For how long a request asks to have its input cached, at most. Writing to the cache costs more than plain input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caching {
    None,
    FiveMinutes,
    Hour,
}

impl Caching {
    /// Looks for the words that ask for it; where they stand does not matter, since too much is reserved at worst. Source:
    /// the Messages API's documentation of prompt caching (`cache_control`, `ttl`).
    fn of(body: &[u8]) -> Self {
        match std::str::from_utf8(body) {
            // A letter that is written as an escape, as no client does, may be one of those words'.
            Ok(text) if has_escaped_letter(text) => Self::Hour,
            Ok(text) if !text.contains("cache_control") => Self::None,
            Ok(text) if !text.contains("\"1h\"") => Self::FiveMinutes,
            Ok(_) | Err(_) => Self::Hour,
        }
    }
}

/// Whether a printable letter of ASCII is written as `\\u00XX`.
fn has_escaped_letter(text: &str) -> bool {
    text.match_indices("\\u00").any(|(at, escape)| {
        text.as_bytes().get(at + escape.len()).is_some_and(|digit| matches!(digit, b'2'..=b'7'))
    })
}

impl Ask {
    /// Output tokens that are reserved before the call is forwarded, at first and at least: a slice of a reply that is
    /// streamed, since it can be cut, and all of one that is not. A request that two readers may take for different ones
    /// (`64000.0`, a name that stands twice) says nothing plainly, so it holds the most that there is.
    pub(super) fn reserved_output(&self) -> [i64; 2] {
        let most = self.output_most.unwrap_or(i64::MAX);
        if self.streamed {
            [most.min(OUTPUT_SLICE_TOKENS), most.min(OUTPUT_LAST_TOKENS)]
        } else {
            [self.output_most.unwrap_or(OUTPUT_UNSTATED_TOKENS); 2]
        }
    }

    /// What must be reserved for so much output. Nobody knows yet how much of the input is in the cache already, so all of it
    /// counts as the dearest kind that the request asks for.
    pub(super) fn needed_micro_usd(&self, output: i64, prices: &PriceTable) -> i64 {
        let input = self.estimate.input;
        let none = TokenCounts { output, ..TokenCounts::default() };
        let plain = TokenCounts { input, ..none };
        let dearest = match self.caching {
            Caching::None => plain,
            Caching::FiveMinutes => TokenCounts { cache_write_5m: input, ..none },
            Caching::Hour => TokenCounts { cache_write_1h: input, ..none },
        };
        // A price list is data: caching may well be cheaper there.
        let [plain, dearest] = [plain, dearest].map(|tokens| prices.cost_micro_usd(&self.model, &tokens));
        plain.max(dearest)
    }
}

/// Looks into the body without minding what it does not know.
pub(super) fn peek(body: &[u8]) -> Ask {
    #[derive(Deserialize)]
    struct Peek {
        #[serde(default)]
        model: Value,
        #[serde(default)]
        stream: Value,
        #[serde(default)]
        max_tokens: Value,
    }
    let peek = serde_json::from_slice::<Peek>(body).ok();
    let model = peek.as_ref().and_then(|peek| peek.model.as_str()).map(model_name);
    let input = i64::try_from(body.len().div_ceil(BYTES_PER_TOKEN)).unwrap_or(i64::MAX);
    let output_most = peek.as_ref().and_then(|peek| peek.max_tokens.as_i64()).filter(|most| *most > 0);
    let output = output_most.map_or(OUTPUT_ESTIMATE_TOKENS, |most| most.min(OUTPUT_ESTIMATE_TOKENS));
    Ask {
        model: model.filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned()),
        estimate: TokenCounts { input, output, ..TokenCounts::default() },
        streamed: peek.is_some_and(|peek| peek.stream == Value::Bool(true)),
        output_most,
        caching: Caching::of(body),
    }
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

    #[test]
    fn a_peek_takes_the_model_and_minds_nothing_else() {
        let ask = peek(br#"{"messages":[{"role":"system"}],"model":"claude-x","stream":true}"#);
        assert_eq!((ask.model.as_str(), ask.estimate.output), ("claude-x", OUTPUT_ESTIMATE_TOKENS));
        assert_eq!((ask.streamed, ask.output_most), (true, None));
        assert_eq!(ask.estimate.input, 17);
        for odd in [&b""[..], b"not json", br#"{"model":7}"#, br#"{"model":" \n"}"#, b"[]"] {
            assert_eq!(peek(odd).model, "unknown");
        }
    }

    #[test]
    fn a_streamed_call_reserves_a_slice_and_any_other_all_that_it_may_write() {
        let of = |text: &str| peek(text.as_bytes()).reserved_output();
        let (slice, last) = (OUTPUT_SLICE_TOKENS, OUTPUT_LAST_TOKENS);
        assert_eq!(of(r#"{"stream":true,"max_tokens":64000}"#), [slice, last]);
        assert_eq!(of(r#"{"stream":true,"max_tokens":7}"#), [7, 7]);
        assert_eq!(of(r#"{"stream":false,"max_tokens":64000}"#), [64_000; 2]);
        for unstated in [
            r#"{"max_tokens":-1}"#,
            r#"{"max_tokens":64000.0}"#,
            r#"{"max_tokens":"64000"}"#,
            r#"{"max_tokens":6.4e4}"#,
            r#"{"max_tokens":1,"max_tokens":64000}"#,
            r#"{"stream":true,"stream":false,"max_tokens":1}"#,
            r#"{"stream":"true"}"#,
            "{}",
            "[1]",
        ] {
            assert_eq!(of(unstated), [OUTPUT_UNSTATED_TOKENS; 2], "{unstated}");
        }
        assert_eq!(of(r#"{"stream":true,"max_tokens":64000.0}"#), [slice, last], "it can be cut");
    }

    #[test]
    fn input_is_reserved_as_the_dearest_kind_that_the_request_asks_for() {
        let needed = |body: &[u8]| {
            let mut ask = peek(body);
            ask.estimate.input = 1_000;
            ask.needed_micro_usd(10, &PriceTable::shipped())
        };
        let opus = |rest: &str| format!(r#"{{"model":"claude-opus-5-5"{rest}}}"#).into_bytes();
        assert_eq!(needed(&opus("")), 4_000 + 200);
        assert_eq!(needed(&opus(r#","system":[{"cache_control":{"type":"ephemeral"}}]"#)), 5_000 + 200);
        let hour = r#","system":[{"cache_control":{"type":"ephemeral", "ttl": "1h"}}]"#;
        assert_eq!(needed(&opus(hour)), 8_000 + 200);
        for hidden in [r#","x":[{"cache_contr\u006fl":1}]"#, r#","cache_control":{"ttl":"1\u0068"}"#] {
            assert_eq!(needed(&opus(hidden)), 8_000 + 200, "{hidden}");
        }
        assert_eq!(needed(&opus(r#","x":"\u001b[0m\u00e9""#)), 4_000 + 200, "as every client writes them");
        assert_eq!(needed(&[&opus("")[..], b"\xff"].concat()), 8_000 + 200, "what cannot be read");
    }
}
