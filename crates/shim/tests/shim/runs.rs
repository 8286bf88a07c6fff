//! Runs from delivery to their last record, without regard to what is published.

use caisson_domain::event::DeltaKind;
use caisson_domain::protocol::{Ending, JournalBody, StopReason};
use caisson_domain::run::FailureKind;

use crate::sandbox::{Sandbox, failed, kinds, plain_work, run_id};

const ANSWER: &str = "
def prompt(uuid, text, number):
    emit({'type': 'assistant', 'message': {'content': [{'type': 'text', 'text': 'Hello.'}]}})
    done(uuid, 'Hello.')
";

#[tokio::test]
async fn a_run_without_a_repository_is_told_from_first_to_last() {
    let mut sandbox = Sandbox::with_agent(ANSWER);
    let outcome = sandbox.run(plain_work("Say hello")).await;
    assert_eq!(outcome.ending, Ending::Completed);
    assert_eq!((outcome.result.as_deref(), outcome.head, outcome.pushed), (Some("Hello."), None, false));
    assert_eq!(
        kinds(&sandbox.bodies()),
        [
            "phase prepare",
            "prepared",
            "phase agent",
            "agent_started",
            "line",
            "line",
            "line",
            "phase publish",
            "agent_exited",
            "finished"
        ]
    );
    assert_eq!(sandbox.agent_log(), ["prompt Say hello"]);
}

#[tokio::test]
async fn the_prompt_waits_until_its_start_is_stored() {
    let mut sandbox = Sandbox::with_agent(ANSWER);
    // The gateway stores but its answers are lost, so the shim may not know for a while.
    sandbox.gateway.with(|state| state.swallow_acks = 3);
    let outcome = sandbox.run(plain_work("Say hello")).await;
    assert_eq!(outcome.ending, Ending::Completed);
    assert_eq!(kinds(&sandbox.bodies()).iter().filter(|kind| *kind == "agent_started").count(), 1);
}

#[tokio::test]
async fn work_that_is_delivered_again_is_not_done_again() {
    let mut sandbox = Sandbox::with_agent(ANSWER);
    let work = plain_work("Say hello");
    sandbox.deliver(work.clone());
    sandbox.start();
    sandbox.outcome(&work.run).await;
    // As a gateway would that has lost the record: the shim may not do it again, and goes on to the next run.
    let second =
        caisson_domain::protocol::RunWork { run: run_id(2), prompt: "Again".to_owned(), ..work.clone() };
    sandbox.gateway.with(|state| {
        state.work.clear();
        state.journal.clear();
        state.work.push_back(caisson_domain::protocol::Work::Run(Box::new(work)));
        state.delivered = 0;
    });
    sandbox.gateway.wait_for("the second delivery", |state| (state.delivered >= 2).then_some(())).await;
    sandbox.gateway.with(|state| state.work.clear());
    sandbox.deliver(second.clone());
    sandbox.outcome(&second.run).await;
    sandbox.exit().await;
    assert_eq!(sandbox.agent_log(), ["prompt Say hello", "prompt Again"]);
}

#[tokio::test]
async fn a_stopped_run_interrupts_its_agent_and_says_why() {
    let mut sandbox = Sandbox::with_agent(
        "
def prompt(uuid, text, number):
    emit({'type': 'waiting'})
    wait_for_interrupt()
    log('interrupted')
    done(uuid, is_error=True, subtype='error_during_execution', terminal_reason='aborted_tools')
",
    );
    let work = plain_work("Wait");
    sandbox.deliver(work.clone());
    sandbox.start();
    let waits = |body: &JournalBody| matches!(body, JournalBody::Line { line } if line.contains("waiting"));
    sandbox.gateway.wait_for("the agent", |s| s.bodies().iter().any(waits).then_some(())).await;
    sandbox.stop(&run_id(9), StopReason::Timeout);
    sandbox.stop(&work.run, StopReason::Cancel);
    assert_eq!(sandbox.outcome(&work.run).await.ending, Ending::Stopped(StopReason::Cancel));
    sandbox.exit().await;
    assert_eq!(sandbox.agent_log(), ["prompt Wait", "interrupted"]);
}

#[tokio::test]
async fn a_run_ends_at_its_time_even_if_the_agent_ignores_the_interruption() {
    let mut sandbox = Sandbox::with_agent(
        "
def prompt(uuid, text, number):
    while True:
        heard()
",
    );
    sandbox.set("interrupt_ms", 200);
    let mut work = plain_work("Never mind");
    work.timeout_ms = 5_000;
    let outcome = sandbox.run(work).await;
    assert_eq!(outcome.ending, Ending::Stopped(StopReason::Timeout));
    let killed = |body: &JournalBody| matches!(body, JournalBody::AgentExited { signal: Some(9), .. });
    assert!(sandbox.bodies().iter().any(killed));
}

