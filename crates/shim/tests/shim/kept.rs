//! An agent that waits in its sandbox for the session's next run: what the next run begins with, and what becomes of it when the agent
//! dies just before its prompt.

use std::time::Duration;

use caisson_domain::protocol::{Ending, RunWork, paths};
use caisson_domain::workflow::Publish;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::gateway::PATIENCE;
use crate::publishing::assert_published;
use crate::sandbox::{Sandbox, git_work, plain_work, run_id};

/// An agent that keeps its conversation as the real one does, and notes which process it is.
pub(crate) const KEEPING: &str = r#"
def keep(uuid):
    given = next(word for word in sys.argv if word.startswith(("--resume=", "--session-id=")))
    option, name = given.split("=")
    directory = os.environ["HOME"] + "/.claude/projects/-here"
    os.makedirs(directory, exist_ok=True)
    with open(directory + "/" + name + ".jsonl", "a") as file:
        file.write('{"uuid":"said-%s"}\n' % uuid)
    emit({"type": "assistant", "uuid": "said-" + uuid,
          "message": {"content": [{"type": "text", "text": "Hello."}]}})
    log(option + " " + str(os.getpid()))
"#;

fn waiting(work: RunWork) -> RunWork {
    RunWork { keep: true, ..work }
}

pub(crate) fn next(before: &RunWork, prompt: &str) -> RunWork {
    let mut work = RunWork { run: run_id(2), prompt: prompt.to_owned(), ..before.clone() };
    work.agent.resume = true;
    if let Some(git) = &mut work.git {
        git.go_on = true;
    }
    work
}

/// The process that noted last which it is.
fn last_agent(sandbox: &Sandbox) -> i32 {
    let log = sandbox.agent_log();
    log.iter().rev().find_map(|line| line.strip_prefix("--")?.split_once(' ')?.1.parse().ok()).unwrap()
}

/// Waits for what processes below the shim do.
async fn wait_for(sandbox: &Sandbox, is_so: impl Fn(&[char]) -> bool) {
    let begun = std::time::Instant::now();
    while !is_so(&sandbox.states()) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", sandbox.states());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_next_run_begins_with_the_settings_of_a_checkout_and_not_with_those_of_the_agent() {
    let script = format!(
        "{KEEPING}
def prompt(uuid, text, number):
    if number == 0:
        ran = 'touch ' + os.environ['HOME'] + '/ran; cat'
        for key, value in [('user.name', 'Somebody Else'), ('user.email', 'else@example.com'),
                           ('filter.own.clean', ran), ('attr.tree', 'HEAD')]:
            sh('git', 'config', key, value)
        sh('git', 'config', '--add', 'user.name', 'A Third')
        write('b.txt', 'two\\n')
        commit('feat: two')
        os.makedirs('.git/info', exist_ok=True)
        write('.git/info/attributes', '* filter=own\\n')
        sh('git', 'checkout', '-q', '-b', 'elsewhere')
    else:
        def told(*arguments):
            return subprocess.run(['git', *arguments], stdout=subprocess.PIPE).stdout.decode().strip()
        for key in ['user.name', 'user.email', 'attr.tree']:
            log('found ' + told('config', '--get-all', key))
        log('found ' + told('symbolic-ref', '--short', 'HEAD'))
        log('found ' + str(os.path.exists('.git/info/attributes')))
        write('c.txt', 'three\\n')
        commit('feat: three')
    keep(uuid)
    done(uuid)
"
    );
    let mut sandbox = Sandbox::with_repository(&script);
    let mut first = waiting(git_work("One"));
    // What is left is not the branch that would be pushed.
    first.publish = Publish::None;
    sandbox.deliver(first.clone());
    sandbox.start();
    let outcome = sandbox.outcome(&first.run).await;
    assert!(outcome.kept, "{outcome:?} {}", sandbox.shim_log());
    let agent = last_agent(&sandbox);
    let second = next(&first, "Two");
    sandbox.deliver(second.clone());
    let outcome = sandbox.outcome(&second.run).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!(last_agent(&sandbox), agent, "the same process");
    let work = second.git.unwrap();
    let log = sandbox.agent_log();
    let found: Vec<_> = log.iter().filter_map(|line| line.strip_prefix("found ")).collect();
    assert_eq!(found, [&work.author_name, &work.author_email, "", work.branch.as_str(), "False"]);
    sandbox.exit().await;
}

