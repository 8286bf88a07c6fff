//! The documentation page: the OpenAPI document made readable, without a key and without a word to another host.
//!
//! The page and its files are no part of the API, so they are not in the document either. All are in the binary, the
//! large ones compressed. A file's name holds a hash of its content, so a browser may keep it for good; the page itself
//! is asked for each time and mostly answered with 304. Where the viewer comes from, and why this one: `assets/README.md`.

use std::io::Read;
use std::sync::{LazyLock, OnceLock};

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use flate2::read::GzDecoder;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use sha2::{Digest, Sha256};

use crate::middleware::Kept;
use crate::negotiate::takes_gzip;
use crate::problem::ApiError;

/// What the page may load and do: its own files, images inside them, and requests to this server.
///
/// The viewer needs neither inline scripts, nor inline styles, nor `eval`.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Headers of the page and of all its files.
const GUARDS: [(HeaderName, &str); 4] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];
/// Digits of the hash in a file's name.
const HASH_DIGITS: usize = 16;

/// The page and its files, hashed when the first of them is asked for.
static SITE: LazyLock<Site> = LazyLock::new(Site::build);

/// The routes of the page, for callers without a key.
pub(crate) fn routes() -> Router {
    Router::new()
        .route("/docs", get(page))
        .route("/docs/", get(async || Redirect::permanent("/docs")))
        .route("/docs/{file}", get(file))
}

async fn page(headers: HeaderMap) -> Response {
    SITE.page.answer(&headers, Kept::Checked)
}

async fn file(path: Result<Path<String>, PathRejection>, headers: HeaderMap) -> Result<Response, ApiError> {
    // A path that is not UTF-8 names no file either.
    let asked = path.as_ref().ok().map(|Path(asked)| asked);
    let found = SITE.files.iter().find(|(name, _)| Some(name) == asked);
    let (_, file) = found.ok_or_else(|| ApiError::Unknown {
        code: "unknown_file",
        detail: "the documentation has no such file; load /docs again".to_owned(),
    })?;
    Ok(file.answer(&headers, Kept::Forever))
}

struct Site {
    page: File,
    /// By the name in the path.
    files: Vec<(String, File)>,
}

impl Site {
    fn build() -> Self {
        let mut page = include_str!("../assets/docs/index.html").to_owned();
        let mut files = Vec::new();
        for (name, file) in files_by_plain_name() {
            let (stem, ending) = name.rsplit_once('.').unwrap_or((name, "bin"));
            let hashed = format!("{stem}.{}.{ending}", file.hash);
            page = page.replace(&format!("/docs/{name}"), &format!("/docs/{hashed}"));
            files.push((hashed, file));
        }
        Self { page: File::plain("text/html; charset=utf-8", page), files }
    }
}

/// The files as the page's source names them.
fn files_by_plain_name() -> [(&'static str, File); 5] {
    let (script, style) = ("text/javascript; charset=utf-8", "text/css; charset=utf-8");
    let bundle = include_bytes!("../assets/swagger-ui/swagger-ui-bundle.js.gz");
    let theme = include_bytes!("../assets/swagger-ui/swagger-ui.css.gz");
    let licences = concat!(
        include_str!("../assets/swagger-ui/NOTICE"),
        "\n\n",
        include_str!("../assets/swagger-ui/LICENSE"),
        "\n\n",
        include_str!("../assets/swagger-ui/swagger-ui-bundle.js.LICENSE.txt"),
    );
    [
        ("swagger-ui-bundle.js", File::compressed(script, bundle)),
        ("swagger-ui.css", File::compressed(style, theme)),
        ("page.js", File::plain(script, include_str!("../assets/docs/page.js"))),
        ("page.css", File::plain(style, include_str!("../assets/docs/page.css"))),
        ("licences.txt", File::plain("text/plain; charset=utf-8", licences)),
    ]
}

/// One file, compressed or not, with the hash of its bytes as they are stored.
struct File {
    media_type: &'static str,
    hash: String,
    compressed: Option<&'static [u8]>,
    /// Set from the start, or when the first caller without gzip comes. Kept, because whoever asks needs no key, so
    /// asking often must cost nothing.
    plain: OnceLock<Bytes>,
}

impl File {
    fn plain(media_type: &'static str, text: impl Into<Bytes>) -> Self {
        let text = text.into();
        Self { media_type, hash: hash(&text), compressed: None, plain: OnceLock::from(text) }
    }

    fn compressed(media_type: &'static str, stored: &'static [u8]) -> Self {
        Self { media_type, hash: hash(stored), compressed: Some(stored), plain: OnceLock::new() }
    }

    fn answer(&self, asked: &HeaderMap, kept: Kept) -> Response {
        let compressed = self.compressed.filter(|_| takes_gzip(asked));
        // The two forms of a file differ in their bytes, so their tags differ.
        let tag = format!("\"{}{}\"", self.hash, if compressed.is_some() { "-gzip" } else { "" });
        let mut response = if knows(asked, &tag) {
            StatusCode::NOT_MODIFIED.into_response()
        } else if let Some(stored) = compressed {
            let gzip = [(header::CONTENT_TYPE, self.media_type), (header::CONTENT_ENCODING, "gzip")];
            (gzip, Bytes::from_static(stored)).into_response()
        } else {
            ([(header::CONTENT_TYPE, self.media_type)], self.inflated()).into_response()
        };
        let headers = response.headers_mut();
        for (name, value) in GUARDS {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        headers.insert(header::ETAG, HeaderValue::try_from(tag).expect("it is hexadecimal digits in quotes"));
        response.extensions_mut().insert(kept);
        response
    }

    fn inflated(&self) -> Bytes {
        let inflate = || {
            let mut bytes = Vec::new();
            let read = GzDecoder::new(self.compressed.unwrap_or_default()).read_to_end(&mut bytes);
            read.expect("the stored files are whole: a test inflates each");
            Bytes::from(bytes)
        };
        self.plain.get_or_init(inflate).clone()
    }
}

fn hash(bytes: &[u8]) -> String {
    let mut digits = hex::encode(Sha256::digest(bytes));
    digits.truncate(HASH_DIGITS);
    digits
}

/// Whether the caller has the form with this tag already (RFC 9110, section 13.1.2).
fn knows(asked: &HeaderMap, tag: &str) -> bool {
    let values = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|text| text.split(',')).map(str::trim).any(|known| {
        let known = known.strip_prefix("W/").unwrap_or(known);
        known == "*" || known == tag
    })
}