#[tokio::test]
async fn an_agent_that_does_not_begin_is_ended() {
    let mut sandbox = Sandbox::new();
    std::os::unix::fs::symlink("/bin/cat", sandbox.place("agent")).unwrap();
    // It has no such options: what is looked at is that it says nothing and ends.
    let outcome = sandbox.run(plain_work("x")).await;
    let message = failed(&outcome, FailureKind::AgentError);
    assert_eq!(message, "the agent did not start");

    let mut sandbox = Sandbox::with_agent("emit = print\nimport time\ntime.sleep(3600)");
    sandbox.set("begin_ms", 300);
    let message = failed(&sandbox.run(plain_work("x")).await, FailureKind::AgentHung);
    assert!(message.contains("did not begin"), "{message}");
}

#[tokio::test]
async fn a_silent_agent_is_ended_sooner_than_a_silent_tool() {
    let silent = "
def prompt(uuid, text, number):
    if text == 'tool':
        emit({'type': 'assistant', 'message': {'content': [
            {'type': 'tool_use', 'id': 't', 'name': 'Bash', 'input': {}}]}})
    while True:
        heard()
";
    let (short, long) = (300, 600_000);
    for (prompt, word, silence, tool) in [
        ("agent", "the agent gave no sign of life", short, long),
        ("tool", "a tool of the agent", long, short),
    ] {
        let mut sandbox = Sandbox::with_agent(silent);
        sandbox.set("silence_ms", silence);
        sandbox.set("tool_ms", tool);
        let message = failed(&sandbox.run(plain_work(prompt)).await, FailureKind::AgentHung);
        assert!(message.starts_with(word), "{message}");
    }
}

#[tokio::test]
async fn an_agent_that_does_not_end_after_its_result_is_killed_and_its_result_counts() {
    let mut sandbox = Sandbox::with_agent(
        "
def prompt(uuid, text, number):
    done(uuid, 'All done.')
    while True:
        sh('true')
",
    );
    sandbox.set("exit_ms", 300);
    let outcome = sandbox.run(plain_work("x")).await;
    assert_eq!((outcome.ending, outcome.result.as_deref()), (Ending::Completed, Some("All done.")));
}

#[tokio::test]
async fn an_agent_that_dies_is_quoted() {
    let mut sandbox = Sandbox::with_agent(
        "
def prompt(uuid, text, number):
    sys.stderr.write('out of luck\\n')
    os._exit(3)
",
    );
    let outcome = sandbox.run(plain_work("x")).await;
    let failure = crate::sandbox::failure(&outcome);
    assert_eq!(failure.message, "the agent ended with code 3 before its result");
    assert_eq!(failure.evidence.as_deref(), Some("out of luck"));
    let exited = |body: &JournalBody| matches!(body, JournalBody::AgentExited { code: Some(3), signal: None, stderr } if stderr == "out of luck");
    assert!(sandbox.bodies().iter().any(exited));
}

#[tokio::test]
async fn garbage_and_huge_lines_are_kept_within_bounds_and_harm_nothing() {
    let mut sandbox = Sandbox::with_agent(
        "
def prompt(uuid, text, number):
    raw('not json\\n\\n[1, 2]\\n')
    raw('x' * (3 * 1024 * 1024) + '\\n')
    sys.stdout.buffer.write(b'\\xff\\n')
    emit({'type': 'control_request', 'request_id': 'q', 'request': {'subtype': 'can_use_tool'}})
    log('answer ' + json.dumps(heard()['response']))
    done(uuid)
",
    );
    let outcome = sandbox.run(plain_work("x")).await;
    assert_eq!(outcome.ending, Ending::Completed);
    let texts: Vec<_> = sandbox
        .bodies()
        .into_iter()
        .filter_map(|body| match body {
            JournalBody::Text { text, cut_bytes } => Some((text, cut_bytes)),
            _ => None,
        })
        .collect();
    assert_eq!(texts.len(), 4);
    assert_eq!(
        (texts[0].0.as_str(), texts[1].0.as_str(), texts[3].0.as_str()),
        ("not json", "[1, 2]", "\u{fffd}")
    );
    assert_eq!((texts[2].0.len(), texts[2].1), (1024 * 1024, 2 * 1024 * 1024));
    assert!(sandbox.agent_log()[1].contains("unsupported_request"));
}

#[tokio::test]
async fn deltas_of_the_agent_itself_are_passed_on_and_not_journaled() {
    let mut sandbox = Sandbox::with_agent(
        "
def delta(kind, text, parent):
    emit({'type': 'stream_event', 'parent_tool_use_id': parent, 'event': {'type': 'content_block_delta',
          'delta': {'type': kind + '_delta', kind: text}}})

def prompt(uuid, text, number):
    delta('thinking', 'hm', None)
    delta('text', 'sub', 'toolu_1')
    delta('text', 'Hel', None)
    delta('text', 'lo', None)
    message = heard()
    done(uuid)
",
    );
    let work = plain_work("x");
    sandbox.deliver(work.clone());
    sandbox.start();
    let (kinds_seen, text) = sandbox
        .gateway
        .wait_for("the deltas", |state| {
            let items = || state.deltas.iter().flat_map(|batch| &batch.items);
            let text: String = items().map(|item| item.text.as_str()).collect();
            let kinds: Vec<_> = items().map(|item| item.kind).collect();
            (text.len() >= 7).then_some((kinds, text))
        })
        .await;
    assert_eq!(text, "hmHello");
    assert_eq!(kinds_seen[0], DeltaKind::Thinking);
    sandbox.stop(&work.run, StopReason::Cancel);
    sandbox.outcome(&work.run).await;
    sandbox.exit().await;
    let journaled = sandbox.bodies();
    assert!(
        !journaled
            .iter()
            .any(|body| matches!(body, JournalBody::Line { line } if line.contains("stream_event")))
    );
}

