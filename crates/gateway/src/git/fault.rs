//! Why a repository did not do what was asked, in sentences for people.

use http::StatusCode;

use crate::credentials::{CredentialFault, TokenFault};
use crate::problem::Refusal;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// The allow-list does not have the repository.
    NotAllowed,
    /// A directory's `.git` leads out of the allowed directories.
    LeadsOut,
    /// Objects or refs of a directory lie outside of the allowed directories.
    StraysOut { what: String },
    /// The directory, or what it leads to, overlaps one in which agents write.
    Forbidden,
    /// The run's workflow publishes nothing.
    PublishesNothing,
    /// Somebody has the run's branch checked out on the server, and git takes no push to such a branch.
    CheckedOut { branch: String },
    /// Files of the run's branch steer agents.
    TrustedBranch { reason: String },
    /// Too many of git's processes run on the server.
    Busy,
    /// The git host refused the credential, or wants one.
    Auth { status: u16, with_credential: bool },
    /// The store's credential cannot be sent.
    Credential(CredentialFault),
    /// The git host says there is none.
    NotFound { status: u16 },
    /// The git host sends the client elsewhere.
    Redirect { status: u16, to: Option<String> },
    /// The answer is not one of git's services.
    NotGit,
    /// No answer: nothing was sent.
    Connect,
    /// No answer, or an error: what was sent may have been taken.
    Failed { status: u16, detail: &'static str },
    /// There is no such directory, or it is no repository.
    NoRepository { path: String },
    /// Git on the server could not serve the directory.
    Local { detail: String },
    /// A push could not be looked at, by no fault of its own.
    Uninspected { detail: String },
    /// There is too little disk space to receive a push.
    DiskFull,
    /// The request is larger than its bound.
    TooLarge { bytes: u64 },
    /// The run was given as many bytes in answer to fetches as it may have.
    TooMuchFetched { bytes: u64 },
    /// The request's encoding is not known.
    Encoding,
}

impl Fault {
    /// HTTP status of the git host, 0 without one; none if the gateway refused by a rule of its own.
    pub(super) const fn status(&self) -> Option<u16> {
        match self {
            Self::NotAllowed
            | Self::LeadsOut
            | Self::StraysOut { .. }
            | Self::Forbidden
            | Self::PublishesNothing
            | Self::CheckedOut { .. }
            | Self::TrustedBranch { .. }
            | Self::TooLarge { .. }
            | Self::TooMuchFetched { .. }
            | Self::Encoding => None,
            Self::Auth { status, .. }
            | Self::NotFound { status }
            | Self::Redirect { status, .. }
            | Self::Failed { status, .. } => Some(*status),
            Self::Credential(fault) => Some(fault.status()),
            Self::NotGit => Some(200),
            Self::Connect
            | Self::NoRepository { .. }
            | Self::Busy
            | Self::Local { .. }
            | Self::Uninspected { .. }
            | Self::DiskFull => Some(0),
        }
    }

    /// Whether a git host may still be at work on what was asked.
    pub(super) const fn may_go_on(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }

    /// Whether the git host may have taken a push although it did not say so.
    pub(super) const fn is_unclear(&self) -> bool {
        match self {
            Self::Failed { .. } | Self::Local { .. } => true,
            Self::NotAllowed
            | Self::LeadsOut
            | Self::StraysOut { .. }
            | Self::Forbidden
            | Self::PublishesNothing
            | Self::CheckedOut { .. }
            | Self::TrustedBranch { .. }
            | Self::Busy
            | Self::Auth { .. }
            | Self::Credential(_)
            | Self::NotFound { .. }
            | Self::Redirect { .. }
            | Self::NotGit
            | Self::Connect
            | Self::NoRepository { .. }
            | Self::Uninspected { .. }
            | Self::DiskFull
            | Self::TooLarge { .. }
            | Self::TooMuchFetched { .. }
            | Self::Encoding => false,
        }
    }

