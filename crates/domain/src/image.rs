//! Names of images, checked before an engine sees them, and which of them a repository may choose.

use serde::{Deserialize, Serialize};

use crate::repository_file::place;
use crate::run::{Failure, FailureKind};

/// Longest image reference, in bytes: the longest name, a tag, a digest and the two signs between them.
pub const IMAGE_BYTES: usize = IMAGE_NAME_BYTES + 1 + TAG_BYTES + 1 + DIGEST_PREFIX.len() + DIGEST_DIGITS;
/// Longest image name without tag and digest, in bytes (the limit of the distribution project's reference grammar).
pub const IMAGE_NAME_BYTES: usize = 255;

const TAG_BYTES: usize = 128;
const DIGEST_PREFIX: &str = "sha256:";
const DIGEST_DIGITS: usize = 64;
/// Longest part of a refused name that an error repeats, in characters.
const ECHO_CHARS: usize = 80;

/// Why a text does not name an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" does not name an image: {reason}; write it like debian:bookworm-slim or registry.example:5000/team/image@sha256:…"
)]
pub struct ImageNameError {
    text: String,
    reason: &'static str,
}

/// Most rules for the images that repositories may choose.
pub const IMAGE_RULES: usize = 64;

/// The image that a repository asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageWish {
    /// The image.
    pub image: String,
    /// The line of the repository's file that names it, from 1, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
}

/// Images that a repository may choose: one by its name, exactly as it is written, or all whose names begin with what stands
/// before a `*`, which comes behind a `/` or `:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRule(String);

impl std::str::FromStr for ImageRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = match text.strip_suffix('*') {
            Some(beginning) => beginning.strip_suffix(['/', ':']).ok_or_else(|| {
                format!(
                    "\"{}\" has a * that does not stand behind a / or :, such as registry.example/team/*",
                    text.escape_debug()
                )
            })?,
            None => text,
        };
        check_image_name(name).map_err(|error| error.to_string())?;
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Display for ImageRule {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl ImageRule {
    /// Whether the image is one of them.
    #[must_use]
    pub fn allows(&self, image: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => image.len() > beginning.len() && image.starts_with(beginning),
            None => image == self.0,
        }
    }
}

impl ImageWish {
    /// Looks whether the operator lets repositories choose this image.
    ///
    /// # Errors
    /// [`Failure`] that names file, line and remedy.
    pub fn check(&self, rules: &[ImageRule]) -> Result<(), Failure> {
        let (place, image) = (place(self.line), &self.image);
        let fault = |reason: String| Failure::new(FailureKind::BadWorkflow, format!("{place}: {reason}"));
        check_image_name(image).map_err(|error| fault(error.to_string()))?;
        if rules.iter().any(|rule| rule.allows(image)) {
            return Ok(());
        }
        let allowed = if rules.is_empty() {
            "none".to_owned()
        } else {
            rules.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        Err(fault(format!(
            "image \"{image}\" is none of those that this server lets a repository choose ({allowed}); name one of them or leave image \
             out, name it in the run or its workflow, or have the operator add it to repository_images"
        )))
    }
}

/// Checks that `text` is an image reference: `[host[:port]/]name[/name…][:tag][@sha256:digest]`.
///
/// The grammar is that of the distribution project, without IPv6 hosts and other digests than SHA-256. It is checked
/// here because the name becomes part of the path of requests to the engine.
///
/// # Errors
/// [`ImageNameError`] that says which part is wrong.
pub fn check_image_name(text: &str) -> Result<(), ImageNameError> {
    let fault = |reason| ImageNameError { text: text.chars().take(ECHO_CHARS).collect(), reason };
    if text.is_empty() {
        return Err(fault("it is empty"));
    }
    if text.len() > IMAGE_BYTES {
        return Err(fault("it is too long"));
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err(fault("its digest is not sha256: and 64 hexadecimal digits"));
    }
    // A colon behind the last slash begins the tag; one before it begins the host's port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        Some(_) | None => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(fault("its tag has a character or a length that is not allowed"));
    }
    if name.len() > IMAGE_NAME_BYTES {
        return Err(fault("its name is too long"));
    }
    let path = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
            if !is_host(host) {
                return Err(fault("its host is not a host name with an optional port"));
            }
            path
        }
        Some(_) | None => name,
    };
    if !path.split('/').all(is_component) {
        return Err(fault("its name has a character that is not allowed, or an empty part"));
    }
    Ok(())
}

