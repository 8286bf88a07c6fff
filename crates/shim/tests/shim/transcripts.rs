//! Sessions that go on: the conversation in the home, from the archive or nowhere, and the branch that was pushed.

use caisson_domain::limits::TRANSCRIPT_BYTES;
use caisson_domain::protocol::{ArchiveWork, Ending, RunWork, StopReason, TRANSCRIPT_BUSY, TRANSCRIPT_EARLY};
use caisson_domain::run::FailureKind;
use caisson_domain::workflow::Publish;

use crate::sandbox::{BRANCH, Sandbox, failure, git, git_work, plain_work, run_id};

/// An agent that keeps its conversation as the real one does and notes how it was started.
const KEEPING: &str = r#"
def place():
    given = next(word for word in sys.argv if word.startswith(("--resume=", "--session-id=")))
    option, name = given.split("=")
    directory = os.environ["HOME"] + "/.claude/projects/-here"
    os.makedirs(directory, exist_ok=True)
    log(option)
    return directory + "/" + name + ".jsonl"

def prompt(uuid, text, number):
    with open(place(), "a") as file:
        file.write(json.dumps({"said": text}) + "\n")
        file.write('{"cut off')
    done(uuid)
"#;
const SAID: &str = "{\"said\": \"One\"}\n";

fn follow_up(archive: Option<bool>) -> RunWork {
    let mut work = RunWork { run: run_id(2), ..plain_work("Two") };
    work.agent.resume = true;
    work.agent.archive = archive.map(|is_latest| ArchiveWork { run: run_id(1), is_latest });
    work
}

fn archived(sandbox: &Sandbox) -> String {
    sandbox.gateway.with(|state| String::from_utf8(state.transcript.clone().unwrap()).unwrap())
}

/// A session whose first run is over, in a sandbox that knows of an archive.
async fn after_one_run() -> Sandbox {
    let mut sandbox = Sandbox::with_agent(KEEPING);
    sandbox.gateway.with(|state| state.transcript = Some(Vec::new()));
    let outcome = sandbox.run(plain_work("One")).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    sandbox.begin_anew();
    sandbox
}

fn lose_home(sandbox: &Sandbox) {
    std::fs::remove_dir_all(sandbox.place("home")).unwrap();
    std::fs::create_dir(sandbox.place("home")).unwrap();
}

#[tokio::test]
async fn a_conversation_is_archived_and_brought_to_a_home_that_has_nothing_of_it() {
    let mut sandbox = after_one_run().await;
    assert_eq!(archived(&sandbox), SAID, "whole lines of it");
    assert_eq!(sandbox.agent_log(), ["prompt One", "--session-id"]);
    lose_home(&sandbox);
    let outcome = sandbox.run(follow_up(Some(true))).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!(sandbox.agent_log(), ["prompt Two", "--resume"]);
    let note = format!("the conversation was brought from the archive, as run {} had left it", run_id(1));
    assert_eq!(sandbox.notes(), [note]);
    let workspace = sandbox.place("workspace").to_string_lossy().into_owned();
    let slug: String = workspace.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let place = sandbox.place("home/.claude/projects").join(slug);
    let kept = std::fs::read_dir(place).unwrap().next().unwrap().unwrap();
    assert_eq!(std::fs::read_to_string(kept.path()).unwrap(), SAID);
}

#[tokio::test]
async fn a_conversation_in_the_home_counts_more_than_the_archive() {
    let mut sandbox = after_one_run().await;
    sandbox.gateway.with(|state| state.transcript = Some(b"{\"another\":1}\n".to_vec()));
    assert_eq!(sandbox.run(follow_up(Some(true))).await.ending, Ending::Completed);
    assert_eq!(sandbox.agent_log()[2..], ["prompt Two", "--resume"]);
    assert!(sandbox.notes().is_empty(), "{:?}", sandbox.notes());
    assert!(archived(&sandbox).starts_with(SAID), "and replaces it");
}

#[tokio::test]
async fn an_older_archive_and_none_at_all_are_told() {
    let mut sandbox = after_one_run().await;
    lose_home(&sandbox);
    assert_eq!(sandbox.run(follow_up(Some(false))).await.ending, Ending::Completed);
    assert!(
        sandbox.notes()[0].ends_with("what was said after that is not known any more"),
        "{:?}",
        sandbox.notes()
    );
    sandbox.begin_anew();
    lose_home(&sandbox);
    assert_eq!(sandbox.run(follow_up(None)).await.ending, Ending::Completed);
    assert_eq!(sandbox.agent_log(), ["prompt Two", "--session-id"]);
    assert!(sandbox.notes()[0].contains("begins a new one"), "{:?}", sandbox.notes());
}

