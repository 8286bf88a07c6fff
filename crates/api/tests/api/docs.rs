//! `/docs`: the page, its files, and what a browser may do with them.

use std::io::Read;

use axum::body::Body;
use flate2::read::GzDecoder;
use http::{Method, Request, StatusCode};
use sha2::{Digest, Sha256};

use crate::support::{Answer, Api};

/// Files of the page: two of the viewer's, two of ours, and the licences.
const FILES: usize = 5;
const FOREVER: &str = "public, max-age=31536000, immutable";

/// Sends a request without a key.
async fn ask(api: &Api, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    api.send(request.body(Body::empty()).unwrap()).await
}

async fn load(api: &Api, path: &str) -> Answer {
    let answer = ask(api, Method::GET, path, &[]).await;
    assert_eq!(answer.status, StatusCode::OK, "{path}");
    answer
}

/// What the page's attributes `src` and `href` name, but for `data:`.
fn references(page: &str) -> Vec<String> {
    let after = |attribute| page.split(attribute).skip(1).filter_map(|rest| rest.split('"').next());
    let all = after(" src=\"").chain(after(" href=\""));
    all.filter(|target| !target.starts_with("data:")).map(str::to_owned).collect()
}

/// The page's files, as the page names them.
async fn files(api: &Api) -> Vec<String> {
    let page = load(api, "/docs").await.text();
    let files: Vec<_> = references(&page).into_iter().filter(|path| path.starts_with("/docs/")).collect();
    assert_eq!(files.len(), FILES, "{files:?}");
    files
}

/// The path of the file that is called so in the page's source.
fn hashed(paths: &[String], name: &str) -> String {
    let (stem, ending) = name.rsplit_once('.').unwrap();
    let parts =
        |path: &str| path.starts_with(&format!("/docs/{stem}.")) && path.rsplit('.').next() == Some(ending);
    paths.iter().find(|path| parts(path)).unwrap_or_else(|| panic!("no {name} in {paths:?}")).clone()
}

#[tokio::test]
async fn the_page_and_all_it_names_are_served_without_a_key() {
    let api = Api::start().await;
    let page = load(&api, "/docs").await;
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    for path in references(&page.text()) {
        let answer = load(&api, &path).await;
        let expected = match path.rsplit('.').next().unwrap() {
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "txt" => "text/plain; charset=utf-8",
            "json" => "application/json",
            _ => panic!("what is {path}?"),
        };
        assert_eq!(answer.header("content-type"), expected, "{path}");
        assert!(answer.body.len() > 100, "{path}");
    }
    let start = hashed(&files(&api).await, "page.js");
    assert!(load(&api, &start).await.text().contains("url: \"/v1/openapi.json\""));
}

#[tokio::test]
async fn the_policy_allows_the_pages_own_files_and_nothing_inline() {
    let api = Api::start().await;
    let mut paths = files(&api).await;
    paths.push("/docs".to_owned());
    for path in paths {
        let answer = load(&api, &path).await;
        let policy = answer.header("content-security-policy");
        let directives: Vec<_> = policy.split(';').map(str::trim).collect();
        for expected in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(directives.contains(&expected), "{path}: {policy}");
        }
        for bad in ["unsafe", "http", "*", "blob"] {
            assert!(!policy.contains(bad), "{path}: {policy}");
        }
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("referrer-policy"), "no-referrer", "{path}");
        assert_eq!(answer.header("x-frame-options"), "DENY", "{path}");
        assert_eq!(answer.header("cross-origin-resource-policy"), "same-origin", "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), "", "{path}");
    }
    // The policy would break these without a word to the reader.
    let page = load(&api, "/docs").await.text();
    assert_eq!((page.matches("<script src=").count(), page.matches("<script").count()), (2, 2));
    for inline in ["<style", " style=", " onload=", " onclick=", "javascript:"] {
        assert!(!page.contains(inline), "{inline}");
    }
}

#[tokio::test]
async fn nothing_is_loaded_from_another_host() {
    let api = Api::start().await;
    let mut paths = files(&api).await;
    paths.push("/docs".to_owned());
    for path in paths {
        let text: String = load(&api, &path).await.text().chars().filter(|c| !c.is_whitespace()).collect();
        let text = text.to_lowercase().replace(['"', '\'', '`'], "");
        for way in ["src=", "src:", "href=", "url(", "@import", "import(", "importscripts(", "fetch("] {
            for host in ["http:", "https:", "//", "ws:", "wss:"] {
                assert!(!text.contains(&format!("{way}{host}")), "{path} has {way}{host}");
            }
        }
    }
}

