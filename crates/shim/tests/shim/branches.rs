//! Where work begins: clones that fail, repositories of every shape, and workspaces that are there already.

use caisson_domain::protocol::{Ending, JournalBody};
use caisson_domain::run::FailureKind;

use crate::publishing::{COMMITTING, assert_published, pushed_messages};
use crate::sandbox::{BRANCH, Sandbox, failed, git_work, kinds, run_id};

#[tokio::test]
async fn a_failed_clone_says_why() {
    let mut sandbox = Sandbox::with_repository(COMMITTING);
    let mut work = git_work("Fix it");
    work.git.as_mut().unwrap().base = Some("nowhere".parse().unwrap());
    let message = failed(&sandbox.run(work).await, FailureKind::RepoUnreachable);
    assert_eq!(message, "branch \"nowhere\" does not exist in the repository; name one that does");
    assert!(!kinds(&sandbox.bodies()).contains(&"agent_started".to_owned()));

    for (code, kind) in
        [("repo_auth", FailureKind::RepoAuth), ("repo_unreachable", FailureKind::RepoUnreachable)]
    {
        let mut sandbox = Sandbox::with_repository(COMMITTING);
        let said = caisson_domain::protocol::DoorProblem {
            code: code.to_owned(),
            message: "give a token".to_owned(),
        };
        sandbox.gateway.with(|state| state.refuse_git = Some(("upload-pack".to_owned(), said)));
        assert_eq!(failed(&sandbox.run(git_work("Fix it")).await, kind), "give a token");
    }

    let mut sandbox = Sandbox::with_repository(COMMITTING);
    sandbox.set("path", "/nowhere");
    let message = failed(&sandbox.run(git_work("Fix it")).await, FailureKind::BadWorkflow);
    assert!(message.contains("no git"), "{message}");
}

/// Who may push tags may not write what steers: a branch is a branch.
#[tokio::test]
async fn a_tag_is_not_taken_for_the_branch_that_is_named() {
    for is_anchor in [true, false] {
        let mut sandbox = Sandbox::with_repository(COMMITTING);
        sandbox.remote(&["tag", "release/1", "main"]);
        let mut work = git_work("Fix it");
        let git = work.git.as_mut().unwrap();
        git.base = Some("release/1".parse().unwrap());
        git.anchor = is_anchor.then(|| "release/1".parse().unwrap());
        let message = failed(&sandbox.run(work.clone()).await, FailureKind::RepoUnreachable);
        assert_eq!(message, "branch \"release/1\" does not exist in the repository; name one that does");
        assert!(!kinds(&sandbox.bodies()).contains(&"agent_started".to_owned()));

        // A branch of that name is taken, whatever the tag is.
        sandbox.seed("a.txt", "branch\n", "feat: go on");
        sandbox.remote(&["branch", "release/1", "main"]);
        sandbox.begin_anew();
        work.run = run_id(2);
        let outcome = sandbox.run(work).await;
        assert_published(&sandbox, &outcome);
        let range = format!("{BRANCH}^");
        assert_eq!(sandbox.remote(&["log", "-1", "--format=%s", &range]), "feat: go on");
    }
}

#[tokio::test]
async fn the_default_branch_is_taken_where_none_is_named() {
    let mut sandbox = Sandbox::with_repository(COMMITTING);
    sandbox.remote(&["symbolic-ref", "HEAD", "refs/heads/trunk"]);
    sandbox.remote(&["branch", "-m", "main", "trunk"]);
    let mut work = git_work("Fix it");
    work.git.as_mut().unwrap().base = None;
    let outcome = sandbox.run(work).await;
    assert_eq!(outcome.ending, Ending::Completed);
    assert_eq!(sandbox.remote(&["log", "--format=%s", &format!("trunk..{BRANCH}")]), "fix: two");

    let mut sandbox = Sandbox::with_repository(COMMITTING);
    sandbox.remote(&["symbolic-ref", "HEAD", "refs/heads/gone"]);
    let mut work = git_work("Fix it");
    work.git.as_mut().unwrap().base = None;
    let message = failed(&sandbox.run(work).await, FailureKind::RepoUnreachable);
    assert!(message.contains("default branch does not exist"), "{message}");
}

