//! Branch names and repositories, checked before anything acts on them.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use url::Url;

use crate::limits;

/// Why a text is not a branch name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{name}\" is not a branch name: {reason}")]
pub struct BranchError {
    name: String,
    reason: &'static str,
}

/// A branch name that `git check-ref-format --branch` accepts, at most [`limits::BRANCH_BYTES`] long.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BranchName(String);

impl BranchName {
    /// The name without `refs/heads/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The full ref.
    #[must_use]
    pub fn full_ref(&self) -> String {
        format!("refs/heads/{}", self.0)
    }
}

impl std::fmt::Display for BranchName {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl From<BranchName> for String {
    fn from(name: BranchName) -> Self {
        name.0
    }
}

impl TryFrom<String> for BranchName {
    type Error = BranchError;

    fn try_from(name: String) -> Result<Self, BranchError> {
        match branch_fault(&name) {
            None => Ok(Self(name)),
            Some(reason) => Err(BranchError { name: name.chars().take(64).collect(), reason }),
        }
    }
}

impl std::str::FromStr for BranchName {
    type Err = BranchError;

    fn from_str(text: &str) -> Result<Self, BranchError> {
        Self::try_from(text.to_owned())
    }
}

/// The rules of git-check-ref-format(1), plus the bound.
fn branch_fault(name: &str) -> Option<&'static str> {
    let faults: [(bool, &'static str); 13] = [
        (name.is_empty(), "it is empty"),
        (name.len() > limits::BRANCH_BYTES, "it is longer than 200 bytes"),
        (name.starts_with('-'), "it begins with a dash"),
        (
            name.starts_with('+') || name.starts_with("refs/"),
            "it begins with \"+\" or \"refs/\", which would make other names ambiguous",
        ),
        (name.contains(' '), "it contains a space"),
        (name.chars().any(char::is_control), "it contains a control character"),
        (name.contains(['~', '^', ':', '?', '*', '[', '\\']), "it contains one of ~ ^ : ? * [ \\"),
        (name.contains(".."), "it contains \"..\""),
        (name.contains("@{"), "it contains \"@{\""),
        (name == "@" || name == "HEAD", "the name is reserved by git"),
        (name.split('/').any(str::is_empty), "it begins or ends with a slash or has two in a row"),
        (name.ends_with('.'), "it ends with a dot"),
        (
            name.split('/').any(|part| {
                part.starts_with('.') || Path::new(part).extension().is_some_and(|end| end == "lock")
            }),
            "one of its parts begins with a dot or ends with \".lock\"",
        ),
    ];
    faults.into_iter().find(|(fault, _)| *fault).map(|(_, reason)| reason)
}

/// Why a text is not a repository that Caisson can work on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RepositoryError {
    /// Not a form that is understood.
    #[error("\"{0}\" is not a repository; use an http or https URL, or an absolute path on the server")]
    Form(String),
    /// The URL holds a user name or password.
    #[error(
        "the repository URL holds a credential; take it out and give it to the server's configuration instead"
    )]
    HoldsCredential,
    /// The URL has a query or fragment.
    #[error("the repository URL has a query or a fragment; give the plain clone URL")]
    QueryOrFragment,
    /// ssh and scp-like forms.
    #[error("\"{0}\" is an ssh address, and a sandbox holds no ssh key; use the repository's https URL")]
    Ssh(String),
    /// The path is relative or has `..` in it.
    #[error("the repository path \"{0}\" is not absolute and plain; give it without \".\" and \"..\"")]
    Path(String),
    /// Longer than the bound.
    #[error("the repository reference is longer than {} bytes", limits::REPOSITORY_BYTES)]
    TooLong,
}

/// A repository: a URL on a git host, or a directory on the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Repository {
    /// `http` or `https`, without credentials, query and fragment.
    Url(Url),
    /// An absolute path without `.` and `..`.
    Path(PathBuf),
}

impl std::str::FromStr for Repository {
    type Err = RepositoryError;

