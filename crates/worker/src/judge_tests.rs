use caisson_domain::check_result::CheckOutcome;
use caisson_domain::repository_file::CheckName;
use caisson_domain::run::Resources;
use caisson_domain::workflow::Workflow;

use super::*;
use crate::disk::Amount;

const NOW: i64 = 1_000_000;
const DEADLINE: i64 = NOW + 600_000;
const HEAD: &str = "1111111111111111111111111111111111111111";
const OTHER: &str = "2222222222222222222222222222222222222222";

pub(crate) fn spec() -> RunSpec {
    let workflow = "---\nname: fix\ndescription: d\n---\nFix it.\n";
    RunSpec {
        workflow: Workflow::parse(workflow).unwrap(),
        prompt: "p".to_owned(),
        repository: None,
        base: None,
        anchor: None,
        branch: None,
        model: None,
        max_turns: None,
        image: None,
        timeout_s: 600,
        budget_micro_usd: None,
        budget_soft_percent: None,
        resources: Resources::default(),
        environment: std::collections::BTreeMap::new(),
        priority: 0,
        start_at_ms: None,
        parameters: caisson_domain::parameters::Values::new(),
        output_schema: None,
        attachments: Vec::new(),
        workflow_version: None,
    }
}

fn progress() -> Progress {
    Progress {
        cancel_requested: false,
        stop_requested_at_ms: None,
        agent_started: true,
        phase: None,
        outcome: None,
        output: None,
        checks: Vec::new(),
        pushed_commit: None,
        push_pending: false,
        lease_expires_at_ms: NOW,
        provider_status: None,
        model_failure: None,
        approval_expires_at_ms: None,
    }
}

/// Judges with the time limit far away, in the first attempt.
fn facts<'a>(spec: &'a RunSpec, progress: &'a Progress) -> Facts<'a> {
    let requeue = (Duration::from_secs(1), Duration::from_secs(30));
    Facts {
        spec,
        attempt: 1,
        progress,
        now_ms: NOW,
        deadline_ms: DEADLINE,
        requeue,
        disk: Disk::default(),
        pids_refused: 0,
    }
}

fn outcome(ending: Ending) -> Outcome {
    Outcome { ending, result: Some("done".to_owned()), head: None, pushed: false, kept: false }
}

fn pushed(head: Option<&str>) -> Outcome {
    Outcome { head: head.map(str::to_owned), pushed: true, ..outcome(Ending::Completed) }
}

fn exit(code: Option<i64>, oom_killed: bool) -> End {
    End::Exited(Exit { code, oom_killed, finished_at_ms: None })
}

fn never_ran(class: FaultClass) -> End {
    End::NeverRan(Fault { class, message: "no room".to_owned() })
}

fn kind(finish: &Finish) -> (RunStatus, Option<FailureKind>) {
    (finish.status, finish.failure.as_ref().map(|failure| failure.kind))
}

type Change<'a> = &'a dyn Fn(&mut Progress);
type Case<'a> = (&'a End, bool, Option<i64>, (RunStatus, Option<FailureKind>), &'a str);

const SUCCEEDED: (RunStatus, Option<FailureKind>) = (RunStatus::Succeeded, None);
const CANCELLED: (RunStatus, Option<FailureKind>) = (RunStatus::Cancelled, None);

fn failed_as(kind: FailureKind) -> (RunStatus, Option<FailureKind>) {
    (RunStatus::Failed, Some(kind))
}

#[test]
fn a_run_with_a_schema_succeeds_only_with_an_output_that_fits_whatever_the_shim_says() {
    let schema = serde_json::json!({"type": "object", "required": ["verdict"]});
    let judged = |schema: &serde_json::Value, output: Option<serde_json::Value>| {
        let spec = RunSpec { output_schema: Some(schema.clone()), ..spec() };
        let progress = Progress { output, ..progress() };
        by_outcome(&facts(&spec, &progress), &outcome(Ending::Completed))
    };
    assert_eq!(kind(&judged(&schema, Some(serde_json::json!({"verdict": 1})))), SUCCEEDED);
    for (output, told) in [(None, "told none"), (Some(serde_json::json!({})), "output.verdict is missing")] {
        let finish = judged(&schema, output);
        assert_eq!(kind(&finish), failed_as(FailureKind::AgentError));
        assert!(finish.failure.unwrap().evidence.unwrap().contains(told));
    }
    let odd = judged(&serde_json::json!({"type": "array"}), Some(serde_json::json!([])));
    assert_eq!(kind(&odd), failed_as(FailureKind::AgentError));
}