#[tokio::test]
async fn an_agent_that_dies_before_its_prompt_is_started_again_and_knows_what_was_said() {
    let script = format!(
        "{KEEPING}
def prompt(uuid, text, number):
    write(text + '.txt', text)
    commit('feat: ' + text)
    keep(uuid)
    done(uuid)
"
    );
    let mut sandbox = Sandbox::with_repository(&script);
    let first = waiting(git_work("one"));
    sandbox.deliver(first.clone());
    sandbox.start();
    let outcome = sandbox.outcome(&first.run).await;
    assert_published(&sandbox, &outcome);
    assert!(outcome.kept, "{}", sandbox.shim_log());
    let agent = last_agent(&sandbox);
    // A process that is told to stop may be at work for a moment yet.
    wait_for(&sandbox, |states| states == ['T']).await;

    // Nothing is acknowledged, so the agent has no prompt; it dies once it is let go.
    sandbox.gateway.with(|state| state.hold = Some(paths::JOURNAL));
    let second = next(&first, "two");
    sandbox.deliver(second.clone());
    wait_for(&sandbox, |states| !states.contains(&'T')).await;
    kill(Pid::from_raw(agent), Signal::SIGKILL).unwrap();
    // The shim has heard of its end when it is gone altogether.
    wait_for(&sandbox, |_| kill(Pid::from_raw(agent), None).is_err()).await;
    sandbox.gateway.with(|state| state.hold = None);
    let outcome = sandbox.outcome(&second.run).await;
    assert_published(&sandbox, &outcome);
    assert_ne!(last_agent(&sandbox), agent, "another process");
    let log = sandbox.agent_log();
    assert_eq!(log.iter().filter(|line| *line == "prompt two").count(), 1, "{log:?}");
    assert!(log.iter().any(|line| line.starts_with("--resume ")), "{log:?}");
    sandbox.exit().await;
}

/// A first run whose agent is told to stop and has not done so yet, and a second one that is there already. Who traces a process is asked
/// before it does what a signal says; that is the test's only thread.
async fn told_to_stop() -> (Sandbox, [RunWork; 2], Pid) {
    let script = format!(
        "{KEEPING}
import time

def prompt(uuid, text, number):
    log('--pid ' + str(os.getpid()))
    while not os.path.exists(os.environ['HOME'] + '/go'):
        time.sleep(0.01)
    keep(uuid)
    done(uuid)
"
    );
    let mut sandbox = Sandbox::with_agent(&script);
    let first = waiting(plain_work("one"));
    let second = next(&first, "two");
    sandbox.deliver(first.clone());
    sandbox.deliver(second.clone());
    sandbox.start();
    let begun = std::time::Instant::now();
    while !sandbox.agent_log().iter().any(|line| line.starts_with("--pid ")) {
        assert!(begun.elapsed() < PATIENCE, "{}", sandbox.shim_log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let agent = Pid::from_raw(last_agent(&sandbox));
    ptrace::seize(agent, ptrace::Options::empty()).unwrap();
    sandbox.let_go();
    wait_for(&sandbox, |states| states == ['t']).await;
    (sandbox, [first, second], agent)
}

#[tokio::test]
async fn an_agent_that_takes_a_moment_to_stop_is_waited_for_and_taken_up() {
    let (mut sandbox, [first, second], agent) = told_to_stop().await;
    // Longer than it takes to begin the next run.
    tokio::time::sleep(Duration::from_millis(300)).await;
    ptrace::detach(agent, Signal::SIGSTOP).unwrap();
    assert!(sandbox.outcome(&first.run).await.kept, "{}", sandbox.shim_log());
    assert!(sandbox.outcome(&second.run).await.kept, "{}", sandbox.shim_log());
    assert_eq!(last_agent(&sandbox), agent.as_raw(), "the same process");
    sandbox.exit().await;
}

#[tokio::test]
async fn an_agent_that_does_not_stop_does_not_wait_for_the_next_run() {
    let (mut sandbox, [first, second], agent) = told_to_stop().await;
    let given_up = "the agent does not wait for another run: it does not stop";
    wait_for(&sandbox, |_| sandbox.shim_log().contains(given_up)).await;
    ptrace::detach(agent, None).unwrap();
    let outcome = sandbox.outcome(&first.run).await;
    assert_eq!((outcome.ending, outcome.kept), (Ending::Completed, false));
    assert!(sandbox.outcome(&second.run).await.kept, "{}", sandbox.shim_log());
    assert_ne!(last_agent(&sandbox), agent.as_raw(), "another process");
    sandbox.exit().await;
}

#[tokio::test]
async fn an_agent_beside_which_something_lives_is_not_taken_up() {
    let script = format!(
        "{KEEPING}
import signal
signal.signal(signal.SIGUSR1, lambda *_: subprocess.Popen(['sleep', '600']))

def prompt(uuid, text, number):
    keep(uuid)
    done(uuid)
"
    );
    let mut sandbox = Sandbox::with_agent(&script);
    let first = waiting(plain_work("one"));
    sandbox.deliver(first.clone());
    sandbox.start();
    assert!(sandbox.outcome(&first.run).await.kept, "{}", sandbox.shim_log());
    let agent = last_agent(&sandbox);
    let second = next(&first, "two");
    sandbox.deliver(second.clone());
    assert!(sandbox.outcome(&second.run).await.kept);
    assert_eq!(last_agent(&sandbox), agent, "nothing lives beside it");

    for signal in [Signal::SIGUSR1, Signal::SIGCONT] {
        kill(Pid::from_raw(agent), signal).unwrap();
    }
    wait_for(&sandbox, |states| states.len() == 2).await;
    kill(Pid::from_raw(agent), Signal::SIGSTOP).unwrap();
    let third = RunWork { run: run_id(3), ..second };
    sandbox.deliver(third.clone());
    assert!(sandbox.outcome(&third.run).await.kept);
    assert_ne!(last_agent(&sandbox), agent);
    wait_for(&sandbox, |states| states == ['T']).await;
    sandbox.exit().await;
}