    fn from_str(text: &str) -> Result<Self, RepositoryError> {
        if text.len() > limits::REPOSITORY_BYTES {
            return Err(RepositoryError::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(RepositoryError::Form(text.escape_debug().to_string()));
        }
        if text.starts_with('/') {
            return plain_path(text).map(Self::Path);
        }
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        match scheme {
            Some("http" | "https") => parse_url(text).map(Self::Url),
            Some("ssh" | "git+ssh") => Err(RepositoryError::Ssh(text.to_owned())),
            None if text.contains('@') && text.contains(':') => Err(RepositoryError::Ssh(text.to_owned())),
            Some(_) | None => Err(RepositoryError::Form(text.to_owned())),
        }
    }
}

impl Repository {
    /// One text for all spellings of the repository: a URL without trailing slash and `.git`, which git hosts treat as
    /// the same, its scheme and host in lower case and without the default port; a path without trailing slash.
    ///
    /// It is what a branch is locked by; to reach the repository, use the spelling that was given.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            // Parsing has put scheme and host in lower case and dropped a default port.
            Self::Url(url) => format!("{}{}", url.origin().ascii_serialization(), trimmed(url)),
            Self::Path(path) => path.components().collect::<PathBuf>().display().to_string(),
        }
    }
}

fn parse_url(text: &str) -> Result<Url, RepositoryError> {
    let url = Url::parse(text).map_err(|_| RepositoryError::Form(text.to_owned()))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(RepositoryError::HoldsCredential);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(RepositoryError::QueryOrFragment);
    }
    if is_ambiguous(text) || url.path().contains("//") {
        return Err(RepositoryError::Form(text.to_owned()));
    }
    Ok(url)
}

/// Whether a git host might read another path than the allow-list did. The url crate resolves plain dot segments;
/// servers differ in what they make of parameters (`..;` as `..`), of empty segments, of encoded dots and slashes, and
/// of what is encoded twice.
fn is_ambiguous(text: &str) -> bool {
    const SPELLINGS: [&str; 7] = [";", "%3b", "%2e", "%2f", "%5c", "%25", "%00"];
    let text = text.to_ascii_lowercase();
    SPELLINGS.iter().any(|spelling| text.contains(spelling))
}

fn plain_path(text: &str) -> Result<PathBuf, RepositoryError> {
    let path = PathBuf::from(text);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    // `components` swallows "/./" silently, so the text is looked at as well.
    if plain && !text.split('/').any(|part| part == ".") {
        Ok(path)
    } else {
        Err(RepositoryError::Path(text.to_owned()))
    }
}

impl std::fmt::Display for Repository {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url(url) => url.fmt(out),
            Self::Path(path) => path.display().fmt(out),
        }
    }
}

impl TryFrom<String> for Repository {
    type Error = RepositoryError;

    fn try_from(text: String) -> Result<Self, RepositoryError> {
        text.parse()
    }
}

impl From<Repository> for String {
    fn from(repository: Repository) -> Self {
        repository.to_string()
    }
}

/// Why a pattern of the allow-list is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a repository pattern; use a URL such as https://git.example.com/team/project, or end it with /* for everything below"
)]
pub struct PatternError(String);

/// The repositories that runs may name. Empty means none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowList {
    exact: Vec<Url>,
    below: Vec<Url>,
    directories: Vec<PathBuf>,
}

impl AllowList {
    /// Builds the list from URL patterns and absolute directories (already resolved by the caller).
    ///
    /// # Errors
    /// [`PatternError`] with the first pattern that is not understood.
    pub fn new(patterns: &[String], directories: Vec<PathBuf>) -> Result<Self, PatternError> {
        let mut list = Self { directories, ..Self::default() };
        for pattern in patterns {
            let (text, wild) = match pattern.strip_suffix("/*") {
                Some(text) => (text, true),
                None => (pattern.as_str(), false),
            };
            match text.parse() {
                Ok(Repository::Url(url)) if !text.contains('*') => {
                    if wild { &mut list.below } else { &mut list.exact }.push(url);
                }
                Ok(Repository::Url(_) | Repository::Path(_)) | Err(_) => {
                    return Err(PatternError(pattern.clone()));
                }
            }
        }
        Ok(list)
    }

