//! The gateway goes away, the shim is killed, the disk is full.

use std::time::Duration;

use caisson_domain::protocol::{Ending, JournalBody, StopReason};
use caisson_domain::run::FailureKind;

use crate::gateway::{Model, PATIENCE};
use crate::sandbox::{BRANCH, Sandbox, failed, git_work, kinds, plain_work};

/// An agent that calls the model as its tools would, and notes what it got.
const CALLING: &str = "
import urllib.request
def prompt(uuid, text, number):
    emit({'type': 'calling'})
    request = urllib.request.Request(os.environ['ANTHROPIC_BASE_URL'] + '/v1/messages?beta=true', b'x' * 100000,
                                     {'Authorization': 'Bearer ' + os.environ['ANTHROPIC_AUTH_TOKEN']})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as reply:
            first = reply.read(4)
            emit({'type': 'piece'})
            log((first + reply.read()).decode())
    except Exception as error:
        log('broke: ' + type(error).__name__)
    done(uuid)
";

#[tokio::test]
async fn a_model_call_survives_the_death_of_the_gateway() {
    let mut sandbox = Sandbox::with_agent(CALLING);
    sandbox.gateway.with(|state| state.hold = Some("/model/"));
    let work = plain_work("x");
    sandbox.deliver(work.clone());
    sandbox.start();
    sandbox.gateway.wait_for("the call", |state| (!state.carried.is_empty()).then_some(())).await;
    sandbox.gateway.down().await;
    sandbox.gateway.with(|state| state.hold = None);
    sandbox.gateway.up();
    assert_eq!(sandbox.outcome(&work.run).await.ending, Ending::Completed);
    sandbox.exit().await;
    assert_eq!(sandbox.agent_log()[1], "one two");
    let call = ("/model/v1/messages?beta=true".to_owned(), 100_000, "Bearer csa_agent".to_owned());
    assert_eq!(sandbox.gateway.with(|state| state.carried.clone()), [call.clone(), call]);
}

#[tokio::test]
async fn a_model_reply_that_breaks_off_is_not_repeated() {
    let mut sandbox = Sandbox::with_agent(CALLING);
    sandbox.gateway.with(|state| state.model = Model::Cut);
    let outcome = sandbox.run(plain_work("x")).await;
    assert_eq!(outcome.ending, Ending::Completed);
    assert!(sandbox.agent_log()[1].starts_with("broke"), "{:?}", sandbox.agent_log());
    assert_eq!(sandbox.gateway.with(|state| state.carried.len()), 1);
}

#[tokio::test]
async fn a_run_goes_on_and_its_journal_is_whole_while_the_gateway_comes_and_goes() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    if number == 0:
        for line in range(2000):
            emit({'type': 'line', 'number': line})
        write('a.txt', 'two\\n')
        done(uuid)
    else:
        done(uuid, 'fix: two')
",
    );
    let work = git_work("Fix it");
    sandbox.deliver(work.clone());
    sandbox.start();
    let mut seen = 0;
    for _ in 0..5 {
        // Whenever something more is stored, the gateway dies.
        let stored = sandbox
            .gateway
            .wait_for("more records", |state| Some(state.journal.len()).filter(|len| *len > seen))
            .await;
        seen = stored;
        sandbox.gateway.down().await;
        sandbox.gateway.up();
    }
    let outcome = sandbox.outcome(&work.run).await;
    sandbox.exit().await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!(sandbox.remote(&["log", "--format=%s", &format!("main..{BRANCH}")]), "fix: two");
    let numbers: Vec<_> = sandbox
        .bodies()
        .into_iter()
        .filter_map(|body| match body {
            JournalBody::Line { line } if line.contains("number") => {
                serde_json::from_str::<serde_json::Value>(&line).unwrap()["number"].as_u64()
            }
            _ => None,
        })
        .collect();
    assert_eq!(numbers, (0..2000).collect::<Vec<_>>());
    assert_eq!(kinds(&sandbox.bodies()).iter().filter(|kind| *kind == "finished").count(), 1);
}

#[tokio::test]
async fn a_shim_waits_for_a_gateway_that_is_not_there_yet() {
    let mut sandbox = Sandbox::with_agent("def prompt(uuid, text, number):\n    done(uuid)\n");
    sandbox.gateway.down().await;
    let work = plain_work("x");
    sandbox.deliver(work.clone());
    sandbox.start();
    sandbox.gateway.up();
    assert_eq!(sandbox.outcome(&work.run).await.ending, Ending::Completed);
    sandbox.exit().await;
}

#[tokio::test]
async fn a_sandbox_whose_shim_died_does_nothing_more() {
    let mut sandbox = Sandbox::with_agent("def prompt(uuid, text, number):\n    heard()\n");
    let work = plain_work("x");
    sandbox.deliver(work);
    sandbox.start();
    let begun = |state: &crate::gateway::State| kinds(&state.bodies()).contains(&"agent_started".to_owned());
    sandbox.gateway.wait_for("the agent", |state| begun(state).then_some(())).await;
    sandbox.kill();
    // What it had sent is stored or gone.
    sandbox.gateway.down().await;
    sandbox.gateway.up();
    let stored = sandbox.bodies();
    sandbox.start();
    assert!(!sandbox.ended().await.success());
    assert_eq!(sandbox.bodies(), stored);
}

