//! Branch names and repositories, checked before anything acts on them.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use url::Url;

use crate::egress::{HTTP_PORT, HTTPS_PORT, Target};
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
    /// The URL's host, or what stands around it, is not read alike by all programs.
    #[error(
        "\"{0}\" does not name its host plainly; write http or https, two slashes, the host in ASCII (a name in other letters begins \
         with xn--) and its port, and use no backslash"
    )]
    Host(String),
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
    /// the same, in lower case, with nothing percent-encoded and without the default port; a path without trailing slash.
    ///
    /// It is what a branch is locked by, so it says "the same" wherever some host might. Most hosts take names for the same
    /// whatever the case of their letters; two repositories of one that does not wait for one another here, which costs
    /// them time and no work. To reach the repository, use the spelling that was given.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            // Parsing has dropped a default port. The ending goes last: it may be spelled in any way as well.
            Self::Url(url) => {
                let path = decoded(url.path()).to_lowercase();
                format!("{}{}", url.origin().ascii_serialization(), without_ending(&path))
            }
            Self::Path(path) => path.components().collect::<PathBuf>().display().to_string(),
        }
    }
}

/// A path with every percent-encoded byte decoded. What is then not a path of text any more, or another path, is refused
/// when a URL is parsed, or counts as the same.
fn decoded(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let mut byte = [0];
        rest = match after.split_at_checked(2) {
            Some((digits, after)) if *first == b'%' && hex::decode_to_slice(digits, &mut byte).is_ok() => {
                after
            }
            Some(_) | None => {
                byte = [*first];
                after
            }
        };
        bytes.extend(byte);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn parse_url(text: &str) -> Result<Url, RepositoryError> {
    let url = Url::parse(text).map_err(|_| RepositoryError::Form(text.to_owned()))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(RepositoryError::HoldsCredential);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(RepositoryError::QueryOrFragment);
    }
    if !names_host_plainly(text, &url) {
        return Err(RepositoryError::Host(text.to_owned()));
    }
    if is_ambiguous(text) || url.path().contains("//") {
        return Err(RepositoryError::Form(text.to_owned()));
    }
    Ok(url)
}

/// Whether every program finds the host in the text that the url crate found. By the WHATWG's rules a backslash ends it, one
/// slash or three before it are as good as two, and escapes, other letters and numbers of all kinds are made into a plain name.
/// Git and curl go by RFC 3986: to them all before an `@` is a user name, backslashes and all. So the text between the slashes
/// must be a plain host by itself, and the same one.
fn names_host_plainly(text: &str, url: &Url) -> bool {
    let Some((_, rest)) = text.split_once("://") else { return false };
    let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
    let port = if url.scheme() == "https" { HTTPS_PORT } else { HTTP_PORT };
    let host = url.host_str().unwrap_or_default();
    let read = Target::parse(&format!("{host}:{}", url.port().unwrap_or(port)), None);
    // The url crate cuts spaces off, and takes a backslash for a slash.
    !text.contains('\\')
        && !text.ends_with(' ')
        && read.is_ok()
        && read == Target::parse(authority, Some(port))
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
    without_ending(url.path())
}

fn without_ending(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    path.strip_suffix(".git").unwrap_or(path)
}

#[cfg(test)]
#[path = "git_tests.rs"]
mod tests;
