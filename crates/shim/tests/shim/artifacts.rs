//! What is kept of a run beside its branch.

use caisson_domain::protocol::{Ending, StopReason};
use caisson_domain::run::FailureKind;
use caisson_domain::workflow::Publish;

use crate::publishing::{COMMITTING, assert_published};
use crate::sandbox::{BRANCH, Sandbox, git, git_work};

#[tokio::test]
async fn work_that_is_not_to_be_published_stays_as_artifacts() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    write('a.txt', 'two\\n'); commit('whatever')
    write('b.txt', 'b\\n'); write('a.txt', 'three\\n')
    done(uuid)
",
    );
    let mut work = git_work("Only look");
    work.publish = Publish::None;
    let outcome = sandbox.run(work).await;
    assert_eq!((outcome.ending, outcome.pushed), (Ending::Completed, false));
    assert_eq!(outcome.head, Some(sandbox.workspace(&["rev-parse", "HEAD"])));
    assert_eq!(sandbox.remote(&["branch", "--list"]), "* main");
    assert!(sandbox.artifact("diff.patch").unwrap().contains("+two"));
    let uncommitted = sandbox.artifact("uncommitted.patch").unwrap();
    assert!(uncommitted.contains("+three") && uncommitted.contains("b/b.txt"));
    assert_eq!(sandbox.workspace(&["status", "--porcelain"]), " M a.txt\n?? b.txt", "the index is as it was");
    // The bundle holds the commits: they can be fetched from it.
    let bundle = sandbox.gateway.with(|state| state.artifacts["work.bundle"].clone());
    std::fs::write(sandbox.place("work.bundle"), bundle).unwrap();
    git(&sandbox.place("seed"), &["fetch", "-q", "../work.bundle", "HEAD:saved"]);
    let saved = git(&sandbox.place("seed"), &["log", "-1", "--format=%s", "saved"]);
    assert_eq!(saved, "whatever");
}

#[tokio::test]
async fn an_artifact_is_sent_again_where_that_can_help_and_never_fails_a_run() {
    let mut sandbox = Sandbox::with_repository(COMMITTING);
    let statuses = [http::StatusCode::SERVICE_UNAVAILABLE, http::StatusCode::BAD_GATEWAY];
    sandbox.gateway.with(|state| state.refuse_artifacts = statuses.into());
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_published(&sandbox, &outcome);
    assert!(sandbox.artifact("diff.patch").unwrap().contains("+two"));

    let mut sandbox = Sandbox::with_repository(COMMITTING);
    sandbox.gateway.with(|state| state.refuse_artifacts = [http::StatusCode::FORBIDDEN].into());
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(sandbox.notes(), ["diff.patch could not be kept: not now"]);
}

#[tokio::test]
async fn an_artifact_that_is_never_taken_delays_the_end_of_published_work_for_seconds_only() {
    let mut sandbox = Sandbox::with_repository(COMMITTING);
    sandbox.set("keep_ms", 500);
    let refusals = vec![http::StatusCode::SERVICE_UNAVAILABLE; 1000];
    sandbox.gateway.with(|state| state.refuse_artifacts = refusals.into());
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(sandbox.notes(), ["diff.patch could not be kept: the gateway did not take it in time"]);
}

#[tokio::test]
async fn a_stop_after_the_push_does_not_undo_that_the_work_is_pushed() {
    let mut sandbox = Sandbox::with_repository(COMMITTING);
    sandbox.gateway.with(|state| state.hold = Some("/artifacts/"));
    let work = git_work("Fix it");
    sandbox.deliver(work.clone());
    sandbox.start();
    // The shim notes what is pushed, for the session's next run.
    let noted = sandbox.place("workspace/.git/caisson-base");
    let base = sandbox.remote(&["rev-parse", "main"]);
    let pushed = async {
        while std::fs::read_to_string(&noted).map_or(true, |noted| noted.is_empty() || noted == base) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(crate::gateway::PATIENCE, pushed).await.expect("the work is pushed");
    sandbox.stop(&work.run, StopReason::Cancel);
    let outcome = sandbox.outcome(&work.run).await;
    assert_eq!((&outcome.ending, outcome.pushed), (&Ending::Stopped(StopReason::Cancel), true));
    assert_eq!(outcome.head.as_deref(), Some(sandbox.remote(&["rev-parse", BRANCH]).as_str()));
    sandbox.gateway.with(|state| state.hold = None);
    sandbox.exit().await;
    assert_eq!(sandbox.artifact("work.bundle"), None, "the branch has it");
}

#[tokio::test]
async fn work_in_a_full_workspace_is_saved_without_what_filled_it() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    write('a.txt', 'two\\n'); write('small.txt', 'small\\n')
    with open('ballast', 'wb', buffering=0) as ballast:
        try:
            while True:
                ballast.write(os.urandom(65536))
        except OSError as error:
            sys.stderr.write(str(error) + '\\n')
    done(uuid)
",
    );
    // A small disk of its own, seen by the shim and its agent alone.
    let workspace = sandbox.place("workspace");
    let script = "mount -t tmpfs -o size=4m tmpfs \"$0\" && exec \"$@\"";
    let work = git_work("Fix it");
    sandbox.deliver(work.clone());
    std::fs::create_dir_all(&workspace).unwrap();
    sandbox.start_under(&[
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        workspace.to_str().unwrap(),
    ]);
    let outcome = sandbox.outcome(&work.run).await;
    let Ending::Failed(failure) = outcome.ending else { panic!("{outcome:?}") };
    assert_eq!(failure.kind, FailureKind::DiskFull, "{failure:?}");
    sandbox.exit().await;
    let saved = sandbox.artifact("uncommitted.patch").unwrap();
    assert!(saved.contains("+two") && saved.contains("+small") && !saved.contains("ballast"), "{saved}");
    assert!(
        sandbox.notes().iter().any(|note| note.contains("1 new files larger than")),
        "{:?}",
        sandbox.notes()
    );
}
