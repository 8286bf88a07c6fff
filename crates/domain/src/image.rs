//! Names of images, checked before an engine sees them.

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