fn is_digest(digest: &str) -> bool {
    digest.strip_prefix(DIGEST_PREFIX).is_some_and(|digits| {
        digits.len() == DIGEST_DIGITS && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_BYTES
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let port_fits =
        port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
    name.split('.').all(label) && port_fits
}

/// Lower-case letters and digits in groups, between which stand `.`, `_`, `__` or any number of `-`.
fn is_component(component: &str) -> bool {
    let group = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = bytes.first().zip(bytes.last()).is_some_and(|(first, last)| group(*first) && group(*last));
    let separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends && separators
        .into_iter()
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_names_are_accepted() {
        let digest = format!("debian@sha256:{}", "a".repeat(64));
        let both = format!("localhost/team/tools:1.2-rc_3@sha256:{}", "0".repeat(64));
        for good in [
            "debian",
            "debian:bookworm-slim",
            "caisson-sandbox:1",
            "registry.example:5000/team/sub/image:v1",
            "localhost:5000/image",
            "a__b/c.d/e--f",
            "library/debian:_x",
            &digest,
            &both,
        ] {
            assert_eq!(check_image_name(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_could_become_part_of_another_request_is_refused() {
        for bad in [
            "",
            " ",
            "a b",
            "../etc",
            "a/../b",
            "/a",
            "a/",
            "a//b",
            "a?x=1",
            "a#b",
            "a%2fb",
            "a\nb",
            "ä",
            "-a",
            "a-",
            "a._b",
            "a___b",
            "A",
            "a:",
            "a:-x",
            "a:x/y:",
            "a@",
            "a@sha256:12",
            "a@md5:00",
            "reg.example:99999/a",
            "reg.example:/a/b:x/y",
            "-x.example/a",
            "a..b/c",
            "reg.example:+1/a",
            "\u{0}",
        ] {
            assert!(check_image_name(bad).is_err(), "{bad:?}");
        }
    }

    fn rules(texts: &[&str]) -> Vec<ImageRule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_rule_allows_one_image_or_all_below_a_place() {
        let allows = |rule: &str, image: &str| rules(&[rule])[0].allows(image);
        assert!(allows("debian:bookworm-slim", "debian:bookworm-slim"));
        assert!(!allows("debian", "debian:bookworm-slim") && !allows("debian:a", "debian:ab"));
        assert!(allows("registry.example/team/*", "registry.example/team/a/b:1"));
        assert!(!allows("registry.example/team/*", "registry.example/teams/a"));
        assert!(!allows("registry.example/team/*", "registry.example/team/"));
        assert!(allows("registry.example/tools:*", "registry.example/tools:1.2"));
        assert!(!allows("registry.example/tools:*", "registry.example/tools-other:1"));
        assert!(allows("registry.example:5000/*", "registry.example:5000/x"));
        for bad in ["*", "debian*", "/*", "a b", "registry.example/team/**", ""] {
            assert!(bad.parse::<ImageRule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wish_that_is_not_allowed_is_refused_with_file_line_and_remedy() {
        let wish = |image: &str| ImageWish { image: image.to_owned(), line: Some(3) };
        let allowed = rules(&["debian:bookworm-slim", "registry.example/team/*"]);
        assert_eq!(wish("registry.example/team/a").check(&allowed), Ok(()));
        let refused = wish("evil:1").check(&allowed).unwrap_err();
        assert_eq!(refused.kind, FailureKind::BadWorkflow);
        assert!(
            refused.message.starts_with(".caisson.yaml, line 3: image \"evil:1\""),
            "{}",
            refused.message
        );
        assert!(
            refused.message.contains("(debian:bookworm-slim, registry.example/team/*)"),
            "{}",
            refused.message
        );
        assert!(refused.message.contains("repository_images"), "{}", refused.message);
        let nothing = wish("debian").check(&[]).unwrap_err();
        assert!(nothing.message.contains("(none)"), "{}", nothing.message);
        let odd = ImageWish { image: "../x".to_owned(), line: None }.check(&allowed).unwrap_err();
        assert!(odd.message.starts_with(".caisson.yaml: "), "{}", odd.message);
    }

    #[test]
    fn names_and_tags_are_bounded() {
        assert_eq!(check_image_name(&"a".repeat(IMAGE_NAME_BYTES)), Ok(()));
        assert!(check_image_name(&"a".repeat(IMAGE_NAME_BYTES + 1)).is_err());
        assert_eq!(check_image_name(&format!("a:{}", "t".repeat(TAG_BYTES))), Ok(()));
        assert!(check_image_name(&format!("a:{}", "t".repeat(TAG_BYTES + 1))).is_err());
        let longest = format!(
            "{}:{}@sha256:{}",
            "a".repeat(IMAGE_NAME_BYTES),
            "t".repeat(TAG_BYTES),
            "0".repeat(DIGEST_DIGITS)
        );
        assert_eq!(longest.len(), IMAGE_BYTES);
        assert_eq!(check_image_name(&longest), Ok(()));
        let error = check_image_name(&format!("{longest}0")).unwrap_err().to_string();
        assert!(error.contains("too long") && error.len() < 300, "{error}");
    }
}
