//! Which requests there are.

use super::*;

#[test]
fn only_gits_smart_requests_to_origin_are_there() {
    let of = |method: Method, rest: &str, query: Option<&str>| operation(&method, rest, query);
    let found = of(Method::GET, "origin/info/refs", Some("service=git-upload-pack"));
    assert_eq!(found.unwrap(), Operation::Advertise(Service::UploadPack));
    assert_eq!(of(Method::POST, "origin/git-receive-pack", None).unwrap(), Operation::Push);
    for query in [None, Some("service=git-upload-archive"), Some("service=")] {
        assert_eq!(of(Method::GET, "origin/info/refs", query).unwrap_err().code, "dumb_protocol");
    }
    assert_eq!(of(Method::POST, "origin/info/refs", None).unwrap_err().status.as_u16(), 405);
    for path in ["origin/HEAD", "origin/objects/info/packs", "other/info/refs", "origin", ""] {
        assert_eq!(of(Method::GET, path, None).unwrap_err().status.as_u16(), 404, "{path}");
    }
}

#[test]
fn only_gits_own_protocol_versions_are_passed_on() {
    let of = |value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("git-protocol", value.parse().unwrap());
        protocol(&headers)
    };
    assert_eq!(of("version=2").as_deref(), Some("version=2"));
    assert_eq!(of("version=2:x=y"), None);
}