    pub(super) fn refusal(&self) -> Refusal {
        let (status, code) = match self {
            Self::NotAllowed
            | Self::LeadsOut
            | Self::StraysOut { .. }
            | Self::Forbidden
            | Self::PublishesNothing
            | Self::TrustedBranch { .. } => (StatusCode::FORBIDDEN, "policy_denied"),
            Self::CheckedOut { .. } => (StatusCode::FORBIDDEN, "push_rejected"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            Self::Credential(CredentialFault::Away) => (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable"),
            Self::Credential(CredentialFault::Internal) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            Self::Credential(CredentialFault::Token { fault: TokenFault::Unreachable, .. }) => {
                (StatusCode::BAD_GATEWAY, "repo_unreachable")
            }
            Self::DiskFull => (StatusCode::SERVICE_UNAVAILABLE, "disk_full"),
            Self::Auth { .. } | Self::Credential(_) => (StatusCode::FORBIDDEN, "repo_auth"),
            Self::NotFound { .. } | Self::NoRepository { .. } => (StatusCode::NOT_FOUND, "repo_unreachable"),
            Self::Redirect { .. }
            | Self::NotGit
            | Self::Connect
            | Self::Failed { .. }
            | Self::Uninspected { .. }
            | Self::Local { .. } => (StatusCode::BAD_GATEWAY, "repo_unreachable"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Self::TooMuchFetched { .. } => (StatusCode::FORBIDDEN, "too_much_fetched"),
            Self::Encoding => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_request"),
        };
        Refusal::new(status, code, self.message())
    }

    fn message(&self) -> String {
        match self {
            Self::NotAllowed => {
                "the repository is not on the server's allow-list; add it there, or name another".to_owned()
            }
            Self::LeadsOut => {
                "the repository's .git leads out of the allowed directories; allow the directory it \
                               leads to as well"
                    .to_owned()
            }
            Self::StraysOut { what } => format!(
                "the repository holds objects or refs from elsewhere: {what} out of the allowed directories; make it whole \
                 by itself, or allow the directory that they are in as well"
            ),
            Self::Forbidden => {
                "the repository is, or its .git leads, where the server keeps what agents write; keep \
                 repositories elsewhere"
                    .to_owned()
            }
            Self::PublishesNothing => {
                "the run's workflow publishes nothing, so nothing may be pushed; use a workflow whose publish \
                 policy is branch"
                    .to_owned()
            }
            Self::CheckedOut { branch } => format!(
                "branch \"{branch}\" is checked out in the repository on the server, and git takes no push to such a \
                 branch; name another one for the run, or check out another one there"
            ),
            Self::TrustedBranch { reason } => reason.clone(),
            Self::Busy => "too many git requests are under way on the server; try again".to_owned(),
            Self::Auth { status, with_credential: true } => format!(
                "the git host refused the credential (status {status}); give the server one that may do this"
            ),
            Self::Auth { status, with_credential: false } => format!(
                "the git host wants a credential (status {status}) and the server has none for this URL; add one with \
                 `caisson credential add`"
            ),
            Self::Credential(fault) => fault.message(),
            Self::NotFound { status } => format!(
                "the repository does not exist, or the credential cannot see it (status {status}); check its URL"
            ),
            Self::Redirect { to: Some(to), .. } => {
                format!("the git host redirects to {to}; use that final URL as the repository")
            }
            Self::Redirect { to: None, .. } => {
                "the git host redirects; use the final URL as the repository".to_owned()
            }
            Self::NotGit => {
                "something answered at the repository's URL that is no git host; check the URL".to_owned()
            }
            Self::Connect => {
                "the git host cannot be reached from the server; check the URL and the network".to_owned()
            }
            Self::Failed { status: 0, detail } => format!("the git host {detail}; try again"),
            Self::Failed { status, detail } => format!("the git host {detail} (status {status}); try again"),
            Self::NoRepository { path } => {
                format!("there is no git repository at {path} on the server; check the path")
            }
            Self::Local { detail } => format!("git on the server could not serve the repository: {detail}"),
            Self::Uninspected { detail } => {
                format!("the server could not look at the push before forwarding it: {detail}; push again")
            }
            Self::DiskFull => {
                "the server has too little disk space to receive the push; give it more, then push again".to_owned()
            }
            Self::TooLarge { bytes } => format!("the request is larger than {bytes} bytes"),
            Self::TooMuchFetched { bytes } => format!(
                "this run has been given more than {bytes} bytes in answer to fetches, and gets no more; go on with what is there"
            ),
            Self::Encoding => "the request's content encoding is not known; use gzip or none".to_owned(),
        }
    }
}