#[test]
fn a_check_that_must_pass_fails_the_run_and_another_does_not() {
    let check = |name: CheckName, outcome: CheckOutcome| CheckResult {
        name,
        command: format!("make {name}"),
        outcome,
        exit_code: None,
        output: (outcome != CheckOutcome::Passed).then(|| "red".to_owned()),
        turns: 1,
    };
    let judged = |must: bool, checks: Vec<CheckResult>, pushed: Option<&str>| {
        let mut spec = spec();
        spec.workflow.caisson.checks_must_pass = must;
        let progress = Progress { checks, pushed_commit: pushed.map(str::to_owned), ..progress() };
        by_outcome(&facts(&spec, &progress), &outcome(Ending::Completed))
    };
    let green = check(CheckName::Lint, CheckOutcome::Passed);
    assert_eq!(kind(&judged(true, vec![green.clone()], None)), SUCCEEDED);
    assert_eq!(kind(&judged(true, Vec::new(), None)), SUCCEEDED, "none was run");
    for outcome in [CheckOutcome::Failed, CheckOutcome::TimedOut, CheckOutcome::NotStarted] {
        let checks = vec![green.clone(), check(CheckName::Test, outcome)];
        assert_eq!(kind(&judged(false, checks.clone(), None)), SUCCEEDED, "whoever reads the change decides");
        let finish = judged(true, checks.clone(), Some(HEAD));
        assert_eq!(kind(&finish), failed_as(FailureKind::AgentError));
        let failure = finish.failure.unwrap();
        assert!(failure.message.contains("the repository's test does not pass"), "{}", failure.message);
        assert!(failure.message.ends_with("the work is on its branch all the same"), "{}", failure.message);
        assert_eq!(failure.evidence.unwrap(), "make test\nred");
        assert!(!judged(true, checks, None).failure.unwrap().message.contains("branch"));
    }
}

#[test]
fn a_claimed_push_must_be_the_commit_that_the_gateway_carried() {
    let cases = [
        (pushed(Some(HEAD)), Some(HEAD), SUCCEEDED),
        (pushed(Some(HEAD)), None, failed_as(FailureKind::PushRejected)),
        (pushed(Some(HEAD)), Some(OTHER), failed_as(FailureKind::Internal)),
        (pushed(None), None, failed_as(FailureKind::PushRejected)),
        (pushed(None), Some(HEAD), failed_as(FailureKind::Internal)),
        (outcome(Ending::Completed), None, SUCCEEDED),
        (outcome(Ending::Completed), Some(HEAD), SUCCEEDED),
    ];
    for (outcome, carried, wanted) in cases {
        let progress = Progress { pushed_commit: carried.map(str::to_owned), ..progress() };
        let finish = by_outcome(&facts(&spec(), &progress), &outcome);
        assert_eq!(kind(&finish), wanted, "{outcome:?} {carried:?}");
        assert_eq!(finish.result.as_deref(), Some("done"));
        let evidence = finish.failure.and_then(|failure| failure.evidence).unwrap_or_default();
        assert!(
            carried.is_none_or(|carried| wanted == SUCCEEDED || evidence.contains(carried)),
            "{evidence}"
        );
    }
}

