//! Showing URLs to people: without the login and the query that somebody may have written into one.

/// The text with every URL in it as it may be shown, also one that is none for a reader of URLs. What stands before an `@`
/// where a login would is left out, and so is what follows a `?`.
pub(crate) fn without_logins(text: &str) -> String {
    let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '`');
    text.split_inclusive(ends)
        .map(|word| {
            let (word, end) = match word.char_indices().next_back() {
                Some((at, last)) if ends(last) => word.split_at(at),
                Some(_) | None => (word, ""),
            };
            shown(word) + end
        })
        .collect()
}

fn shown(word: &str) -> String {
    let mut parts = word.split("://");
    let first = parts.next().unwrap_or_default();
    if first.len() == word.len() {
        return match word.rsplit_once('@') {
            Some((login, rest)) if login.contains(':') && !login.contains('/') => rest.to_owned(),
            Some(_) | None => word.to_owned(),
        };
    }
    parts.fold(first.to_owned(), |shown, part| shown + "://" + target(part))
}

/// What follows `://`, without login and query.
fn target(part: &str) -> &str {
    let authority = part.split(['/', '?', '#']).next().unwrap_or_default();
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    // A password that was not escaped may have what ends an authority in it. An address of IPv6 ends with a bracket.
    let goes_on =
        authority.rsplit_once(':').is_some_and(|(_, port)| !is_port(port) && !authority.ends_with(']'));
    let login = if goes_on && !authority.contains('@') { part } else { authority };
    let behind = login.rfind('@').map_or(part, |at| &part[at + 1..]);
    behind.split('?').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_login_and_query_wherever_it_stands() {
        for (text, shown) in [
            ("\"https://u:PASS@h.example/x.git\" is none", "\"https://h.example/x.git\" is none"),
            ("https://PASS@h.example:8443/?key=PASS.", "https://h.example:8443/"),
            ("invalid port: http://u:PASS@h:99999", "invalid port: http://h:99999"),
            ("http://u:PA/PASS@h/x and http://g/", "http://h/x and http://g/"),
            ("http://u:PA?PASS@h/x", "http://h/x"),
            ("http://u:PA@PASS@h/x", "http://h/x"),
            ("`u:PASS@h.example:443`", "`h.example:443`"),
            ("postgres://u:PASS,PASS@h,https://v:PASS@g", "postgres://h,https://g"),
        ] {
            let kept = without_logins(text);
            assert!(!kept.contains("PASS"), "{kept}");
            assert_eq!(kept, shown);
        }
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        for text in [
            "the file \"/etc/caisson.toml\": line 3,\n  column 7",
            "git@h.example:team/x.git",
            "r.example:5000/x@sha256:00ff",
            "http://h.example:80/@scope/x@1#GET,HEAD",
            "http://[::1]:7070/x",
            "äö@ü ",
            "",
        ] {
            assert_eq!(without_logins(text), text);
        }
    }
}