#[tokio::test]
async fn an_agent_that_is_started_early_is_held_until_the_workspace_is_ready() {
    let mut sandbox = Sandbox::with_repository(
        "
log('started')
open(os.environ['ANTHROPIC_CONFIG_DIR'] + '/active_config').close()
log(' '.join(sorted(os.listdir('.'))))

def prompt(uuid, text, number):
    done(uuid)
",
    );
    sandbox.gateway.with(|state| state.hold = Some("/git/"));
    let work = git_work("Look");
    sandbox.deliver(work.clone());
    sandbox.start();
    let held = async {
        while sandbox.agent_log().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, held).await.expect("the agent is started");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(sandbox.agent_log(), ["started"], "it waits");
    sandbox.gateway.with(|state| state.hold = None);
    assert_eq!(sandbox.outcome(&work.run).await.ending, Ending::Completed);
    sandbox.exit().await;
    assert_eq!(sandbox.agent_log()[1], ".git a.txt", "it stayed in the same directory");
}

#[tokio::test]
async fn a_run_can_be_stopped_while_it_is_being_prepared_or_published() {
    let agent = "
def prompt(uuid, text, number):
    write('a.txt', 'two\\n'); commit('fix: two')
    done(uuid)
";
    let mut sandbox = Sandbox::with_repository(agent);
    sandbox.gateway.with(|state| state.hold = Some("/git/"));
    let work = git_work("Fix it");
    sandbox.deliver(work.clone());
    sandbox.start();
    sandbox.gateway.wait_for("the clone", |state| (!state.carried.is_empty()).then_some(())).await;
    sandbox.stop(&work.run, StopReason::Cancel);
    assert_eq!(sandbox.outcome(&work.run).await.ending, Ending::Stopped(StopReason::Cancel));
    sandbox.exit().await;
    assert!(sandbox.agent_log().is_empty());

    let mut sandbox = Sandbox::with_repository(agent);
    sandbox.deliver(work.clone());
    sandbox.start();
    sandbox
        .gateway
        .wait_for("the work", |state| {
            let publishes = kinds(&state.bodies()).contains(&"phase agent".to_owned());
            publishes.then_some(())
        })
        .await;
    sandbox.gateway.with(|state| state.hold = Some("/git/"));
    sandbox
        .gateway
        .wait_for("the push", |state| {
            let pushes = state.carried.iter().any(|(path, ..)| path.contains("receive-pack"));
            pushes.then_some(())
        })
        .await;
    sandbox.stop(&work.run, StopReason::Timeout);
    let outcome = sandbox.outcome(&work.run).await;
    assert_eq!((outcome.ending, outcome.pushed), (Ending::Stopped(StopReason::Timeout), false));
    sandbox.exit().await;
    assert!(sandbox.artifact("work.bundle").is_some());
}

#[tokio::test]
async fn a_signal_ends_the_shim_with_everything_it_started() {
    let mut sandbox = Sandbox::with_agent(
        "
def prompt(uuid, text, number):
    emit({'type': 'pid', 'pid': os.getpid()})
    while True:
        sh('true')
",
    );
    sandbox.deliver(plain_work("x"));
    sandbox.start();
    let pid = sandbox
        .gateway
        .wait_for("the agent", |state| {
            state.bodies().into_iter().find_map(|body| match body {
                JournalBody::Line { line } => {
                    serde_json::from_str::<serde_json::Value>(&line).ok()?["pid"].as_i64()
                }
                _ => None,
            })
        })
        .await;
    let shim = nix::unistd::Pid::from_raw(sandbox.shim_pid().cast_signed());
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(sandbox.ended().await.success());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(sandbox.shim_log().contains("told by SIGTERM"));
    assert!(
        !kinds(&sandbox.bodies()).contains(&"finished".to_owned()),
        "whoever ends a sandbox says what that means"
    );
}

#[tokio::test]
async fn a_full_journal_disk_fails_the_run_and_its_last_records_fit() {
    let mut sandbox = Sandbox::with_agent(
        "
def prompt(uuid, text, number):
    sys.stderr.write('e' * 10000)
    sys.stderr.flush()
    for line in range(10000):
        raw('x' * 2000 + '\\n')
    done(uuid)
",
    );
    // A small disk of its own, seen by the shim alone.
    let journal = sandbox.place("journal");
    let script = "mount -t tmpfs -o size=6m tmpfs \"$0\" && exec \"$@\"";
    let small_disk = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, journal.to_str().unwrap()];
    let work = plain_work("x");
    sandbox.deliver(work.clone());
    sandbox.start_under(&small_disk);
    let begun = |state: &crate::gateway::State| kinds(&state.bodies()).contains(&"agent_started".to_owned());
    sandbox.gateway.wait_for("the agent", |state| begun(state).then_some(())).await;
    sandbox.gateway.with(|state| state.store_nothing = true);
    let full = || sandbox.shim_log().contains("the room for a run's last records is used");
    sandbox.gateway.wait_for("the full disk", |_| full().then_some(())).await;
    sandbox.gateway.with(|state| state.store_nothing = false);
    let outcome = sandbox.outcome(&work.run).await;
    failed(&outcome, FailureKind::DiskFull);
    sandbox.exit().await;
    let kinds = kinds(&sandbox.bodies());
    assert_eq!(kinds[kinds.len() - 2..], ["agent_exited", "finished"]);
}
