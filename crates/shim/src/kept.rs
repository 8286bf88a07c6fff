//! An agent that waits for the session's next run: nothing but it lives, and it is held where it is.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use caisson_domain::protocol::{JournalBody, NoteLevel, RunWork};
use caisson_domain::repository_file::RepositoryFile;
use caisson_domain::trust::Steering;
use tokio::time::{Instant, sleep};

use crate::agent::Agent;
use crate::checkout::{self, Checkout};
use crate::diagnostics::say;
use crate::failure::Halt;
use crate::revisions;
use crate::run::Live;
use crate::steering::Given;
use crate::transcript;

/// How long the agent may take to write down its last answer, in milliseconds: Claude Code 2.1.330 does so within 100 ms.
const WRITTEN_MS: u64 = 2_000;
/// How long the agent may take to stop once it was told to, in milliseconds: until then it is at work for itself or in the kernel.
const HELD_MS: u64 = 2_000;
/// Time between two looks whether it has done one of these, in milliseconds.
const LOOK_MS: u64 = 10;
/// Most notes on what steers the agent.
const STEERING_NOTES: usize = 20;

/// An agent that waits, with what its run had found out.
pub(crate) struct Kept {
    agent: Agent,
    work: RunWork,
    checkout: Option<Checkout>,
    repository: RepositoryFile,
    told: Option<Steering>,
    given: Given,
}

/// Where it waits; there is one at most.
#[derive(Default)]
pub(crate) struct Place(Mutex<Option<Kept>>);

impl Place {
    fn put(&self, kept: Kept) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
    }

    fn take(&self) -> Option<Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Whether an agent that was started for `last` could do `next`: what it was told at its start is the same.
fn fits(last: &RunWork, next: &RunWork) -> bool {
    let mut last = last.clone();
    last.run.clone_from(&next.run);
    (last.epoch, last.attempt, last.timeout_ms) = (next.epoch, next.attempt, next.timeout_ms);
    last.prompt.clone_from(&next.prompt);
    last.attachments.clone_from(&next.attachments);
    // Where a conversation or a branch is to be found that both of them have here.
    last.agent.resume = next.agent.resume;
    last.agent.archive.clone_from(&next.agent.archive);
    // The sandbox has its image already.
    last.may_choose_image = next.may_choose_image;
    if let (Some(last), Some(next)) = (&mut last.git, &next.git) {
        last.go_on = next.go_on;
        last.start.clone_from(&next.start);
        last.start_branch.clone_from(&next.start_branch);
        last.is_first = next.is_first;
        last.since.clone_from(&next.since);
        last.commit_subject.clone_from(&next.commit_subject);
    }
    last == *next
}