#[tokio::test]
async fn a_file_is_compressed_for_those_who_take_it_and_is_the_same() {
    let api = Api::start().await;
    let mut compressed = 0;
    for path in files(&api).await {
        let plain = load(&api, &path).await;
        assert_eq!(plain.header("content-encoding"), "", "{path}");
        let small = ask(&api, Method::GET, &path, &[("accept-encoding", "gzip, br")]).await;
        assert_eq!(small.header("content-type"), plain.header("content-type"), "{path}");
        assert_eq!(small.header("vary"), "accept-encoding", "{path}");
        if small.header("content-encoding").is_empty() {
            assert_eq!((small.body, small.headers.get("etag")), (plain.body, plain.headers.get("etag")));
            continue;
        }
        assert_eq!(small.header("content-encoding"), "gzip", "{path}");
        assert_ne!(small.header("etag"), plain.header("etag"), "{path}");
        let mut inflated = Vec::new();
        GzDecoder::new(&small.body[..]).read_to_end(&mut inflated).unwrap();
        assert_eq!(inflated, plain.body, "{path}");
        compressed += 1;
    }
    assert_eq!(compressed, 2);
}

#[tokio::test]
async fn the_viewer_is_the_one_that_the_readme_names() {
    let api = Api::start().await;
    let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/assets");
    let readme = std::fs::read_to_string(format!("{assets}/README.md")).unwrap();
    let paths = files(&api).await;
    for name in ["swagger-ui-bundle.js", "swagger-ui.css"] {
        let digest = hex::encode(Sha256::digest(&load(&api, &hashed(&paths, name)).await.body));
        assert!(readme.contains(&format!("| SHA-256 of `{name}` | `{digest}` |")), "{name}: {digest}");
    }
    let licences = load(&api, &hashed(&paths, "licences.txt")).await.text();
    for name in ["LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt"] {
        let text = std::fs::read_to_string(format!("{assets}/swagger-ui/{name}")).unwrap();
        assert!(licences.contains(&text), "{name}");
    }
}

#[tokio::test]
async fn the_page_is_checked_and_its_files_are_kept_for_good() {
    let api = Api::start().await;
    let mut paths = files(&api).await;
    paths.push("/docs".to_owned());
    for path in paths {
        let kept = if path == "/docs" { "no-cache" } else { FOREVER };
        for encoding in ["identity", "gzip"] {
            let first = ask(&api, Method::GET, &path, &[("accept-encoding", encoding)]).await;
            assert_eq!(first.header("cache-control"), kept, "{path}");
            let tag = first.header("etag");
            assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() > 16, "{path}: {tag}");
            for known in [tag, &format!("W/{tag}"), &format!("\"x\", {tag}"), "*"] {
                let headers = [("accept-encoding", encoding), ("if-none-match", known)];
                let again = ask(&api, Method::GET, &path, &headers).await;
                assert_eq!((again.status, again.body.len()), (StatusCode::NOT_MODIFIED, 0), "{path}");
                assert_eq!((again.header("etag"), again.header("cache-control")), (tag, kept), "{path}");
            }
            let headers = [("accept-encoding", encoding), ("if-none-match", "\"x\"")];
            let other = ask(&api, Method::GET, &path, &headers).await;
            assert_eq!((other.status, other.body), (StatusCode::OK, first.body), "{path}");
        }
    }
}

#[tokio::test]
async fn a_head_request_to_the_page_or_a_file_has_the_headers_and_no_body() {
    let api = Api::start().await;
    let mut paths = files(&api).await;
    paths.push("/docs".to_owned());
    for path in paths {
        let get = load(&api, &path).await;
        let head = ask(&api, Method::HEAD, &path, &[]).await;
        assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0), "{path}");
        assert_eq!(head.header("content-length"), get.body.len().to_string(), "{path}");
        for name in ["content-type", "etag", "cache-control", "content-security-policy"] {
            assert_eq!(head.header(name), get.header(name), "{path} {name}");
        }
    }
}

#[tokio::test]
async fn an_unknown_file_or_method_of_the_page_is_a_problem() {
    let api = Api::start().await;
    for path in ["/docs/x", "/docs/page.js", "/docs/swagger-ui.css", "/docs/%2e%2e", "/docs/%ff"] {
        let answer = ask(&api, Method::GET, path, &[]).await;
        answer.assert_problem(404, "unknown_file");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
    }
    ask(&api, Method::GET, "/docs/x/y", &[]).await.assert_problem(404, "unknown_route");
    let slash = ask(&api, Method::GET, "/docs/", &[]).await;
    assert_eq!((slash.status, slash.header("location")), (StatusCode::PERMANENT_REDIRECT, "/docs"));
    for path in ["/docs", "/docs/x"] {
        ask(&api, Method::POST, path, &[]).await.assert_problem(405, "method_not_allowed");
    }
}

#[tokio::test]
async fn whoever_is_lost_is_told_of_the_page_and_the_document_does_not_list_it() {
    let api = Api::start().await;
    let lost = ask(&api, Method::GET, "/nowhere", &[]).await;
    lost.assert_problem(404, "unknown_route");
    assert!(lost.json()["detail"].as_str().unwrap().contains("/docs"), "{}", lost.text());
    let document = serde_json::to_value(caisson_api::openapi()).unwrap();
    assert!(document["paths"].as_object().unwrap().keys().all(|path| !path.starts_with("/docs")));
}
