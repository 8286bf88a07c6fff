//! Pushing the run's branch, and bringing it up to date once where it has moved on.

use std::sync::atomic::{AtomicBool, Ordering};

use caisson_domain::protocol::paths;
use caisson_domain::run::{Failure, FailureKind};

use crate::git::{Git, text};
use crate::process::Output;

/// What the gateway's own reasons begin with; the others are the git host's.
const GATEWAYS: &str = "caisson: ";
/// Most files that a failure, or a question to the agent, names.
pub(crate) const FILES_NAMED: usize = 20;

/// What git says about a push.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// The branch has it.
    Done,
    /// The branch had it before.
    Same,
    /// The branch has something else that is not in it.
    Behind,
    /// The git host or the gateway refused it, in these words.
    Rejected(String),
    /// It got no answer.
    Failed,
}

/// What became of the work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// The branch has it now; with the commit that it was rebased onto, if it had to be.
    Done(Option<String>),
    /// The branch had all of it before, so that nothing was pushed. `HEAD` is the branch's last commit.
    Nothing,
}

/// What came of a try to push.
#[derive(Debug)]
pub(crate) enum Tried {
    /// That.
    Pushed(Pushed),
    /// The branch has moved on, and a rebase onto it stopped at a conflict, where it stands.
    Conflict(Conflict),
}

/// A rebase that stopped.
#[derive(Debug)]
pub(crate) struct Conflict {
    /// Files that have one.
    pub(crate) files: Vec<String>,
    /// The branch's last commit on the git host.
    pub(crate) there: String,
    /// The work's last commit before.
    pub(crate) before: String,
    /// What git said.
    said: String,
}

impl Conflict {
    /// The run's failure by it.
    pub(crate) fn failure(&self, git: &Git, why: &str) -> Failure {
        let (branch, files) = (&git.work.branch, named(&self.files));
        let message =
            format!("branch \"{branch}\" has moved on, and the work does not fit onto it: {files}{why}");
        Failure::new(FailureKind::Conflict, message).with_evidence(self.said.clone())
    }
}

/// Pushes `HEAD` to the run's branch.
///
/// # Errors
/// [`Failure`] for people; the work is in the workspace as it was.
///
/// # Cancel safety
/// The branch may have it or not.
pub(crate) async fn push(git: &Git, base: Option<&str>) -> Result<Tried, Failure> {
    let (answer, output) = push_once(git).await?;
    let done = |pushed| Ok(Tried::Pushed(pushed));
    match answer {
        Answer::Done => return done(Pushed::Done(None)),
        Answer::Same => return done(Pushed::Nothing),
        Answer::Behind => {}
        Answer::Rejected(_) => {
            // The next request would forget why.
            let refusal = refused(git, &answer, &output);
            return match fetch(git).await {
                Ok((there, here)) if there == here => done(Pushed::Done(None)),
                Ok(_) | Err(_) => Err(refusal),
            };
        }
        Answer::Failed => return Err(refused(git, &answer, &output)),
    }
    let (there, here) = fetch(git).await?;
    if there == here {
        // An earlier try got through, and only its answer was lost.
        return done(Pushed::Done(None));
    }
    if let Some(conflict) = rebase(git, (there.as_deref(), here.as_deref()), base).await? {
        return Ok(Tried::Conflict(conflict));
    }
    push_onto(git, there).await.map(Tried::Pushed)
}

/// Pushes what has been brought onto the branch's commit `there`.
///
/// # Errors
/// [`Failure`] for people; the work is in the workspace.
pub(crate) async fn push_onto(git: &Git, there: Option<String>) -> Result<Pushed, Failure> {
    let branch = &git.work.branch;
    if git.resolve("HEAD").await? == there {
        // A rebase leaves out what the branch has already.
        return Ok(Pushed::Nothing);
    }
    let (answer, output) = push_once(git).await?;
    match answer {
        Answer::Done => Ok(Pushed::Done(there)),
        Answer::Same => Ok(Pushed::Nothing),
        Answer::Behind => Err(Failure::new(
            FailureKind::Conflict,
            format!("branch \"{branch}\" moved on again while the work was brought up to date; run it again"),
        )),
        Answer::Rejected(_) | Answer::Failed => Err(refused(git, &answer, &output)),
    }
}