    /// Whether it allows nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.below.is_empty() && self.directories.is_empty()
    }

    /// Whether a run may work on `repository`. For a path this compares text alone: whoever opens it must resolve
    /// links and ask again with the result.
    #[must_use]
    pub fn allows(&self, repository: &Repository) -> bool {
        match repository {
            Repository::Path(path) => self.directories.iter().any(|directory| path.starts_with(directory)),
            Repository::Url(url) => {
                self.exact.iter().any(|allowed| same_origin(allowed, url) && trimmed(allowed) == trimmed(url))
                    || self.below.iter().any(|allowed| {
                        same_origin(allowed, url)
                            && trimmed(url)
                                .strip_prefix(trimmed(allowed))
                                .is_some_and(|rest| rest.starts_with('/') && rest.len() > 1)
                    })
            }
        }
    }
}

fn same_origin(left: &Url, right: &Url) -> bool {
    left.scheme() == right.scheme()
        && left.host_str() == right.host_str()
        && left.port_or_known_default() == right.port_or_known_default()
}

/// The path without a trailing slash and without `.git`, which git hosts treat as the same repository.
fn trimmed(url: &Url) -> &str {
    let path = url.path().trim_end_matches('/');
    path.strip_suffix(".git").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branch_names_follow_gits_own_rules() {
        for good in
            ["main", "fix/a-b", "caisson/bug-fixer/0a1b2c3d", "ä/ö", &"b".repeat(limits::BRANCH_BYTES)]
        {
            assert!(good.parse::<BranchName>().is_ok(), "{good}");
        }
        let long = "b".repeat(limits::BRANCH_BYTES + 1);
        for bad in [
            "",
            "-x",
            "+x",
            "refs/heads/main",
            "a b",
            "a\tb",
            "a\u{7f}",
            "a..b",
            "a~1",
            "a^",
            "a:b",
            "a?",
            "a*",
            "a[",
            "a\\b",
            "@",
            "HEAD",
            "a@{b",
            "/a",
            "a/",
            "a//b",
            "a.",
            ".a",
            "a/.b",
            "a.lock",
            "a.lock/b",
            &long,
        ] {
            assert!(bad.parse::<BranchName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn repositories_are_urls_without_credentials_or_plain_absolute_paths() {
        for good in ["https://git.example.com/team/x.git", "http://127.0.0.1:8080/x", "/srv/git/x.git"] {
            assert_eq!(good.parse::<Repository>().unwrap().to_string(), good);
        }
        let refused = |text: &str| text.parse::<Repository>().unwrap_err();
        assert_eq!(refused("https://u:p@git.example.com/x"), RepositoryError::HoldsCredential);
        assert_eq!(refused("https://git.example.com/x?y=1"), RepositoryError::QueryOrFragment);
        assert!(matches!(refused("git@git.example.com:team/x.git"), RepositoryError::Ssh(_)));
        assert!(matches!(refused("ssh://git.example.com/x"), RepositoryError::Ssh(_)));
        assert!(matches!(refused("file:///etc"), RepositoryError::Form(_)));
        assert!(matches!(refused("ext::sh -c x"), RepositoryError::Form(_)));
        assert!(matches!(refused("--upload-pack=x"), RepositoryError::Form(_)));
        assert!(matches!(refused("https://git.example.com/a%2f..%2fb"), RepositoryError::Form(_)));
        assert!(matches!(refused("/srv/../etc"), RepositoryError::Path(_)));
        assert!(matches!(refused("/srv/./x"), RepositoryError::Path(_)));
        assert_eq!(refused(&format!("/{}", "x".repeat(limits::REPOSITORY_BYTES))), RepositoryError::TooLong);
        assert!(format!("/{}", "x".repeat(limits::REPOSITORY_BYTES - 1)).parse::<Repository>().is_ok());
    }

    #[test]
    fn a_repository_has_one_key_however_it_is_spelled() {
        let key = |text: &str| text.parse::<Repository>().unwrap().key();
        for spelling in [
            "https://git.example.com/team/x",
            "https://git.example.com/team/x/",
            "https://git.example.com/team/x.git",
            "https://git.example.com/team/x.git/",
            "https://GIT.Example.com:443/team/x",
            "https://git.example.com/team/./y/../x",
        ] {
            assert_eq!(key(spelling), "https://git.example.com/team/x", "{spelling}");
        }
        for other in [
            "http://git.example.com/team/x",
            "https://git.example.com:8443/team/x",
            "https://git.example.com/team/X",
            "https://git.example.com/team/x.gi",
            "https://git.example.com/team",
        ] {
            assert_ne!(key(other), "https://git.example.com/team/x", "{other}");
        }
        assert_eq!((key("/srv/git/x/"), key("/srv//git/x")), ("/srv/git/x".into(), "/srv/git/x".into()));
        assert_ne!(key("/srv/git/x.git"), key("/srv/git/x"), "two directories");
        assert_eq!(key("/"), "/");
    }

    #[test]
    fn the_allow_list_is_closed_and_compares_whole_path_parts() {
        let list = AllowList::new(
            &["https://git.example.com/team/*".to_owned(), "https://git.example.com/solo/one.git".to_owned()],
            vec![PathBuf::from("/srv/git")],
        )
        .unwrap();
        let allows = |text: &str| list.allows(&text.parse().unwrap());
        assert!(allows("https://git.example.com/team/x.git"));
        assert!(allows("https://git.example.com/solo/one"));
        assert!(allows("/srv/git/x"));
        for outside in [
            "https://git.example.com/team",
            "https://git.example.com/teamwork/x",
            "https://git.example.com/solo/one/two",
            "http://git.example.com/team/x",
            "https://git.example.com:8443/team/x",
            "https://example.com/team/x",
            "https://git.example.com/team/../solo/two",
            "/srv/gitx/y",
            "/etc",
        ] {
            assert!(!allows(outside), "{outside}");
        }
        assert!(!AllowList::default().allows(&"https://git.example.com/x".parse().unwrap()));
    }

    #[test]
    fn a_url_that_servers_may_read_in_two_ways_is_refused() {
        for bad in [
            "/team/..;/solo/two",
            "/team/x;v=1",
            "/team//x",
            "//team/x",
            "/team/x//",
            "/team/%252e%252e/solo",
            "/team/%2e%2e/solo",
            "/team/x%2Egit",
            "/team/..%3B/solo",
            "/team/..%3b/solo",
            "/team%2fx",
            "/team%5Cx",
            "/team/x%00",
        ] {
            let text = format!("https://git.example.com{bad}");
            assert_eq!(text.parse::<Repository>(), Err(RepositoryError::Form(text.clone())));
            assert!(AllowList::new(&[format!("{text}/*")], Vec::new()).is_err(), "{bad}");
        }
        for good in ["https://git.example.com/team/x/", "https://git.example.com/team/a%20b"] {
            assert!(good.parse::<Repository>().is_ok(), "{good}");
        }
    }

    #[test]
    fn a_list_says_whether_it_allows_anything() {
        assert!(AllowList::default().is_empty());
        assert!(!AllowList::new(&[], vec![PathBuf::from("/srv/git")]).unwrap().is_empty());
        for pattern in ["https://h.example/*", "https://h.example/x"] {
            assert!(!AllowList::new(&[pattern.to_owned()], Vec::new()).unwrap().is_empty());
        }
    }

    #[test]
    fn a_pattern_that_is_no_url_is_refused() {
        for bad in ["*", "git.example.com/*", "/srv/git", "https://*.example.com/x"] {
            assert!(AllowList::new(&[bad.to_owned()], Vec::new()).is_err(), "{bad}");
        }
    }
}
