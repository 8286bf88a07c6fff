//! Publishing: what is not committed gets a commit with a message that can be kept, the agent's own commits are checked,
//! and the branch is pushed.

use std::convert::Infallible;
use std::pin::pin;

use caisson_claude::{Verdict, interrupt, judge};
use caisson_domain::limits::RESULT_TEXT_BYTES;
use caisson_domain::protocol::{JournalBody, MessageAuthor, NoteLevel};
use caisson_domain::run::{Failure, FailureKind, cut};
use futures_util::future::maybe_done;
use tokio::time::timeout;

use crate::agent::Agent;
use crate::artifacts::Artifacts;
use crate::checkout::set_base;
use crate::conflict;
use crate::failure::Halt;
use crate::git::Git;
use crate::history::put_right;
use crate::message::{check, fallback, from_answer, question, question_again, question_for_commit};
use crate::push::{Pushed, Tried, is_rebasing, named, push};
use crate::recorder::Recorder;
use crate::run::Live;
use crate::salvage::{DIFF, keep_diff};
use crate::survey::{Commit, Survey, survey};
use crate::turn::TurnEnd;

/// Answers that the agent may give to the question for one message.
const ANSWERS: usize = 2;
/// A diffstat for a question.
const STAT: [&str; 4] = ["--stat=100,70", "--no-color", "--no-ext-diff", "--no-textconv"];

