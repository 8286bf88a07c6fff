//! The journal: each byte once, and nothing believed that is not about the run in this sandbox.

use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::SandboxId;
use caisson_domain::protocol::{Ending, Outcome, StopReason};
use caisson_domain::run::{Phase, RunStatus};
use caisson_store::{Finish, JournalAppend, JournalEffect, JournalEntry, SandboxState};
use serde_json::json;

use crate::fixture::{Fixture, Placed, assert_corrupt, completed, entry, note};

conformance! {
    a_batch_is_stored_once_and_a_repetition_is_behind,
    a_batch_that_skips_bytes_is_behind,
    of_equal_batches_at_once_one_is_stored,
    effects_change_the_run_together_with_their_events,
    the_first_output_counts_and_belongs_to_a_run_that_succeeded,
    a_run_that_failed_has_no_output,
    the_first_outcome_counts,
    an_outcome_counts_at_the_journals_end_once_and_in_a_sandbox_with_a_run,
    entries_of_another_run_or_attempt_are_skipped,
    entries_after_the_end_are_skipped_and_still_acknowledged,
    a_sandbox_without_a_run_starts_no_agent,
    a_run_that_goes_back_to_the_queue_leaves_a_sandbox_that_nothing_is_acknowledged_to,
    an_empty_batch_moves_the_offset,
    a_batch_that_ends_before_it_begins_is_refused,
    a_journal_without_a_sandbox_is_refused,
    entries_without_events_only_take_effect,
    the_agents_start_is_written_with_its_attempt,
    nothing_is_acknowledged_to_a_withdrawn_sandbox,
    a_sandbox_that_is_ending_may_say_its_last_words_but_start_no_agent,
    a_run_tells_as_many_events_as_its_bound_and_then_only_what_moves_it,
    a_run_tells_as_many_bytes_as_its_bound_and_then_only_what_moves_it,
    what_moves_a_run_has_a_bound_of_its_own,
    every_event_of_a_run_is_counted,
}

fn stored(acknowledged: u64, skipped: u64) -> JournalAppend {
    JournalAppend::Stored { acknowledged, skipped }
}

fn behind(acknowledged: u64) -> JournalAppend {
    JournalAppend::Behind { acknowledged }
}

async fn append(
    fixture: &Fixture,
    placed: &Placed,
    span: (u64, u64),
    effects: &[JournalEffect],
) -> JournalAppend {
    let entries = effects.iter().map(|effect| entry(&placed.run, effect.clone())).collect();
    fixture.store.append_journal(&placed.sandbox, span.0, span.1, entries).await.unwrap()
}

async fn notes(fixture: &Fixture, placed: &Placed) -> usize {
    fixture.kinds(&placed.run.id).await.iter().filter(|kind| **kind == EventKind::Note).count()
}

async fn a_batch_is_stored_once_and_a_repetition_is_behind(fixture: Fixture) {
    let placed = fixture.placed().await;
    assert_eq!(fixture.store.journal_offset(&placed.sandbox).await.unwrap(), 0);
    let two = [JournalEffect::None, JournalEffect::None];
    assert_eq!(append(&fixture, &placed, (0, 100), &two).await, stored(100, 0));
    assert_eq!(append(&fixture, &placed, (0, 100), &two).await, behind(100));
    assert_eq!(notes(&fixture, &placed).await, 2);
    assert_eq!(fixture.store.journal_offset(&placed.sandbox).await.unwrap(), 100);
    assert_eq!(append(&fixture, &placed, (100, 150), &two).await, stored(150, 0));
    assert_eq!(notes(&fixture, &placed).await, 4);
}

async fn a_batch_that_skips_bytes_is_behind(fixture: Fixture) {
    let placed = fixture.placed().await;
    append(&fixture, &placed, (0, 100), &[JournalEffect::None]).await;
    for offset in [0, 50, 99, 101, u64::MAX >> 1] {
        let finished = JournalEffect::Finished(completed("forged"));
        assert_eq!(
            append(&fixture, &placed, (offset, u64::MAX >> 1), &[finished]).await,
            behind(100),
            "{offset}"
        );
    }
    assert_eq!(notes(&fixture, &placed).await, 1);
    let progress = fixture.store.progress(&placed.run.id, placed.epoch).await.unwrap().unwrap();
    assert_eq!(progress.outcome, None);
}