/// Where the branch's remote state is kept.
fn tracking(git: &Git) -> String {
    format!("refs/remotes/{}/{}", paths::GIT_REMOTE, git.work.branch)
}

/// Fetches the branch; the commits there and here.
async fn fetch(git: &Git) -> Result<(Option<String>, Option<String>), Failure> {
    let tracking = tracking(git);
    let fetched = format!("+{}:{tracking}", git.work.branch.full_ref());
    let output = git.talk(&["fetch", "--quiet", "--no-tags", &git.url(), &fetched]).await?;
    if !output.exit.success() {
        let message = "the branch that has moved on could not be fetched";
        return Err(git.refusal(FailureKind::RepoUnreachable, message, &output));
    }
    let (there, here) = tokio::join!(git.resolve(&tracking), git.resolve("HEAD"));
    Ok((there?, here?))
}

async fn push_once(git: &Git) -> Result<(Answer, Output), Failure> {
    let refspec = format!("HEAD:{}", git.work.branch.full_ref());
    // By its URL: what the agent made of the remote's name does not count.
    let arguments = ["push", "--porcelain", "--no-verify", &git.url(), &refspec];
    let repeated = AtomicBool::new(false);
    let before_again = || {
        repeated.store(true, Ordering::Relaxed);
        Ok(())
    };
    let output = git.talk_again(&arguments, before_again).await?;
    let mut answer = read_answer(output.exit.success(), &text(&output));
    if answer == Answer::Same && repeated.load(Ordering::Relaxed) {
        // It has it by the try before, whose answer was lost.
        answer = Answer::Done;
    }
    Ok((answer, output))
}

/// Reads `git push --porcelain`: a line of flag, refs and summary for each ref; pure.
fn read_answer(success: bool, porcelain: &str) -> Answer {
    if success {
        let same = porcelain.lines().any(|line| line.starts_with("=\t"));
        return if same { Answer::Same } else { Answer::Done };
    }
    let summary = porcelain
        .lines()
        .filter_map(|line| line.strip_prefix("!\t"))
        .filter_map(|line| line.split_once('\t'))
        .map(|(_, summary)| summary)
        .next();
    match summary {
        Some(summary) if summary.starts_with("[rejected]") => Answer::Behind,
        Some(summary) => {
            let reason = summary.split_once('(').map_or(summary, |(_, reason)| reason.trim_end_matches(')'));
            Answer::Rejected(reason.to_owned())
        }
        None => Answer::Failed,
    }
}

fn refused(git: &Git, answer: &Answer, output: &Output) -> Failure {
    match answer {
        Answer::Rejected(reason) => {
            let (kind, message) = refusal(reason);
            git.refusal(kind, &message, output)
        }
        Answer::Done | Answer::Same | Answer::Behind | Answer::Failed => {
            git.refusal(FailureKind::RepoUnreachable, "the branch could not be pushed", output)
        }
    }
}

/// Whose refusal it is, by its words; pure.
fn refusal(reason: &str) -> (FailureKind, String) {
    match reason.strip_prefix(GATEWAYS) {
        Some(reason) => (FailureKind::PolicyDenied, format!("the push was refused: {reason}")),
        None => (FailureKind::PushRejected, format!("the git host refused the push: {reason}")),
    }
}

/// Whether a rebase was begun and not ended.
pub(crate) fn is_rebasing(git: &Git) -> bool {
    ["rebase-merge", "rebase-apply"].iter().any(|state| git.file(state).exists())
}

/// Gives up a rebase.
///
/// # Errors
/// [`Failure`] if git did not start or end.
pub(crate) async fn abort_rebase(git: &Git) -> Result<(), Failure> {
    git.attempt(&["rebase", "--abort"]).await.map(drop)
}