#[test]
fn a_reported_stop_is_believed_only_if_there_was_one() {
    let cancel = |progress: &mut Progress| {
        progress.cancel_requested = true;
        progress.stop_requested_at_ms = Some(NOW - 1);
    };
    let timeout = |progress: &mut Progress| progress.stop_requested_at_ms = Some(NOW - 1);
    let never = |_: &mut Progress| {};
    let cases: [(StopReason, Change<'_>, i64, _); 8] = [
        (StopReason::Cancel, &cancel, NOW + 600_000, CANCELLED),
        (StopReason::Cancel, &never, NOW + 600_000, failed_as(FailureKind::AgentError)),
        (StopReason::Cancel, &timeout, NOW, failed_as(FailureKind::AgentError)),
        (StopReason::Timeout, &timeout, NOW + 600_000, failed_as(FailureKind::Timeout)),
        (StopReason::Timeout, &never, NOW + TIMEOUT_SLACK_MS, failed_as(FailureKind::Timeout)),
        (StopReason::Timeout, &never, NOW + TIMEOUT_SLACK_MS + 1, failed_as(FailureKind::AgentError)),
        (StopReason::Timeout, &cancel, NOW + 600_000, failed_as(FailureKind::AgentError)),
        (StopReason::Timeout, &cancel, NOW, failed_as(FailureKind::Timeout)),
    ];
    for (index, (reason, change, deadline_ms, wanted)) in cases.into_iter().enumerate() {
        let (spec, mut progress) = (spec(), progress());
        change(&mut progress);
        let facts = Facts { deadline_ms, ..facts(&spec, &progress) };
        assert_eq!(kind(&by_outcome(&facts, &outcome(Ending::Stopped(reason)))), wanted, "case {index}");
    }
}

#[test]
fn work_that_was_completed_counts_although_somebody_asked_to_stop() {
    let progress = Progress { cancel_requested: true, stop_requested_at_ms: Some(NOW), ..progress() };
    assert_eq!(kind(&by_outcome(&facts(&spec(), &progress), &outcome(Ending::Completed))), SUCCEEDED);
}

#[test]
fn a_reported_failure_is_kept_and_a_providers_is_shown_beside_what_the_gateway_saw() {
    for failure_kind in FailureKind::ALL {
        let failure = Failure::new(*failure_kind, "why").with_evidence("what");
        for (status, words) in [(None, "no model call"), (Some(0), "no reply"), (Some(529), "HTTP 529")] {
            let progress = Progress { provider_status: status, ..progress() };
            let finish = by_outcome(&facts(&spec(), &progress), &outcome(Ending::Failed(failure.clone())));
            assert_eq!(kind(&finish), failed_as(*failure_kind));
            let evidence = finish.failure.unwrap().evidence.unwrap();
            assert_eq!(
                evidence.contains(words),
                failure_kind.as_str().starts_with("provider_"),
                "{evidence}"
            );
            assert!(evidence.ends_with("what"));
        }
    }
    let bare = outcome(Ending::Failed(Failure::new(FailureKind::ProviderDown, "why")));
    let finish = by_outcome(&facts(&spec(), &progress()), &bare);
    assert_eq!(finish.failure.unwrap().evidence.as_deref(), Some("no model call was settled"));
}

#[test]
fn every_text_of_a_sandbox_is_cut_at_its_bound() {
    let long = "x".repeat(RESULT_TEXT_BYTES + 1);
    let mut failure = Failure::new(FailureKind::AgentError, long.clone());
    failure.evidence = Some(long.clone());
    let told = Outcome { result: Some(long.clone()), ..outcome(Ending::Failed(failure)) };
    let finish = by_outcome(&facts(&spec(), &progress()), &told);
    let failure = finish.failure.unwrap();
    assert_eq!(finish.result.unwrap().len(), RESULT_TEXT_BYTES);
    assert_eq!(failure.message.len(), RESULT_TEXT_BYTES);
    assert_eq!(failure.evidence.unwrap().len(), RESULT_TEXT_BYTES);
    let finish = by_outcome(&facts(&spec(), &progress()), &pushed(Some(&long)));
    assert!(finish.failure.unwrap().evidence.unwrap().len() < 200);
}

#[test]
fn an_end_without_an_outcome_is_judged_by_what_was_asked_and_seen() {
    let oom = exit(Some(137), true);
    let killed = exit(Some(137), false);
    let broke = exit(Some(1), true);
    let unknown = exit(None, false);
    let cases: [Case<'_>; 13] = [
        (&killed, true, Some(NOW), CANCELLED, ""),
        (&oom, true, Some(NOW), CANCELLED, ""),
        (&End::Gone, true, Some(NOW), CANCELLED, ""),
        (&never_ran(FaultClass::Retry), true, Some(NOW), CANCELLED, ""),
        (&killed, false, Some(DEADLINE), failed_as(FailureKind::Timeout), ""),
        (&never_ran(FaultClass::Passing), false, Some(DEADLINE), failed_as(FailureKind::Timeout), ""),
        (&killed, false, Some(NOW), failed_as(FailureKind::DiskFull), ""),
        (&oom, false, None, failed_as(FailureKind::Oom), ""),
        (&killed, false, None, failed_as(FailureKind::SandboxLost), "exit code 137; no model call"),
        (
            &broke,
            false,
            None,
            failed_as(FailureKind::SandboxLost),
            "exit code 1, a process was killed for want of memory",
        ),
        (&unknown, false, None, failed_as(FailureKind::SandboxLost), "unknown exit code"),
        (&End::Gone, false, None, failed_as(FailureKind::SandboxLost), "does not know the sandbox"),
        (&never_ran(FaultClass::Retry), false, None, failed_as(FailureKind::SandboxLost), "no room"),
    ];
    for (end, cancel_requested, stop_requested_at_ms, wanted, evidence) in cases {
        let progress = Progress { cancel_requested, stop_requested_at_ms, ..progress() };
        let Verdict::Finish(finish) = by_end(&facts(&spec(), &progress), end) else { panic!("{end:?}") };
        assert_eq!(kind(&finish), wanted, "{end:?}");
        let found = finish.failure.and_then(|failure| failure.evidence).unwrap_or_default();
        assert!(found.contains(evidence), "{found}");
    }
}

#[test]
fn want_of_memory_ends_a_run_even_before_its_agent_started() {
    let progress = Progress { agent_started: false, ..progress() };
    let Verdict::Finish(finish) = by_end(&facts(&spec(), &progress), &exit(Some(137), true)) else {
        panic!()
    };
    assert_eq!(kind(&finish), failed_as(FailureKind::Oom));
    assert!(finish.failure.unwrap().message.contains("2048 MiB"));
}

/// What becomes of a run whose agent has not started.
fn not_started_yet(end: &End, attempt: i64, left_ms: i64) -> Verdict {
    let (spec, progress) = (spec(), Progress { agent_started: false, ..progress() });
    by_end(&Facts { attempt, deadline_ms: NOW + left_ms, ..facts(&spec, &progress) }, end)
}

#[test]
fn placing_is_tried_five_times_with_growing_delays() {
    for end in [never_ran(FaultClass::Retry), exit(Some(1), false), End::Gone] {
        let delays: Vec<_> = (1..PLACE_ATTEMPTS)
            .map(|attempt| match not_started_yet(&end, attempt, 1) {
                Verdict::Requeue { delay_ms, .. } => delay_ms,
                Verdict::Finish(finish) => panic!("{finish:?}"),
            })
            .collect();
        assert_eq!(delays, [1_000, 2_000, 4_000, 8_000]);
        let Verdict::Finish(finish) = not_started_yet(&end, PLACE_ATTEMPTS, 1) else { panic!() };
        assert_eq!(kind(&finish), failed_as(FailureKind::SandboxStart));
        assert_eq!(finish.failure.unwrap().evidence.as_deref(), Some("tried 5 times"));
    }
}

#[test]
fn a_server_that_cannot_place_runs_does_not_use_up_their_attempts() {
    let end = never_ran(FaultClass::Passing);
    for attempt in [PLACE_ATTEMPTS, 100, i64::MAX] {
        let wanted = if attempt == PLACE_ATTEMPTS { 16_000 } else { 30_000 };
        let wanted = Verdict::Requeue { reason: "no room".to_owned(), delay_ms: wanted };
        assert_eq!(not_started_yet(&end, attempt, 1), wanted);
    }
    let Verdict::Finish(finish) = not_started_yet(&end, 1, 0) else { panic!("the time limit bounds it") };
    assert_eq!(kind(&finish), failed_as(FailureKind::Timeout));
    assert_eq!(finish.failure.unwrap().evidence.as_deref(), Some("no room"));
}

#[test]
fn an_interrupted_placing_is_repeated_at_once_but_not_for_ever() {
    let end = never_ran(FaultClass::Interrupted);
    assert!(matches!(not_started_yet(&end, 4, 1), Verdict::Requeue { delay_ms: 0, .. }));
    assert!(matches!(not_started_yet(&end, PLACE_ATTEMPTS, 1), Verdict::Finish(_)));
}

#[test]
fn a_final_fault_ends_the_run_at_once_and_says_that_a_retry_cannot_help() {
    let Verdict::Finish(finish) = not_started_yet(&never_ran(FaultClass::Final), 1, 1) else { panic!() };
    assert_eq!(kind(&finish), failed_as(FailureKind::SandboxStart));
    let failure = finish.failure.unwrap();
    assert!(!failure.retry_can_help && failure.message == "no room");
}

#[test]
fn the_gateways_word_on_the_model_counts_more_than_the_agents() {
    let spec = spec();
    let known = Failure::new(FailureKind::Budget, "the run's budget is used up").with_evidence("x");
    let progress = Progress { model_failure: Some(known), ..progress() };
    for (told, expected) in [
        (FailureKind::ProviderLimit, FailureKind::Budget),
        (FailureKind::ProviderAuth, FailureKind::Budget),
        (FailureKind::AgentError, FailureKind::Budget),
        (FailureKind::MaxTurns, FailureKind::MaxTurns),
        (FailureKind::PushRejected, FailureKind::PushRejected),
    ] {
        let finish =
            by_outcome(&facts(&spec, &progress), &outcome(Ending::Failed(Failure::new(told, "said so"))));
        assert_eq!(kind(&finish), failed_as(expected), "{told}");
        let failure = finish.failure.unwrap();
        if expected == FailureKind::Budget {
            assert_eq!(failure.message, "the run's budget is used up");
            assert_eq!(failure.evidence.as_deref(), Some("x; the agent ended with: said so"));
            assert!(!failure.retry_can_help);
        }
    }
    let finish = by_outcome(&facts(&spec, &progress), &outcome(Ending::Completed));
    assert_eq!(kind(&finish), SUCCEEDED, "a run that did its work all the same");
}

#[test]
fn what_failed_where_processes_were_refused_says_so_with_the_remedy() {
    let (spec, progress) = (spec(), progress());
    let told = |kind, pids_refused, full| {
        let facts = Facts { pids_refused, ..facts(&spec, &progress).with(&Disk { cut: None, full }) };
        let failure = Failure::new(kind, "the agent was killed by signal 6").with_evidence("said");
        by_outcome(&facts, &outcome(Ending::Failed(failure))).failure.unwrap()
    };
    for kind in
        [FailureKind::AgentError, FailureKind::AgentHung, FailureKind::SetupFailed, FailureKind::Internal]
    {
        let failure = told(kind, 1, None);
        assert_eq!((failure.kind, failure.evidence.as_deref()), (kind, Some("said")));
        let words = "the agent was killed by signal 6; the sandbox had all of its 512 processes and threads, and was refused \
                     one more 1 times: raise caisson.resources.pids in the workflow, or have the agent start fewer";
        assert_eq!(failure.message, words);
        assert_eq!(told(kind, 0, None).message, "the agent was killed by signal 6");
    }
    for (kind, full) in [(FailureKind::AgentError, Some(full_room(1))), (FailureKind::RepoAuth, None)] {
        let failure = told(kind, 7, full);
        assert!(!failure.message.contains("refused"), "it failed for something else: {failure:?}");
    }
}

fn amount(bytes: u64) -> Amount {
    Amount { bytes, files: 7, too_deep: false }
}

fn full_room(bytes: u64) -> (Bound, Room) {
    (Bound::Space, Room { used: amount(bytes), most: amount(64 << 20), walled: true, journal_full: false })
}

#[test]
fn what_failed_in_a_full_room_failed_for_want_of_disk_space_and_says_what_was_reported() {
    let (spec, progress) = (spec(), progress());
    let with = |full| facts(&spec, &progress).with(&Disk { cut: None, full });
    let told = |kind, full| {
        let failure = Failure::new(kind, "the agent ended with code 1").with_evidence("ENOSPC");
        by_outcome(&with(full), &outcome(Ending::Failed(failure))).failure.unwrap()
    };
    for kind in
        [FailureKind::AgentError, FailureKind::AgentHung, FailureKind::Internal, FailureKind::DiskFull]
    {
        let failure = told(kind, Some(full_room(1)));
        assert_eq!(failure.kind, FailureKind::DiskFull);
        assert!(
            failure.message.contains("64 MiB") && failure.message.contains("workspace_mib"),
            "{failure:?}"
        );
        let evidence = failure.evidence.unwrap();
        assert!(
            evidence.contains(&format!("reported as {kind}: the agent ended with code 1: ENOSPC")),
            "{evidence}"
        );
        assert_eq!(told(kind, None).kind, kind);
    }
    assert_eq!(told(FailureKind::RepoAuth, Some(full_room(1))).kind, FailureKind::RepoAuth);
    assert_eq!(
        by_outcome(&with(Some(full_room(1))), &outcome(Ending::Completed)).status,
        RunStatus::Succeeded
    );
}

#[test]
fn a_run_that_the_worker_cut_off_says_why_whatever_its_sandbox_says() {
    let (spec, progress) = (spec(), progress());
    let (bound, room) = full_room(64 << 20);
    let cases = [
        (Cut::Time, FailureKind::Timeout, "time limit of 600 s"),
        (Cut::Full(bound, room), FailureKind::DiskFull, "all of its 64 MiB"),
        (Cut::Full(Bound::Files, room), FailureKind::DiskFull, "all of the 7 files"),
        (Cut::Full(Bound::Depth, room), FailureKind::DiskFull, "nested deeper than 256 levels"),
        (Cut::Full(Bound::Journal, room), FailureKind::DiskFull, "journal directory holds more than 128 MiB"),
        (Cut::Floor { free_bytes: 5, used: amount(9) }, FailureKind::DiskFull, "the server's disk ran full"),
    ];
    for (why, kind, text) in cases {
        let facts = facts(&spec, &progress).with(&Disk { cut: Some(why), full: None });
        let Verdict::Finish(ended) = by_end(&facts, &exit(Some(137), false)) else { panic!("{why:?}") };
        let stopped = by_outcome(&facts, &outcome(Ending::Stopped(StopReason::DiskFull)));
        for finish in [ended, stopped] {
            let failure = finish.failure.unwrap();
            assert_eq!(failure.kind, kind);
            assert!(failure.message.contains(text), "{failure:?}");
        }
        let cancelled = Progress { cancel_requested: true, ..progress.clone() };
        let facts = Facts { progress: &cancelled, ..facts };
        let Verdict::Finish(finish) = by_end(&facts, &End::Gone) else { panic!("{why:?}") };
        assert_eq!(finish.status, RunStatus::Cancelled);
    }
}

#[test]
fn a_shim_that_stops_for_want_of_disk_space_must_have_been_told_to() {
    let spec = spec();
    let told = Progress { stop_requested_at_ms: Some(NOW), ..progress() };
    let ending = outcome(Ending::Stopped(StopReason::DiskFull));
    let of = |progress: &Progress| by_outcome(&facts(&spec, progress), &ending).failure.unwrap().kind;
    assert_eq!(of(&told), FailureKind::DiskFull);
    assert_eq!(of(&progress()), FailureKind::AgentError);
}