async fn of_equal_batches_at_once_one_is_stored(fixture: Fixture) {
    let placed = fixture.placed().await;
    let batches = (0..8).map(|_| append(&fixture, &placed, (0, 10), &[JournalEffect::None]));
    let answers = futures_util::future::join_all(batches).await;
    assert_eq!(answers.iter().filter(|answer| **answer == stored(10, 0)).count(), 1);
    assert_eq!(answers.iter().filter(|answer| **answer == behind(10)).count(), 7);
    assert_eq!(notes(&fixture, &placed).await, 1);
}

async fn effects_change_the_run_together_with_their_events(fixture: Fixture) {
    let placed = fixture.placed().await;
    let effects = [
        JournalEffect::Phase(Phase::Prepare),
        JournalEffect::Prepared { base_commit: Some("c0ffee".to_owned()) },
        JournalEffect::Phase(Phase::Agent),
        JournalEffect::AgentStarted,
        JournalEffect::Phase(Phase::Publish),
        JournalEffect::Finished(completed("done")),
    ];
    assert_eq!(append(&fixture, &placed, (0, 60), &effects).await, stored(60, 0));
    let run = fixture.run(&placed.run.id).await;
    assert_eq!((run.base_commit.as_deref(), run.phase), (Some("c0ffee"), Some(Phase::Publish)));
    assert!(run.agent_started);
    assert_eq!(run.status, RunStatus::Running, "only the worker ends a run");
    let progress = fixture.store.progress(&run.id, placed.epoch).await.unwrap().unwrap();
    assert_eq!(progress.outcome, Some(completed("done")));
    assert_eq!(notes(&fixture, &placed).await, effects.len());
}

async fn the_first_output_counts_and_belongs_to_a_run_that_succeeded(fixture: Fixture) {
    ends_with_output(&fixture, RunStatus::Succeeded, true).await;
}

async fn a_run_that_failed_has_no_output(fixture: Fixture) {
    ends_with_output(&fixture, RunStatus::Failed, false).await;
}

async fn ends_with_output(fixture: &Fixture, status: RunStatus, kept: bool) {
    let placed = fixture.placed().await;
    let effects = [1, 2].map(|n| JournalEffect::Output(json!({ "n": n, "a\u{0}": "b" })));
    append(fixture, &placed, (0, 10), &effects).await;
    let first = json!({ "n": 1, "a\u{0}": "b" });
    let progress = fixture.store.progress(&placed.run.id, placed.epoch).await.unwrap().unwrap();
    assert_eq!(progress.output, Some(first.clone()));
    let finish = Finish { status, failure: None, result: None };
    assert!(fixture.store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap());
    let run = fixture.run(&placed.run.id).await;
    assert_eq!(run.output, kept.then_some(first));
    let told = fixture.data(&placed.run.id, EventKind::RunFinished).await;
    assert_eq!(told.get("output").is_some(), kept);
}

async fn the_first_outcome_counts(fixture: Fixture) {
    let placed = fixture.placed().await;
    let stopped = Outcome { ending: Ending::Stopped(StopReason::Cancel), ..completed("forged") };
    let both = [JournalEffect::Finished(completed("first")), JournalEffect::Finished(stopped.clone())];
    append(&fixture, &placed, (0, 10), &both).await;
    append(&fixture, &placed, (10, 20), &[JournalEffect::Finished(stopped)]).await;
    let progress = fixture.store.progress(&placed.run.id, placed.epoch).await.unwrap().unwrap();
    assert_eq!(progress.outcome, Some(completed("first")));
}

async fn an_outcome_counts_at_the_journals_end_once_and_in_a_sandbox_with_a_run(fixture: Fixture) {
    let placed = fixture.placed().await;
    let awaited = async |offset| fixture.store.awaits_outcome(&placed.sandbox, offset).await.unwrap();
    let ours = Some((placed.run.id.clone(), placed.run.attempt));
    assert_eq!([awaited(0).await, awaited(1).await, awaited(u64::MAX).await], [ours.clone(), None, None]);
    append(&fixture, &placed, (0, 10), &[JournalEffect::None]).await;
    assert_eq!([awaited(0).await, awaited(10).await], [None, ours.clone()]);
    fixture.execute("update run set sandbox_id = null").await;
    assert_eq!(awaited(10).await, None, "without a run");
    fixture.execute("update run set sandbox_id = (select id from sandbox)").await;
    fixture.execute("update sandbox set state = 'destroyed'").await;
    assert_eq!(awaited(10).await, None, "it is gone");
    fixture.execute("update sandbox set state = 'stopping'").await;
    assert_eq!(awaited(10).await, ours);
    append(&fixture, &placed, (10, 20), &[JournalEffect::Finished(completed("first"))]).await;
    assert_eq!(awaited(20).await, None, "it has one");
    let other = fixture.store.awaits_outcome(&SandboxId::new(1, [7; 10]), 0).await.unwrap();
    assert_eq!(other, None, "no such sandbox");
}