impl Live<'_> {
    /// Publishes the work of an agent that has finished its task.
    ///
    /// # Errors
    /// [`Halt`]; the work is in the workspace.
    ///
    /// # Cancel safety
    /// May be given up at any point: the work is in the workspace.
    pub(crate) async fn publish(&mut self, git: &Git, base: Option<&str>) -> Result<(), Halt> {
        // What the agent left running could change files under git's hands, or leave it no room for a process.
        self.shim.reaper.end_strays().await;
        let surveyed = async {
            git.learn_drivers().await?;
            survey(git, base).await
        };
        let ((), found) = tokio::join!(quiet(self.agent.as_mut()), surveyed);
        self.end_turns().await?;
        let mut found = self.settle(git, base, found?).await?;
        if !found.on_base {
            return Err(replaced(base).into());
        }
        if found.status.dirty
            && let Some(author) = self.commit_rest(git).await?
        {
            found = survey(git, base).await?;
            if let Some(last) = found.commits.last_mut() {
                last.author = author;
            }
            if found.status.dirty {
                let note =
                    "files were changed while the work was being committed; they are not in the commit";
                self.recorder.note(NoteLevel::Warn, note).await?;
            }
        }
        self.head.clone_from(&found.status.head);
        if found.more {
            let note = "the run has too many commits to check their messages";
            self.recorder.note(NoteLevel::Warn, note).await?;
        } else {
            self.put_messages_right(git, &mut found.commits).await?;
            self.head = found.commits.last().map(|commit| commit.id.clone()).or(self.head.take());
        }
        record(&self.recorder, &found.commits).await?;
        self.push_and_keep(git, base, &found.commits).await
    }

    /// Brings the work to the run's branch, wherever the agent left `HEAD`.
    async fn settle(&mut self, git: &Git, base: Option<&str>, found: Survey) -> Result<Survey, Halt> {
        if !found.status.unmerged.is_empty() {
            let files = named(&found.status.unmerged);
            let message = format!("the agent left a merge unfinished: {files}");
            return Err(Failure::new(FailureKind::Conflict, message).into());
        }
        if is_rebasing(git) {
            return Err(Failure::new(FailureKind::Conflict, "the agent left a rebase unfinished").into());
        }
        let branch = &git.work.branch;
        if found.status.branch.as_deref() == Some(branch.as_str()) {
            return Ok(found);
        }
        let full = branch.full_ref();
        if found.status.head.is_none() {
            git.run(&["symbolic-ref", "HEAD", &full]).await?;
            return survey_moved(git, base).await;
        }
        let tip = git.resolve(&full).await?.filter(|tip| Some(tip) != found.status.head.as_ref());
        if found.commits.is_empty() && found.on_base && tip.is_some() {
            // The agent only looked elsewhere, and its commits are where they should be. Files that it changed there
            // come along if they can.
            let back = git.attempt(&["checkout", "--quiet", branch.as_str(), "--"]).await?;
            if back.exit.success() {
                return survey_moved(git, base).await;
            }
        }
        if !found.on_base {
            return Err(replaced(base).into());
        }
        let left = found.status.branch.as_deref().unwrap_or("no branch");
        let mut note = format!("the agent left its work on {left}; it was put on \"{branch}\"");
        if let Some(tip) = tip
            && !git.attempt(&["merge-base", "--is-ancestor", &tip, "HEAD"]).await?.exit.success()
        {
            note = format!("{note}, without commit {tip} that was there");
        }
        git.run(&["checkout", "--quiet", "--no-track", "-B", branch.as_str()]).await?;
        self.recorder.note(NoteLevel::Info, note).await?;
        survey_moved(git, base).await
    }

    /// Commits what is not committed; who wrote the message, or none if there was nothing to commit after all.
    async fn commit_rest(&mut self, git: &Git) -> Result<Option<MessageAuthor>, Halt> {
        git.run(&["add", "--all"]).await?;
        let changes = git.run(&[["diff", "--cached"].as_slice(), &STAT].concat()).await?;
        if changes.is_empty() {
            return Ok(None);
        }
        let (message, author) = match self.ask(question(&changes)).await? {
            Some(message) => (message, MessageAuthor::Agent),
            None => (fallback(&git.work), MessageAuthor::Fallback),
        };
        let mut commit = git.command(&["commit", "--quiet", "--no-verify", "--file=-"])?;
        let committed = git.feed(&mut commit, message.as_bytes()).await;
        quiet(self.agent.as_mut()).await;
        match committed {
            Ok(_) => Ok(Some(author)),
            // The agent may have committed instead of answering.
            Err(_) if git.attempt(&["diff", "--cached", "--quiet"]).await?.exit.success() => {
                Ok(Some(MessageAuthor::Agent))
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// Asks the agent for a commit message; none if it gives none that can be kept.
    async fn ask(&mut self, mut question: String) -> Result<Option<String>, Halt> {
        let mut stop = self.stop.clone();
        let Some(agent) = self.agent.as_mut() else { return Ok(None) };
        for _ in 0..ANSWERS {
            let asked = timeout(agent.patience.question, agent.turn(&question, &mut stop));
            let answer = match asked.await {
                Ok(TurnEnd::Result(result)) if judge(&result) == Verdict::Succeeded => result.text,
                Ok(TurnEnd::Stopped(reason)) => return Err(Halt::Stopped(reason)),
                Ok(TurnEnd::Unwritten(error)) => return Err(error.into()),
                Ok(
                    TurnEnd::Result(_)
                    | TurnEnd::Interrupted
                    | TurnEnd::Exited(_)
                    | TurnEnd::Hung(_)
                    | TurnEnd::Untaken(_)
                    | TurnEnd::Unsent(_),
                ) => return Ok(None),
                Err(_) => {
                    agent.write(interrupt("question"));
                    return Ok(None);
                }
            };
            let message = from_answer(&answer.unwrap_or_default());
            match check(&message) {
                Ok(()) => return Ok(Some(message)),
                Err(fault) => question = question_again(&fault),
            }
        }
        Ok(None)
    }

    /// Puts messages right that cannot be kept. The agent is asked where it is one commit, the last.
    async fn put_messages_right(&mut self, git: &Git, commits: &mut [Commit]) -> Result<(), Halt> {
        let mut faulty = commits.iter().filter(|commit| check(&commit.message).is_err());
        let asked = match (faulty.next(), faulty.next(), commits.last()) {
            (None, _, _) => return Ok(()),
            (Some(only), None, Some(last)) if only.id == last.id && last.parents.len() <= 1 => {
                let show = [["show", "--format="].as_slice(), &STAT, &[last.id.as_str(), "--"]].concat();
                let changes = git.run(&show).await?;
                match check(&last.message) {
                    Err(fault) => {
                        let question = question_for_commit(&last.message, &changes, &fault);
                        self.ask(question).await?
                    }
                    Ok(()) => None,
                }
            }
            (Some(_), _, _) => None,
        };
        quiet(self.agent.as_mut()).await;
        put_right(git, &self.recorder, commits, asked).await
    }

    /// Pushes, keeps the diff and lets the agent end, all at once: none of them waits for another. The push counts as
    /// soon as it is done, whatever becomes of the others. But where others may push the branch too, it comes first, for as
    /// long as the agent may be needed.
    async fn push_and_keep(&mut self, git: &Git, base: Option<&str>, commits: &[Commit]) -> Result<(), Halt> {
        let shared = conflict::is_shared(git) && !commits.is_empty();
        let first = if shared { Some(self.push_with_agent(git, base).await?) } else { None };
        let (head, patience) = (self.head.clone(), self.shim.patience);
        let recorder = self.recorder.clone();
        let artifacts = Artifacts { door: &self.shim.door, git, run: &self.work.run, recorder: &recorder };
        let mut keeping = pin!(maybe_done(async {
            match &head {
                Some(head) => keep_diff(&artifacts, base, head).await,
                None => Ok(()),
            }
        }));
        let agent = if self.may_keep() { None } else { self.agent.as_mut() };
        let mut ending = pin!(maybe_done(async {
            if let Some(agent) = agent {
                let _exit = agent.finish(patience.exit).await;
            }
        }));
        let pushing = async {
            match first {
                Some(pushed) => Ok(Some(pushed)),
                None if commits.is_empty() => Ok(None),
                None => push_alone(git, base).await.map(Some),
            }
        };
        let beside = async {
            tokio::join!(keeping.as_mut(), ending.as_mut());
            std::future::pending::<Infallible>().await
        };
        let pushed = tokio::select! {
            pushed = pushing => pushed?,
            never = beside => match never {},
        };
        self.pushed = matches!(pushed, Some(Pushed::Done(_)));
        if let Some(pushed) = pushed {
            self.head = tell_pushed(git, &recorder, pushed, (head.clone(), commits)).await?;
            set_base(git, self.head.as_deref());
        }
        // If the agent does not end by itself, it is killed with everything else.
        let (_kept, _ended) = tokio::join!(
            timeout(patience.keep, keeping.as_mut()),
            timeout(patience.exit_after_publishing, ending)
        );
        match keeping.take_output() {
            Some(kept) => Ok(kept?),
            None => Ok(artifacts.late(DIFF).await?),
        }
    }
}

/// Looks at the work once `HEAD` is on another branch, for which the repository's settings may name other programs.
async fn survey_moved(git: &Git, base: Option<&str>) -> Result<Survey, Halt> {
    git.learn_drivers().await?;
    Ok(survey(git, base).await?)
}

/// Pushes where no agent is kept to solve a conflict.
async fn push_alone(git: &Git, base: Option<&str>) -> Result<Pushed, Failure> {
    match push(git, base).await? {
        Tried::Pushed(pushed) => Ok(pushed),
        Tried::Conflict(found) => {
            conflict::put_back(git, &found).await?;
            Err(found.failure(git, ""))
        }
    }
}

async fn record(recorder: &Recorder, commits: &[Commit]) -> Result<(), Halt> {
    for commit in commits {
        let message = cut(&commit.message, RESULT_TEXT_BYTES).to_owned();
        let told = JournalBody::Commit { commit: commit.id.clone(), message, author: commit.author };
        recorder.write(told).await?;
    }
    Ok(())
}

/// Tells what has become of the branch; its last commit.
async fn tell_pushed(
    git: &Git,
    recorder: &Recorder,
    pushed: Pushed,
    (head, commits): (Option<String>, &[Commit]),
) -> Result<Option<String>, Halt> {
    match pushed {
        Pushed::Nothing => {
            let branch = &git.work.branch;
            let note = format!("branch \"{branch}\" has this change already; nothing was pushed");
            recorder.note(NoteLevel::Info, note).await?;
            Ok(git.resolve("HEAD").await?)
        }
        Pushed::Done(None) => Ok(head),
        Pushed::Done(Some(onto)) => tell_rebased(git, recorder, &onto, commits).await,
    }
}

/// Tells of the commits anew that a rebase made; the last one.
async fn tell_rebased(
    git: &Git,
    recorder: &Recorder,
    onto: &str,
    before: &[Commit],
) -> Result<Option<String>, Halt> {
    let mut after = survey(git, Some(onto)).await?;
    for commit in &mut after.commits {
        let same = before.iter().find(|old| old.message == commit.message);
        commit.author = same.map_or(MessageAuthor::Agent, |old| old.author);
    }
    record(recorder, &after.commits).await?;
    Ok(after.status.head)
}

async fn quiet(agent: Option<&mut Agent>) {
    if let Some(agent) = agent {
        agent.quiet().await;
    }
}

fn replaced(base: Option<&str>) -> Failure {
    let base = base.unwrap_or("nothing");
    let message =
        format!("the agent replaced the branch's history: its work does not come after commit {base}");
    Failure::new(FailureKind::PolicyDenied, message)
}