#[tokio::test]
async fn an_empty_repository_gets_its_first_commit() {
    let mut sandbox = Sandbox::with_repository(COMMITTING);
    sandbox.remote(&["update-ref", "-d", "refs/heads/main"]);
    let mut work = git_work("Begin");
    work.git.as_mut().unwrap().base = None;
    let outcome = sandbox.run(work).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(sandbox.remote(&["log", "--format=%s", BRANCH]), "fix: two");
    let prepared = JournalBody::Prepared { base_commit: None, branch: Some(BRANCH.parse().unwrap()) };
    assert!(sandbox.bodies().contains(&prepared));
    assert!(sandbox.artifact("diff.patch").unwrap().contains("+two"));
}

#[tokio::test]
async fn a_branch_can_be_its_own_base() {
    let mut sandbox = Sandbox::with_repository(COMMITTING);
    let mut work = git_work("Go on");
    work.git.as_mut().unwrap().branch = "main".parse().unwrap();
    let outcome = sandbox.run(work).await;
    assert_eq!(outcome.ending, Ending::Completed);
    assert_eq!(sandbox.remote(&["log", "--format=%s", "main"]), "fix: two\nfeat: begin");
}

#[tokio::test]
async fn a_follow_up_keeps_what_is_there() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    if text == 'fail':
        write('a.txt', 'two\\n'); commit('fix: two'); write('rest.txt', 'rest\\n')
        done(uuid, is_error=True, terminal_reason='max_turns')
    elif text == 'go on':
        log(open('rest.txt').read().strip())
        commit('fix: rest')
        done(uuid)
",
    );
    let outcome = sandbox.run(git_work("fail")).await;
    failed(&outcome, FailureKind::MaxTurns);
    assert!(sandbox.artifact("uncommitted.patch").unwrap().contains("+rest"));
    // A git that was killed left its lock.
    std::fs::write(sandbox.place("workspace/.git/index.lock"), "").unwrap();
    let mut second = git_work("go on");
    second.run = run_id(2);
    sandbox.begin_anew();
    let outcome = sandbox.run(second).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(
        pushed_messages(&sandbox),
        "fix: two\n\nfix: rest",
        "work of the failed run is published as well"
    );
    assert!(sandbox.agent_log().contains(&"rest".to_owned()));
}

#[tokio::test]
async fn a_workspace_whose_repository_is_gone_is_left_alone() {
    let mut sandbox = Sandbox::with_repository(COMMITTING);
    std::fs::write(sandbox.place("workspace/precious.txt"), "x").unwrap();
    let message = failed(&sandbox.run(git_work("Fix it")).await, FailureKind::PolicyDenied);
    assert!(message.contains("no repository any more"), "{message}");
    assert!(sandbox.place("workspace/precious.txt").exists());
}

#[tokio::test]
async fn remains_of_a_checkout_that_was_not_finished_are_made_anew() {
    let mut sandbox = Sandbox::with_repository(COMMITTING);
    std::fs::create_dir_all(sandbox.place("workspace/.git/objects")).unwrap();
    std::fs::write(sandbox.place("workspace/a.txt"), "half").unwrap();
    std::fs::write(sandbox.place("home/.caisson-preparing"), "").unwrap();
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_published(&sandbox, &outcome);
    assert!(!sandbox.place("home/.caisson-preparing").exists());
}

#[tokio::test]
async fn a_directory_in_the_place_of_the_mark_neither_empties_a_workspace_nor_keeps_it_from_being_filled() {
    let mut sandbox = Sandbox::with_repository(COMMITTING);
    std::fs::create_dir_all(sandbox.place("home/.caisson-preparing/deeper")).unwrap();
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_published(&sandbox, &outcome);
    assert!(!sandbox.place("home/.caisson-preparing").exists());
    std::fs::create_dir_all(sandbox.place("home/.caisson-preparing/deeper")).unwrap();
    std::fs::write(sandbox.place("workspace/precious.txt"), "x").unwrap();
    let mut second = git_work("go on");
    second.run = run_id(2);
    sandbox.begin_anew();
    sandbox.run(second).await;
    assert!(sandbox.place("workspace/precious.txt").exists());
}