async fn entries_of_another_run_or_attempt_are_skipped(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.queued().await;
    let other = fixture.claim().await;
    let other = fixture.place(other, 2).await;
    let forged = [
        entry(&other.run, JournalEffect::Finished(completed("forged"))),
        JournalEntry { attempt: 2, ..entry(&placed.run, JournalEffect::AgentStarted) },
        JournalEntry { attempt: 0, ..entry(&placed.run, JournalEffect::AgentStarted) },
        entry(&placed.run, JournalEffect::None),
    ];
    let appended = fixture.store.append_journal(&placed.sandbox, 0, 40, forged.to_vec()).await.unwrap();
    assert_eq!(appended, stored(40, 3));
    assert_eq!((notes(&fixture, &placed).await, notes(&fixture, &other).await), (1, 0));
    assert!(!fixture.run(&placed.run.id).await.agent_started);
    let progress = fixture.store.progress(&other.run.id, other.epoch).await.unwrap().unwrap();
    assert_eq!(progress.outcome, None);
}

async fn entries_after_the_end_are_skipped_and_still_acknowledged(fixture: Fixture) {
    let placed = fixture.placed().await;
    let finish = Finish { status: RunStatus::Failed, failure: None, result: None };
    fixture.store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap();
    let ended = fixture.run(&placed.run.id).await;
    let late = [JournalEffect::None, JournalEffect::Finished(completed("late"))];
    assert_eq!(append(&fixture, &placed, (0, 20), &late).await, stored(20, 2));
    assert_eq!(fixture.run(&placed.run.id).await, ended);
    assert_eq!(notes(&fixture, &placed).await, 0);
}

async fn a_sandbox_without_a_run_starts_no_agent(fixture: Fixture) {
    let placed = fixture.placed().await;
    let starts = [JournalEffect::None, JournalEffect::AgentStarted];
    let withdrawn = |acknowledged| JournalAppend::Withdrawn { acknowledged };
    for state in ["creating", "running"] {
        fixture.execute("update run set sandbox_id = null").await;
        fixture.store.set_sandbox_state(&placed.sandbox, state.parse().unwrap()).await.unwrap();
        assert_eq!(append(&fixture, &placed, (0, 10), &starts).await, withdrawn(0), "{state}");
    }
    assert_eq!(
        append(&fixture, &placed, (0, 10), &[JournalEffect::None]).await,
        stored(10, 1),
        "it may talk"
    );
    assert!(!fixture.run(&placed.run.id).await.agent_started);
}

async fn a_run_that_goes_back_to_the_queue_leaves_a_sandbox_that_nothing_is_acknowledged_to(
    fixture: Fixture,
) {
    let placed = fixture.placed().await;
    assert!(fixture.store.requeue(&placed.run.id, placed.epoch, "engine away", 0).await.unwrap());
    let row = fixture.store.sandbox(&placed.sandbox).await.unwrap().unwrap();
    assert_eq!(row.state, SandboxState::Destroyed);
    let withdrawn = JournalAppend::Withdrawn { acknowledged: 0 };
    assert_eq!(append(&fixture, &placed, (0, 10), &[JournalEffect::AgentStarted]).await, withdrawn);
    let again = fixture.claim().await;
    assert!(!again.run.agent_started, "the old sandbox cannot start the new attempt's agent");
    assert_eq!(append(&fixture, &placed, (0, 10), &[JournalEffect::AgentStarted]).await, withdrawn);
}

async fn an_empty_batch_moves_the_offset(fixture: Fixture) {
    let placed = fixture.placed().await;
    assert_eq!(append(&fixture, &placed, (0, 7), &[]).await, stored(7, 0));
    assert_eq!(append(&fixture, &placed, (7, 7), &[]).await, stored(7, 0));
    assert_eq!(fixture.store.journal_offset(&placed.sandbox).await.unwrap(), 7);
}