impl Live<'_> {
    /// Whether the agent may wait for another run once this one is done. One with MCP servers may not: they are processes, or
    /// have connections, that would have to be ended under its hands.
    pub(crate) fn may_keep(&self) -> bool {
        let agent = &self.work.agent;
        self.work.keep
            && agent.mcp_servers.is_empty()
            && agent.mcp_http.is_empty()
            && !self.steered.has_servers()
    }

    /// Has the agent wait for another run if it may and nothing else lives; whether it does. Without that it is as it was.
    pub(crate) async fn keep(&mut self) -> bool {
        if !self.may_keep() {
            return false;
        }
        let Some(mut agent) = self.agent.take() else { return false };
        if let Err(why) = self.settle_down(&mut agent).await {
            say(format_args!("the agent does not wait for another run: {why}"));
            agent.go_on();
            self.agent = Some(agent);
            return false;
        }
        agent.rest();
        self.shim.kept.put(Kept {
            agent,
            work: self.work.clone(),
            checkout: self.checkout.clone(),
            repository: self.repository.clone(),
            told: self.told.clone(),
            given: self.given.clone(),
        });
        true
    }

    async fn settle_down(&self, agent: &mut Agent) -> Result<(), &'static str> {
        agent.quiet().await;
        if !agent.is_ready().await {
            return Err("it has ended");
        }
        if agent.last_answer.is_empty() {
            return Err("it has said nothing");
        }
        self.shim.reaper.end_strays().await;
        let home = &self.shim.places.home;
        let until = Instant::now() + Duration::from_millis(WRITTEN_MS);
        while !transcript::has(home, &self.work.agent.conversation, &agent.last_answer) {
            if Instant::now() >= until {
                return Err("its record of the conversation lacks its last answer");
            }
            sleep(Duration::from_millis(LOOK_MS)).await;
        }
        agent.hold();
        // The signal is only sent: the next run may come before the agent stays.
        let until = Instant::now() + Duration::from_millis(HELD_MS);
        while !agent.is_held() {
            if Instant::now() >= until || !agent.child.runs() {
                return Err("it does not stop");
            }
            sleep(Duration::from_millis(LOOK_MS)).await;
        }
        // From here on it starts none.
        self.shim.reaper.end_strays().await;
        if self.shim.reaper.has_strays() {
            return Err("something else lives");
        }
        if !self.given.is_there_still(home) {
            return Err("it has changed what steers it");
        }
        Ok(())
    }

    /// Goes on with the agent that waits, if there is one that could have been started for this run; whether it does. One that could not is ended.
    ///
    /// # Errors
    /// [`Halt`] if the workspace cannot be looked at.
    pub(crate) async fn take_up(&mut self) -> Result<bool, Halt> {
        let Some(mut kept) = self.shim.kept.take() else { return Ok(false) };
        // It may have ended in this very moment.
        self.shim.reaper.look();
        // Nothing could have let the agent go on, or have been made, but by what should not live.
        let alone = kept.agent.is_held() && !self.shim.reaper.has_strays();
        if !alone || !fits(&kept.work, self.work) || !kept.agent.is_ready().await {
            say("the agent that waited cannot do this run; another one is started");
            drop(kept);
            self.shim.reaper.end_all().await;
            return Ok(false);
        }
        if let (Some(git), Some(checkout)) = (&self.git, &kept.checkout) {
            let git = &git.for_used(self.shim);
            let checkout = checkout::again(git, checkout, self.work.workspace).await?;
            revisions::keep(git, checkout.anchor.as_deref()).await?;
            self.checkout = Some(checkout);
            let alone = kept.agent.is_held() && !self.shim.reaper.has_strays();
            if !alone || !kept.given.is_there_still(&self.shim.places.home) {
                say(
                    "git was brought to start or to change something; the agent that waited is ended, and another one started",
                );
                drop(kept);
                self.shim.reaper.end_all().await;
                return Ok(false);
            }
        }
        kept.agent.serve(self.shim, self.work, (&self.recorder, &self.approvals));
        kept.agent.go_on();
        self.agent = Some(kept.agent);
        (self.repository, self.steered.told, self.given) = (kept.repository, kept.told, kept.given);
        self.taken_up = true;
        Ok(true)
    }

    /// Starts another agent, as in a sandbox that nobody waited in, if the one that was taken up has ended since: it has not had its
    /// prompt yet.
    ///
    /// # Errors
    /// As preparing a run.
    pub(crate) async fn revive(&mut self) -> Result<(), Halt> {
        if !self.taken_up {
            return Ok(());
        }
        self.shim.reaper.look();
        if let Some(agent) = self.agent.as_mut()
            && agent.is_ready().await
        {
            return Ok(());
        }
        say("the agent that waited has ended before its prompt; another one is started");
        self.taken_up = false;
        self.agent = None;
        self.shim.reaper.end_all().await;
        self.prepare_anew().await?;
        self.tell_steering().await
    }

    /// Tells what steers the agent, unless it is what was told before.
    pub(crate) async fn tell_steering(&mut self) -> Result<(), Halt> {
        let told = self.steered.told.take();
        if told != self.told {
            self.told.clone_from(&told);
            if let Some(told) = told {
                self.recorder.write(JournalBody::Steered(told)).await?;
            }
        }
        let notes = std::mem::take(&mut self.steered.notes);
        for note in notes.into_iter().take(STEERING_NOTES) {
            self.recorder.note(NoteLevel::Warn, note).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::tests::work;
    use caisson_domain::attachment::{Attachment, AttachmentKind};
    use caisson_domain::id::{Epoch, RunId};

    fn attachment() -> Attachment {
        let (name, sha256) = ("a".to_owned(), "0".repeat(64));
        Attachment { number: 0, name, kind: AttachmentKind::File, media_type: None, size_bytes: 1, sha256 }
    }

    #[test]
    fn only_what_concerns_one_run_may_differ() {
        let (one, two) = (RunId::new(1, [0; 10]), RunId::new(2, [0; 10]));
        let last = work(&one, 1);
        let mut next = work(&two, 3);
        (next.epoch, next.timeout_ms, next.prompt) = (Epoch(9), 5, "another".to_owned());
        next.agent.resume = true;
        next.attachments.push(attachment());
        next.may_choose_image = !last.may_choose_image;
        assert!(fits(&last, &next));
        for change in [
            (|work| work.agent.model = Some("another".to_owned())) as fn(&mut RunWork),
            |work| work.agent.max_turns = Some(1),
            |work| work.agent.conversation.push('x'),
            |work| work.agent.system_prompt = Some("Be quick.".to_owned()),
            |work| drop(work.agent.environment.insert("A".to_owned(), "b".to_owned())),
            |work| work.forbidden_paths.push("*.key".to_owned()),
            |work| work.trust.settings = true,
            |work| work.output_schema = Some(serde_json::json!({})),
        ] {
            let mut other = next.clone();
            change(&mut other);
            assert!(!fits(&last, &other));
        }
    }
}
