//! Saying what went wrong: from the agent's verdict, the gateway's refusal or git's own words to a run's failure.

use caisson_claude::{Reason, Verdict};
use caisson_domain::image::ImageWish;
use caisson_domain::protocol::{DoorProblem, StopReason};
use caisson_domain::run::{Failure, FailureKind, cut};
use nix::errno::Errno;

use crate::journal::WriteError;
use crate::process::ProcessError;

/// Why a run goes no further.
#[derive(Debug)]
pub(crate) enum Halt {
    /// It failed.
    Failed(Failure),
    /// It was told to stop.
    Stopped(StopReason),
    /// Its repository wants a sandbox of another image.
    OtherImage(ImageWish),
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<WriteError> for Halt {
    fn from(error: WriteError) -> Self {
        Self::Failed(unwritten(&error))
    }
}

/// The journal cannot be written.
pub(crate) fn unwritten(error: &WriteError) -> Failure {
    match error {
        WriteError::Full => Failure::new(
            FailureKind::DiskFull,
            "the journal's disk is full; give the server more disk space and run it again",
        ),
        WriteError::Other(source) => Failure::new(FailureKind::Internal, "the journal cannot be written")
            .with_evidence(source.to_string()),
    }
}

/// Git did not start or not end.
pub(crate) fn git_process(error: &ProcessError) -> Failure {
    match error {
        ProcessError::Start { source, .. } if source.raw_os_error() == Some(Errno::EAGAIN as i32) => {
            out_of_processes().with_evidence(source.to_string())
        }
        ProcessError::Start { source, .. } => Failure::new(
            FailureKind::BadWorkflow,
            "git cannot be started in the sandbox; use an image that has git",
        )
        .with_evidence(source.to_string()),
        ProcessError::TimedOut { .. } => Failure::new(
            FailureKind::Internal,
            format!("{error}; look for pipes among the files, or for a workspace that is too large"),
        ),
    }
}

/// The sandbox's bound of processes is reached.
fn out_of_processes() -> Failure {
    Failure::new(
        FailureKind::AgentError,
        "the sandbox is out of processes; allow it more, or have the agent start fewer",
    )
}

/// Git's own words for a process that it could not start.
const NO_PROCESS: &str = "cannot fork";
/// The words for a full disk, the system's and git's own.
const NO_SPACE: [&str; 3] = ["No space left on device", "Out of diskspace", "Disk quota exceeded"];

fn says_full(stderr: &str) -> bool {
    NO_SPACE.iter().any(|words| stderr.contains(words))
}

/// A git command failed.
pub(crate) fn git_command(what: &str, stderr: &str) -> Failure {
    let failure = if says_full(stderr) {
        Failure::new(
            FailureKind::DiskFull,
            "the workspace's disk is full; give it more disk space, or have the agent write less",
        )
    } else if stderr.contains(NO_PROCESS) {
        out_of_processes()
    } else {
        Failure::new(FailureKind::Internal, format!("git {what} failed in the workspace"))
    };
    failure.with_evidence(stderr)
}

/// A git command that talks to the repository failed: the gateway's word counts more than git's.
pub(crate) fn git_remote(
    kind: FailureKind,
    message: &str,
    problem: Option<DoorProblem>,
    stderr: &str,
) -> Failure {
    match problem {
        Some(problem) => {
            Failure::new(problem_kind(&problem.code).unwrap_or(kind), problem.message).with_evidence(stderr)
        }
        None if says_full(stderr) || stderr.contains(NO_PROCESS) => git_command("", stderr),
        None => Failure::new(kind, message).with_evidence(stderr),
    }
}

/// The failure that a refusal at the door means, where its code says so.
fn problem_kind(code: &str) -> Option<FailureKind> {
    match code {
        "push_refused" => Some(FailureKind::PushRejected),
        "grant_refused" => Some(FailureKind::Internal),
        "gateway_away" => Some(FailureKind::RepoUnreachable),
        code => code.parse().ok(),
    }
}

/// What the agent's verdict means for the run; none if it succeeded.
pub(crate) fn verdict(verdict: &Verdict) -> Option<Failure> {
    let failure = match verdict {
        Verdict::Succeeded => return None,
        Verdict::Cancelled => Failure::new(FailureKind::AgentError, "the agent's turn was interrupted"),
        Verdict::MaxTurns => Failure::new(
            FailureKind::MaxTurns,
            "the agent used all its turns; allow more turns or give it a smaller task",
        ),
        Verdict::Budget => Failure::new(FailureKind::Budget, "the agent used all the money it was given"),
        Verdict::ApiError { status, kind, text } => api_error(*status, kind, text),
        Verdict::Refused { text } => {
            Failure::new(FailureKind::AgentRefused, "the model refused the task").with_evidence(text.as_str())
        }
        Verdict::Failed { reason } => failed(reason),
    };
    Some(failure)
}

fn failed(reason: &Reason) -> Failure {
    let evidence = match reason {
        Reason::Execution { text, .. } | Reason::LocalCommand { text } => text.as_str(),
        Reason::Start { stderr } | Reason::Exited { stderr, .. } => stderr.as_str(),
        Reason::UnknownSession | Reason::Killed { .. } => "",
    };
    let message = match reason {
        Reason::Start { .. } => "the agent did not start".to_owned(),
        Reason::Exited { code, .. } => format!("the agent ended with code {code} before its result"),
        Reason::Execution { word, .. } => format!("the agent's turn ended with {word}"),
        Reason::LocalCommand { .. } | Reason::UnknownSession | Reason::Killed { .. } => reason.to_string(),
    };
    let failure = Failure::new(FailureKind::AgentError, message);
    if evidence.is_empty() { failure } else { failure.with_evidence(evidence) }
}

/// Most of somebody else's words in a failure's sentence, in bytes.
const SENTENCE_BYTES: usize = 500;

/// What a failed model call means. The gateway answers 403 or 429 for what it refuses or gives up itself and says which rule it was by
/// one of the failure kinds' words; 529 is the model API's word for being overloaded.
fn api_error(status: Option<u16>, kind: &str, text: &str) -> Failure {
    let named = FailureKind::ALL.iter().copied().find(|kind| {
        matches!(
            kind,
            FailureKind::Budget
                | FailureKind::PolicyDenied
                | FailureKind::ProviderAuth
                | FailureKind::ProviderLimit
                | FailureKind::ProviderDown
        ) && mentions(text, kind.as_str())
    });
    let class = match (named, status) {
        (Some(named), Some(403 | 429)) => named,
        (_, Some(401 | 403)) => FailureKind::ProviderAuth,
        (_, Some(429)) => FailureKind::ProviderLimit,
        (_, Some(500..)) => FailureKind::ProviderDown,
        (_, None) if kind == "connection_failed" || kind == "api_error" => FailureKind::ProviderDown,
        (_, Some(_) | None) => FailureKind::AgentError,
    };
    let status = status.map_or_else(String::new, |status| format!(" ({status})"));
    // The text holds the remedy where the gateway refused the call; its first line is enough here.
    let said = cut(text.lines().next().unwrap_or_default(), SENTENCE_BYTES);
    let message = format!("the model could not be called: {kind}{status}");
    let message = if said.is_empty() { message } else { format!("{message}: {said}") };
    Failure::new(class, message).with_evidence(text)
}

/// Whether `word` occurs in `text` as a word of its own.
fn mentions(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c: char| !part(c)).any(|found| found.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(status: Option<u16>, kind: &str, text: &str) -> FailureKind {
        let api = Verdict::ApiError { status, kind: kind.to_owned(), text: text.to_owned() };
        verdict(&api).unwrap().kind
    }

    #[test]
    fn a_failed_model_call_is_told_by_its_status() {
        assert_eq!(kind_of(Some(401), "authentication_error", ""), FailureKind::ProviderAuth);
        assert_eq!(kind_of(Some(403), "permission_error", "forbidden"), FailureKind::ProviderAuth);
        assert_eq!(kind_of(Some(403), "permission_error", "budget: spent"), FailureKind::Budget);
        assert_eq!(kind_of(Some(403), "permission_error", "policy_denied: x"), FailureKind::PolicyDenied);
        assert_eq!(kind_of(Some(429), "rate_limit_error", ""), FailureKind::ProviderLimit);
        assert_eq!(kind_of(Some(429), "rate_limit_error", "provider_down: x"), FailureKind::ProviderDown);
        assert_eq!(kind_of(Some(529), "overloaded_error", ""), FailureKind::ProviderDown);
        assert_eq!(kind_of(Some(500), "api_error", "no budget"), FailureKind::ProviderDown);
        assert_eq!(kind_of(None, "connection_failed", ""), FailureKind::ProviderDown);
        assert_eq!(kind_of(None, "max_output_tokens", ""), FailureKind::AgentError);
        assert_eq!(kind_of(Some(400), "prompt_too_long", ""), FailureKind::AgentError);
    }

    #[test]
    fn every_other_verdict_has_its_kind_and_its_evidence() {
        let kind = |given: &Verdict| verdict(given).map(|failure| failure.kind);
        assert_eq!(kind(&Verdict::Succeeded), None);
        assert_eq!(kind(&Verdict::Cancelled), Some(FailureKind::AgentError));
        assert_eq!(kind(&Verdict::MaxTurns), Some(FailureKind::MaxTurns));
        assert_eq!(kind(&Verdict::Budget), Some(FailureKind::Budget));
        assert_eq!(kind(&Verdict::Refused { text: String::new() }), Some(FailureKind::AgentRefused));
        let start = Verdict::Failed { reason: Reason::Start { stderr: "unknown option".to_owned() } };
        let failure = verdict(&start).unwrap();
        assert_eq!(failure.message, "the agent did not start");
        assert_eq!(failure.evidence.as_deref(), Some("unknown option"));
    }

    #[test]
    fn the_gateways_word_counts_more_than_gits() {
        let problem = |code: &str| {
            Some(DoorProblem { code: code.to_owned(), message: "give the server a token".to_owned() })
        };
        let kind = |code: &str| git_remote(FailureKind::RepoUnreachable, "x", problem(code), "y").kind;
        assert_eq!(kind("repo_auth"), FailureKind::RepoAuth);
        assert_eq!(kind("push_refused"), FailureKind::PushRejected);
        assert_eq!(kind("policy_denied"), FailureKind::PolicyDenied);
        assert_eq!(kind("grant_refused"), FailureKind::Internal);
        assert_eq!(kind("something_new"), FailureKind::RepoUnreachable);
        let failure = git_remote(FailureKind::RepoUnreachable, "no clone", None, "fatal: x");
        assert_eq!((failure.message.as_str(), failure.evidence.as_deref()), ("no clone", Some("fatal: x")));
    }

    #[test]
    fn a_full_disk_is_recognised_in_gits_words() {
        let words = "fatal: write error: No space left on device";
        assert_eq!(git_command("add", words).kind, FailureKind::DiskFull);
        assert_eq!(git_remote(FailureKind::RepoUnreachable, "x", None, words).kind, FailureKind::DiskFull);
        let words = "fatal: sha1 file '.git/index.lock' write error. Out of diskspace";
        assert_eq!(git_command("status", words).kind, FailureKind::DiskFull);
        assert_eq!(git_command("add", "fatal: x").kind, FailureKind::Internal);
        assert_eq!(unwritten(&WriteError::Full).kind, FailureKind::DiskFull);
        assert_eq!(unwritten(&WriteError::Other(std::io::Error::other("x"))).kind, FailureKind::Internal);
        let start = ProcessError::Start { program: "git".to_owned(), source: std::io::Error::other("x") };
        assert_eq!(git_process(&start).kind, FailureKind::BadWorkflow);
    }

    #[test]
    fn a_sandbox_without_room_for_a_process_is_recognised() {
        let source = std::io::Error::from(Errno::EAGAIN);
        let start = ProcessError::Start { program: "git".to_owned(), source };
        assert_eq!(git_process(&start).kind, FailureKind::AgentError);
        let words = "error: cannot fork() for remote-http: Resource temporarily unavailable";
        for failure in [git_command("x", words), git_remote(FailureKind::RepoUnreachable, "x", None, words)] {
            assert!(failure.message.starts_with("the sandbox is out of processes"), "{}", failure.message);
        }
    }

    #[test]
    fn a_git_that_does_not_end_is_told_with_its_time() {
        let limit = std::time::Duration::from_secs(3);
        let failure = git_process(&ProcessError::TimedOut { program: "git".to_owned(), limit });
        assert!(failure.message.contains("git did not end within 3 s"), "{}", failure.message);
    }
}