async fn a_batch_that_ends_before_it_begins_is_refused(fixture: Fixture) {
    let placed = fixture.placed().await;
    append(&fixture, &placed, (0, 7), &[]).await;
    for (offset, end) in [(7, 6), (7, u64::MAX)] {
        let appended = fixture.store.append_journal(&placed.sandbox, offset, end, Vec::new()).await;
        assert_corrupt(appended, placed.sandbox.as_str());
    }
    assert_eq!(fixture.store.journal_offset(&placed.sandbox).await.unwrap(), 7);
}

async fn a_journal_without_a_sandbox_is_refused(fixture: Fixture) {
    let unknown = SandboxId::new(1, [9; 10]);
    assert_corrupt(fixture.store.journal_offset(&unknown).await, unknown.as_str());
    let appended = fixture.store.append_journal(&unknown, 0, 1, Vec::new()).await;
    assert_corrupt(appended, unknown.as_str());
}

async fn entries_without_events_only_take_effect(fixture: Fixture) {
    let placed = fixture.placed().await;
    let silent = JournalEntry { event: None, ..entry(&placed.run, JournalEffect::Phase(Phase::Publish)) };
    let loud = JournalEntry { event: Some(note("x")), ..entry(&placed.run, JournalEffect::None) };
    fixture.store.append_journal(&placed.sandbox, 0, 9, vec![silent, loud]).await.unwrap();
    assert_eq!(fixture.run(&placed.run.id).await.phase, Some(Phase::Publish));
    assert_eq!(notes(&fixture, &placed).await, 1);
}

async fn the_agents_start_is_written_with_its_attempt(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.clock.advance(5);
    append(&fixture, &placed, (0, 5), &[JournalEffect::AgentStarted]).await;
    let first = fixture.value::<Option<i64>>("select agent_started_at_ms from attempt").await;
    assert_eq!(first, Some(crate::fixture::START_MS + 5));
    fixture.clock.advance(5);
    append(&fixture, &placed, (5, 9), &[JournalEffect::AgentStarted]).await;
    assert_eq!(fixture.value::<Option<i64>>("select agent_started_at_ms from attempt").await, first);
}

async fn nothing_is_acknowledged_to_a_withdrawn_sandbox(fixture: Fixture) {
    let placed = fixture.placed().await;
    append(&fixture, &placed, (0, 10), &[JournalEffect::None]).await;
    fixture.store.set_sandbox_state(&placed.sandbox, SandboxState::Destroyed).await.unwrap();
    let withdrawn = JournalAppend::Withdrawn { acknowledged: 10 };
    assert_eq!(append(&fixture, &placed, (10, 20), &[JournalEffect::AgentStarted]).await, withdrawn);
    assert!(!fixture.run(&placed.run.id).await.agent_started, "though the run is not given back yet");
    assert!(fixture.store.requeue(&placed.run.id, placed.epoch, "engine away", 0).await.unwrap());
    assert_eq!(append(&fixture, &placed, (10, 20), &[JournalEffect::AgentStarted]).await, withdrawn);
    assert_eq!(fixture.store.journal_offset(&placed.sandbox).await.unwrap(), 10);
    assert_eq!(notes(&fixture, &placed).await, 1);
}

async fn a_sandbox_that_is_ending_may_say_its_last_words_but_start_no_agent(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.store.set_sandbox_state(&placed.sandbox, SandboxState::Stopping).await.unwrap();
    assert_eq!(append(&fixture, &placed, (0, 10), &[JournalEffect::None]).await, stored(10, 0));
    let finish = Finish { status: RunStatus::Failed, failure: None, result: None };
    fixture.store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap();
    let start = [JournalEffect::None, JournalEffect::AgentStarted];
    let withdrawn = JournalAppend::Withdrawn { acknowledged: 10 };
    assert_eq!(append(&fixture, &placed, (10, 20), &start).await, withdrawn);
    let last = [JournalEffect::Finished(completed("late"))];
    assert_eq!(append(&fixture, &placed, (10, 20), &last).await, stored(20, 1));
}