#[tokio::test]
async fn a_run_fails_whose_conversation_cannot_be_brought() {
    let mut sandbox = after_one_run().await;
    lose_home(&sandbox);
    sandbox.gateway.with(|state| state.transcript = None);
    let outcome = sandbox.run(follow_up(Some(true))).await;
    let failure = failure(&outcome);
    assert_eq!(failure.kind, FailureKind::Internal);
    assert!(failure.message.contains("could not be brought from the archive"), "{failure:?}");
    assert!(sandbox.agent_log().is_empty(), "no agent goes on as if it knew");
}

#[tokio::test]
async fn a_refusal_that_passes_is_waited_for_and_another_is_told_and_fails_nothing() {
    let mut sandbox = Sandbox::with_agent(KEEPING);
    sandbox.gateway.with(|state| {
        state.transcript = Some(Vec::new());
        state.refuse_transcripts = [(409, TRANSCRIPT_EARLY), (429, TRANSCRIPT_BUSY), (503, "busy")].into();
    });
    assert_eq!(sandbox.run(plain_work("One")).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!((archived(&sandbox).as_str(), sandbox.notes().len()), (SAID, 0), "{:?}", sandbox.notes());
    sandbox.begin_anew();
    lose_home(&sandbox);
    sandbox.gateway.with(|state| {
        state.refuse_transcripts = [(429, TRANSCRIPT_BUSY)].into();
    });
    assert_eq!(sandbox.run(follow_up(Some(true))).await.ending, Ending::Completed);
    assert_eq!(sandbox.agent_log(), ["prompt Two", "--resume"], "it was brought all the same");
    sandbox.begin_anew();
    sandbox.gateway.with(|state| state.refuse_transcripts = [(429, "transcripts_full")].into());
    assert_eq!(sandbox.run(plain_work("Three")).await.ending, Ending::Completed, "it fails nothing");
    let note =
        "the conversation could not be archived: refused for a test; it is kept in the session's home alone";
    assert_eq!(sandbox.notes(), [note]);
}

#[tokio::test]
async fn a_conversation_of_the_bound_is_archived_and_a_longer_one_is_told() {
    let script = |bytes: usize| {
        KEEPING.replace(
            "        file.write(json.dumps({\"said\": text}) + \"\\n\")\n        file.write('{\"cut off')\n",
            &format!("        file.write('x' * {} + '\\n')\n", bytes - 1),
        )
    };
    for (bytes, notes) in [(TRANSCRIPT_BYTES, 0), (TRANSCRIPT_BYTES + 1, 1)] {
        let mut sandbox = Sandbox::with_agent(&script(bytes));
        sandbox.gateway.with(|state| state.transcript = Some(Vec::new()));
        assert_eq!(sandbox.run(plain_work("One")).await.ending, Ending::Completed, "it fails nothing");
        let kept = sandbox.gateway.with(|state| state.transcript.as_ref().unwrap().len());
        assert_eq!((kept, sandbox.notes().len()), (if notes == 0 { bytes } else { 0 }, notes));
        assert!(sandbox.notes().iter().all(|note| note.contains("could not be archived: it is too long")));
    }
}

#[tokio::test]
async fn a_run_that_is_stopped_archives_its_conversation() {
    let mut sandbox = Sandbox::with_agent(&KEEPING.replace("    done(uuid)\n", "    wait_for_interrupt()\n"));
    sandbox.gateway.with(|state| state.transcript = Some(Vec::new()));
    let work = plain_work("One");
    sandbox.deliver(work.clone());
    sandbox.start();
    let log = sandbox.place("home/agent.log");
    let begun = async {
        while !std::fs::read_to_string(&log).unwrap_or_default().contains("--session-id") {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(crate::gateway::PATIENCE, begun).await.unwrap();
    sandbox.stop(&work.run, StopReason::Cancel);
    let outcome = sandbox.outcome(&work.run).await;
    sandbox.exit().await;
    assert_eq!(outcome.ending, Ending::Stopped(StopReason::Cancel));
    assert_eq!(archived(&sandbox), SAID);
}

const LOOKING: &str = "
def prompt(uuid, text, number):
    log(' '.join(sorted(os.listdir('.'))))
    done(uuid)
";

#[tokio::test]
async fn a_fresh_checkout_goes_on_from_the_branch_that_was_pushed_or_else_from_its_base() {
    for (pushed, files) in [(true, ".git a.txt earlier.txt"), (false, ".git a.txt")] {
        let mut sandbox = Sandbox::with_repository(LOOKING);
        if pushed {
            git(&sandbox.place("seed"), &["checkout", "-q", "-b", BRANCH]);
            sandbox.seed("earlier.txt", "x\n", "feat: earlier");
        }
        let mut work = git_work("Go on");
        work.publish = Publish::None;
        work.git.as_mut().unwrap().go_on = true;
        let outcome = sandbox.run(work).await;
        assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
        assert_eq!(sandbox.agent_log()[1], files);
        assert_eq!(sandbox.workspace(&["branch", "--show-current"]), BRANCH);
    }
}