#[tokio::test]
async fn a_failed_turn_fails_the_run_in_its_own_words() {
    for (more, kind) in [
        ("subtype='error_max_turns', is_error=True, terminal_reason='max_turns'", FailureKind::MaxTurns),
        ("is_error=True, terminal_reason='api_error', api_error_status=401", FailureKind::ProviderAuth),
        (
            "is_error=True, terminal_reason='api_error', api_error='connection_failed'",
            FailureKind::ProviderDown,
        ),
        ("is_error=True, terminal_reason='api_error', stop_reason='refusal'", FailureKind::AgentRefused),
    ] {
        let mut sandbox =
            Sandbox::with_agent(&format!("def prompt(uuid, text, number):\n    done(uuid, {more})\n"));
        failed(&sandbox.run(plain_work("x")).await, kind);
    }
}

#[tokio::test]
async fn what_the_workflow_asks_for_in_vain_is_said_before_anything_starts() {
    let mut sandbox = Sandbox::with_agent(ANSWER);
    let mut work = plain_work("x");
    work.agent.environment.insert("LD_PRELOAD".to_owned(), "/tmp/x.so".to_owned());
    let message = failed(&sandbox.run(work).await, FailureKind::BadWorkflow);
    assert!(message.contains("LD_PRELOAD"), "{message}");
    assert!(sandbox.agent_log().is_empty());

    let mut sandbox = Sandbox::new();
    let message = failed(&sandbox.run(plain_work("x")).await, FailureKind::Internal);
    assert!(message.contains("agent's program"), "{message}");
}

#[tokio::test]
async fn nothing_of_a_run_is_left_when_it_is_over_and_no_child_sees_the_shims_environment() {
    let mut sandbox = Sandbox::with_agent(
        "
def prompt(uuid, text, number):
    child = subprocess.Popen(['setsid', 'sh', '-c', 'exec sleep 3600'], stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log(str(child.pid))
    log(' '.join(sorted(os.environ)))
    log(' '.join(os.readlink('/proc/self/fd/' + fd) for fd in os.listdir('/proc/self/fd') if int(fd) < 3 or
        os.path.exists('/proc/self/fd/' + fd)))
    done(uuid)
",
    );
    let outcome = sandbox.run(plain_work("x")).await;
    assert_eq!(outcome.ending, Ending::Completed);
    let log = sandbox.agent_log();
    assert!(!std::path::Path::new(&format!("/proc/{}", log[1])).exists(), "process {} lives", log[1]);
    assert!(!log[2].contains("CAISSON") && log[2].contains("ANTHROPIC_AUTH_TOKEN"), "{}", log[2]);
    // Whatever the test itself was started with, nothing of the shim's is among them.
    let place = sandbox.directory.path().to_str().unwrap();
    for own in ["anon_inode:", place] {
        assert!(!log[3].contains(own), "{}", log[3]);
    }
    assert_eq!(log[3].matches("socket:").count(), 2, "its input and its output: {}", log[3]);
}

#[tokio::test]
async fn an_orphan_that_holds_the_agents_output_does_not_hold_the_run() {
    let mut sandbox = Sandbox::with_agent(
        "
def prompt(uuid, text, number):
    subprocess.Popen(['setsid', 'sleep', '3600'], stdin=subprocess.DEVNULL)
    os._exit(3)
",
    );
    let outcome = sandbox.run(plain_work("x")).await;
    let message = failed(&outcome, FailureKind::AgentError);
    assert_eq!(message, "the agent ended with code 3 before its result");
}

#[tokio::test]
async fn an_agent_that_asks_and_never_listens_hangs_nothing() {
    let mut sandbox = Sandbox::with_agent(
        "
def prompt(uuid, text, number):
    for question in range(2000):
        emit({'type': 'control_request', 'request_id': 'q' * 100 + str(question), 'request': {'subtype': 'x'}})
    done(uuid, 'Never mind.')
    heard = None
",
    );
    let outcome = sandbox.run(plain_work("x")).await;
    assert_eq!(outcome.result.as_deref(), Some("Never mind."));
    assert!(sandbox.shim_log().contains("does not read its input"));
}

#[tokio::test]
async fn a_turn_without_its_last_line_is_not_waited_for_long() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    emit({'type': 'command_lifecycle', 'command_uuid': uuid, 'state': 'started'})
    done(uuid, 'Done.')
",
    );
    let outcome = sandbox.run(crate::sandbox::git_work("x")).await;
    assert_eq!(outcome.ending, Ending::Completed);
}