/// Journals one line of the agent with `bytes` bytes of details.
async fn say(fixture: &Fixture, placed: &Placed, bytes: usize) {
    let offset = fixture.store.journal_offset(&placed.sandbox).await.unwrap();
    let line = NewEvent::new(EventKind::AgentLine, &json!("x".repeat(bytes - 2)));
    assert_eq!(line.data.get().len(), bytes);
    let entry = JournalEntry { event: Some(line), ..entry(&placed.run, JournalEffect::None) };
    let appended = fixture.store.append_journal(&placed.sandbox, offset, offset + 1, vec![entry]).await;
    assert_eq!(appended.unwrap(), stored(offset + 1, 0), "acknowledged in any case");
}

async fn count(fixture: &Fixture, placed: &Placed, kind: EventKind) -> usize {
    fixture.kinds(&placed.run.id).await.iter().filter(|found| **found == kind).count()
}

/// Beyond the bound: lines are dropped, one note tells so, and what moves the run is kept.
async fn assert_full(fixture: &Fixture, placed: &Placed) {
    let lines = count(fixture, placed, EventKind::AgentLine).await;
    for _ in 0..3 {
        say(fixture, placed, 2).await;
    }
    assert_eq!(count(fixture, placed, EventKind::AgentLine).await, lines);
    assert_eq!(notes(fixture, placed).await, 1, "one event tells of it");
    let told = fixture.data(&placed.run.id, EventKind::Note).await;
    let message = told["message"].as_str().unwrap().to_owned();
    assert!(message.contains("200000 events or 256 MiB"), "{message}");
    fixture.journal(placed, JournalEffect::AgentStarted).await;
    fixture.journal(placed, JournalEffect::Finished(completed("done"))).await;
    assert_eq!(notes(fixture, placed).await, 3, "and what moves the run is told");
    let progress = fixture.store.progress(&placed.run.id, placed.epoch).await.unwrap().unwrap();
    assert_eq!((progress.agent_started, progress.outcome), (true, Some(completed("done"))));
}

async fn a_run_tells_as_many_events_as_its_bound_and_then_only_what_moves_it(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.execute("update run set event_items = 200000 - 2").await;
    for expected in [1, 2] {
        say(&fixture, &placed, 2).await;
        assert_eq!(count(&fixture, &placed, EventKind::AgentLine).await, expected);
    }
    assert_eq!(notes(&fixture, &placed).await, 0);
    assert_full(&fixture, &placed).await;
}

async fn a_run_tells_as_many_bytes_as_its_bound_and_then_only_what_moves_it(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.execute("update run set event_bytes = 256 * 1024 * 1024 - 1000").await;
    say(&fixture, &placed, 1000).await;
    assert_eq!(
        (count(&fixture, &placed, EventKind::AgentLine).await, notes(&fixture, &placed).await),
        (1, 0)
    );
    assert_full(&fixture, &placed).await;
}

async fn what_moves_a_run_has_a_bound_of_its_own(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.execute("update run set event_items = 200000 + 1000 - 1, events_full = 1").await;
    fixture.journal(&placed, JournalEffect::Phase(Phase::Agent)).await;
    assert_eq!(notes(&fixture, &placed).await, 1);
    fixture.journal(&placed, JournalEffect::Phase(Phase::Publish)).await;
    assert_eq!(notes(&fixture, &placed).await, 1);
    assert_eq!(
        fixture.run(&placed.run.id).await.phase,
        Some(Phase::Publish),
        "it moves the run all the same"
    );
    fixture.execute("update run set event_items = 1, event_bytes = (256 + 8) * 1024 * 1024").await;
    fixture.journal(&placed, JournalEffect::Phase(Phase::Agent)).await;
    assert_eq!(notes(&fixture, &placed).await, 1);
}

async fn every_event_of_a_run_is_counted(fixture: Fixture) {
    let placed = fixture.placed().await;
    say(&fixture, &placed, 100).await;
    fixture.journal(&placed, JournalEffect::AgentStarted).await;
    let finish = Finish { status: RunStatus::Failed, failure: None, result: None };
    fixture.store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap();
    let off = (
        "select count(*) from run where event_items <> (select count(*) from event where run_id = run.id) \
         or event_bytes <> (select sum(length(cast(data as blob))) from event where run_id = run.id)",
        "select count(*) from run where event_items <> (select count(*) from event where run_id = run.id) \
         or event_bytes <> (select sum(octet_length(data)) from event where run_id = run.id)",
    );
    assert_eq!(fixture.value::<i64>(off).await, 0);
    assert_eq!(fixture.value::<i64>("select event_items from run").await, 5);
}
