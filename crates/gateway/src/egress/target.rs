//! From a request's head to what is wanted: strict, since two readers of one request must not come to two hosts.

use caisson_domain::checks::{Check, stands};
use caisson_domain::egress::{HTTP_PORT, METHOD_BYTES, Target, Via, Wanted};
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Uri};

use super::fault::Fault;

/// Reads the request line and what frames the request.
pub(super) fn wanted(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Wanted, Fault> {
    let bad = |reason: &str| Fault::BadRequest { reason: reason.to_owned() };
    let Some(authority) = uri.authority() else { return Err(bad("it names no host")) };
    let authority = authority.as_str();
    if authority.contains('@') {
        return Err(bad("there is a user name before the host"));
    }
    if method == Method::CONNECT {
        let framed = headers.contains_key(TRANSFER_ENCODING);
        if framed || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0") {
            return Err(bad("CONNECT has no body"));
        }
        let target = Target::parse(authority, None).map_err(|error| bad(&error.to_string()))?;
        same_host(&target, None, headers)?;
        return Ok(Wanted { target, via: Via::Tunnel });
    }
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return Err(bad("an https URL goes through CONNECT, as HTTPS_PROXY has it; or ask for http://"));
        }
        Some(_) | None => return Err(bad("only http URLs and CONNECT pass")),
    }
    if method == Method::TRACE || method.as_str().len() > METHOD_BYTES {
        return Err(bad("the method is TRACE or longer than 32 bytes"));
    }
    let target = Target::parse(authority, Some(HTTP_PORT)).map_err(|error| bad(&error.to_string()))?;
    same_host(&target, Some(HTTP_PORT), headers)?;
    let via = Via::Http { method: method.as_str().to_owned(), path: uri.path().to_owned() };
    Ok(Wanted { target, via })
}

/// A `Host` field must name what the request line names. One is enough; none is what HTTP/1.0 has.
fn same_host(target: &Target, default: Option<u16>, headers: &HeaderMap) -> Result<(), Fault> {
    if !stands(Check::EgressHost) {
        return Ok(());
    }
    let mut hosts = headers.get_all(HOST).iter();
    let Some(host) = hosts.next() else { return Ok(()) };
    // Some clients leave the port of a tunnel out of it.
    let default = default.unwrap_or(target.port);
    let named = host.to_str().ok().and_then(|host| Target::parse(host, Some(default)).ok());
    if hosts.next().is_some() || named.as_ref() != Some(target) {
        return Err(Fault::HostMismatch { target: target.to_string() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &str, uri: &str, headers: &[(&str, &str)]) -> Result<Wanted, Fault> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        wanted(&method.parse().unwrap(), &uri.parse().unwrap(), &map)
    }

    #[test]
    fn a_tunnel_and_a_plain_request_are_read() {
        let tunnel = read("CONNECT", "Example.com:443", &[("host", "example.com:443")]).unwrap();
        assert_eq!((tunnel.target.to_string().as_str(), tunnel.via), ("example.com:443", Via::Tunnel));
        let plain = read("GET", "http://example.com/a/b?c=d", &[("host", "example.com")]).unwrap();
        assert_eq!(plain.target.to_string(), "example.com:80");
        assert_eq!(plain.via, Via::Http { method: "GET".to_owned(), path: "/a/b".to_owned() });
        assert!(read("GET", "http://[2001:db8::1]:8080/", &[("host", "[2001:db8::1]:8080")]).is_ok());
    }

    #[test]
    fn a_host_field_that_names_something_else_is_refused() {
        for (method, uri, host) in [
            ("CONNECT", "example.com:443", "other.example:443"),
            ("CONNECT", "example.com:443", "example.com:80"),
            ("GET", "http://example.com/", "other.example"),
            ("GET", "http://example.com/", "example.com:8080"),
            ("GET", "http://example.com:8080/", "example.com"),
            ("GET", "http://example.com/", "example.com, other.example"),
            ("GET", "http://example.com/", ""),
        ] {
            let fault = read(method, uri, &[("host", host)]).unwrap_err();
            assert!(matches!(fault, Fault::HostMismatch { .. }), "{uri} {host}: {fault:?}");
        }
        let twice = [("host", "example.com"), ("host", "example.com")];
        assert!(matches!(read("GET", "http://example.com/", &twice), Err(Fault::HostMismatch { .. })));
        assert!(read("CONNECT", "example.com:443", &[("host", "EXAMPLE.com.")]).is_ok());
        assert!(read("CONNECT", "example.com:443", &[]).is_ok());
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for (method, uri, headers) in [
            ("CONNECT", "user@example.com:443", &[][..]),
            ("CONNECT", "example.com", &[]),
            ("CONNECT", "127.1:443", &[]),
            ("CONNECT", "2130706433:443", &[]),
            ("CONNECT", "example.com:443", &[("content-length", "3")]),
            ("CONNECT", "example.com:443", &[("transfer-encoding", "chunked")]),
            ("GET", "/path", &[]),
            ("GET", "example.com:443", &[]),
            ("GET", "https://example.com/", &[]),
            ("GET", "ftp://example.com/", &[]),
            ("GET", "http://u:p@example.com/", &[]),
            ("GET", "http://0x7f.1/", &[]),
            ("TRACE", "http://example.com/", &[]),
            ("AVERYLONGMETHODTHATNOBODYHASEVERHEARDOF", "http://example.com/", &[]),
        ] {
            let fault = read(method, uri, headers).unwrap_err();
            assert!(matches!(fault, Fault::BadRequest { .. }), "{method} {uri}: {fault:?}");
        }
    }
}