/// Files with a conflict that is not solved, by git's index.
///
/// # Errors
/// [`Failure`] if git did not start or end.
pub(crate) async fn unmerged(git: &Git) -> Result<Vec<String>, Failure> {
    let listed = git.attempt(&["diff", "--name-only", "--diff-filter=U", "-z"]).await?;
    Ok(String::from_utf8_lossy(&listed.stdout).split_terminator('\0').map(str::to_owned).collect())
}

/// Brings the work onto the branch's commit; where it stopped, if it did. One that did not begin is a failure.
async fn rebase(
    git: &Git,
    (there, here): (Option<&str>, Option<&str>),
    base: Option<&str>,
) -> Result<Option<Conflict>, Failure> {
    let onto = tracking(git);
    let mut arguments = vec!["rebase", "--quiet", "--no-verify", "--no-autostash", "--no-autosquash"];
    arguments.extend(["--onto", &onto]);
    arguments.push(base.unwrap_or("--root"));
    let output = git.attempt(&arguments).await?;
    if output.exit.success() {
        return Ok(None);
    }
    let text = |commit: Option<&str>| commit.unwrap_or_default().to_owned();
    let files = unmerged(git).await?;
    let conflict = Conflict { files, there: text(there), before: text(here), said: output.stderr };
    if is_rebasing(git) && !conflict.files.is_empty() {
        return Ok(Some(conflict));
    }
    // If it did not begin, there is nothing to give up.
    abort_rebase(git).await?;
    Err(conflict.failure(git, ""))
}

/// The files' names for a sentence; pure.
pub(crate) fn named(files: &[String]) -> String {
    if files.is_empty() {
        return "git says why below".to_owned();
    }
    let more = files.len().saturating_sub(FILES_NAMED);
    let names = files.iter().take(FILES_NAMED).cloned().collect::<Vec<_>>().join(", ");
    if more == 0 { names } else { format!("{names} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gits_answer_to_a_push_is_told_apart() {
        let behind = "To http://127.0.0.1:1/git/origin\n!\tHEAD:refs/heads/b\t[rejected] (fetch first)\nDone";
        assert_eq!(read_answer(false, behind), Answer::Behind);
        let refused = "To x\n!\tHEAD:refs/heads/b\t[remote rejected] (protected branch)\n";
        assert_eq!(read_answer(false, refused), Answer::Rejected("protected branch".to_owned()));
        assert_eq!(read_answer(false, ""), Answer::Failed);
        assert_eq!(read_answer(true, "To x\n=\tHEAD:refs/heads/b\t[up to date]\nDone"), Answer::Same);
        assert_eq!(read_answer(true, "To x\n \tHEAD:refs/heads/b\tab..cd\nDone"), Answer::Done);
        assert_eq!(read_answer(true, "To x\n*\tHEAD:refs/heads/b\t[new branch]\nDone"), Answer::Done);
    }

    #[test]
    fn the_gateways_refusal_is_told_from_the_hosts() {
        let gateways = "To x\n!\tHEAD:refs/heads/b\t[remote rejected] (caisson: a secret in f (really))\n";
        let Answer::Rejected(reason) = read_answer(false, gateways) else { panic!("it is refused") };
        let told = refusal(&reason);
        assert_eq!(
            told,
            (FailureKind::PolicyDenied, "the push was refused: a secret in f (really".to_owned())
        );
        let (kind, message) = refusal("hook declined");
        assert_eq!(
            (kind, message.as_str()),
            (FailureKind::PushRejected, "the git host refused the push: hook declined")
        );
    }

    #[test]
    fn a_failure_names_a_bounded_number_of_files() {
        let files = |count: usize| (0..count).map(|number| format!("f{number}")).collect::<Vec<_>>();
        assert_eq!(named(&files(2)), "f0, f1");
        assert!(named(&files(FILES_NAMED)).ends_with("f19"));
        assert!(named(&files(FILES_NAMED + 1)).ends_with("f19 and 1 more"));
        assert!(!named(&[]).is_empty());
    }
}
