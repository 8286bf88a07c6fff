//! Replies of git that break off, and agents that put pipes where files are expected, replace the journal, or leave
//! processes behind.

use std::os::unix::fs::PermissionsExt;

use caisson_domain::protocol::{Ending, StopReason};
use caisson_domain::run::FailureKind;

use crate::gateway::{PATIENCE, json_line};
use crate::publishing::{COMMITTING, assert_published, pushed_messages};
use crate::sandbox::{BRANCH, Sandbox, failed, git_work, kinds, plain_work, run_id};

#[tokio::test]
async fn a_clone_whose_reply_breaks_off_is_made_anew() {
    let mut sandbox = Sandbox::with_repository(COMMITTING);
    sandbox.gateway.with(|state| state.cut_git = Some(("git-upload-pack", 100)));
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(sandbox.gateway.with(|state| state.cut_git), None, "it broke off");
}

#[tokio::test]
async fn a_push_whose_reply_breaks_off_is_repeated_and_pushes_one_commit() {
    for bytes in [0, 10] {
        let mut sandbox = Sandbox::with_repository(COMMITTING);
        sandbox.gateway.with(|state| state.cut_git = Some(("git-receive-pack", bytes)));
        let outcome = sandbox.run(git_work("Fix it")).await;
        assert_published(&sandbox, &outcome);
        assert_eq!(sandbox.gateway.with(|state| state.cut_git), None, "it broke off");
        assert_eq!(sandbox.remote(&["rev-list", "--count", &format!("main..{BRANCH}")]), "1");
    }
}

#[tokio::test]
async fn a_refused_push_that_the_branch_has_all_the_same_is_a_push() {
    let mut sandbox = Sandbox::with_repository(COMMITTING);
    let hook = sandbox.place("bare.git/hooks/update");
    std::fs::write(&hook, "#!/bin/sh\ngit update-ref \"$1\" \"$3\"\nexit 1\n").unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_published(&sandbox, &outcome);
}

/// An agent that puts a pipe where git or the shim expects a file.
fn piping(place: &str) -> String {
    format!(
        "
def prompt(uuid, text, number):
    write('a.txt', 'two\\n'); commit('fix: two')
    if text == 'pipe':
        if os.path.lexists('{place}'):
            os.remove('{place}')
        os.mkfifo('{place}')
    done(uuid)
"
    )
}

#[tokio::test]
async fn a_pipe_among_the_files_fails_the_run_in_a_bounded_time() {
    for place in [".git/index", ".git/HEAD"] {
        let mut sandbox = Sandbox::with_repository(&piping(place));
        sandbox.set("git_ms", 4_000);
        let message = failed(&sandbox.run(git_work("pipe")).await, FailureKind::Internal);
        assert!(message.contains("did not end within 4 s"), "{place}: {message}");
    }
}

#[tokio::test]
async fn a_run_whose_git_is_blocked_by_a_pipe_can_be_stopped() {
    let mut sandbox = Sandbox::with_repository(&piping(".git/HEAD"));
    let work = git_work("pipe");
    sandbox.deliver(work.clone());
    sandbox.start();
    let publishes = |state: &crate::gateway::State| {
        kinds(&state.bodies()).contains(&"agent_started".to_owned())
            && state.bodies().iter().filter_map(json_line).any(|line| line["type"] == "result")
    };
    sandbox.gateway.wait_for("the agent's result", |state| publishes(state).then_some(())).await;
    sandbox.stop(&work.run, StopReason::Cancel);
    let outcome = sandbox.outcome(&work.run).await;
    assert_eq!(outcome.ending, Ending::Stopped(StopReason::Cancel));
    sandbox.exit().await;
}

#[tokio::test]
async fn a_pipe_in_the_place_of_the_shims_own_notes_is_no_hindrance() {
    let mut sandbox = Sandbox::with_repository(&piping(".git/caisson-base"));
    let outcome = sandbox.run(git_work("pipe")).await;
    assert_published(&sandbox, &outcome);
    std::fs::remove_file(sandbox.place("workspace/.git/caisson-base")).unwrap();
    let pipe = sandbox.place("workspace/.git/caisson-base");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    sandbox.begin_anew();
    let mut second = git_work("read it");
    second.run = run_id(2);
    second.git.as_mut().unwrap().commit_subject = "more".to_owned();
    std::fs::write(sandbox.place("workspace/b.txt"), "more").unwrap();
    let outcome = sandbox.run(second).await;
    assert_published(&sandbox, &outcome);
    assert!(pushed_messages(&sandbox).starts_with("fix: two"));
}

#[tokio::test]
async fn the_diff_is_of_the_commit_that_is_pushed_and_not_of_another_in_its_place() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    write('a.txt', 'two\\n'); commit('fix: two')
    sh('git', 'replace', 'HEAD', 'HEAD~1')
    done(uuid)
",
    );
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_published(&sandbox, &outcome);
    assert!(sandbox.artifact("diff.patch").unwrap().contains("+two"));
}

#[tokio::test]
async fn what_the_agent_left_running_is_ended_before_publishing() {
    let mut sandbox = Sandbox::with_repository(
        "
LEFT = []
def prompt(uuid, text, number):
    if number == 0:
        write('a.txt', 'two\\n')
        LEFT.append(subprocess.Popen(['sleep', '1000'], start_new_session=True))
        LEFT.append(subprocess.Popen(['sleep', '1000']))
        done(uuid)
    else:
        log(' '.join(str(process.wait()) for process in LEFT))
        done(uuid, 'fix: two')
",
    );
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_published(&sandbox, &outcome);
    assert!(sandbox.agent_log().contains(&"-9 -9".to_owned()), "{:?}", sandbox.agent_log());
}

#[tokio::test]
async fn a_journal_that_the_agent_replaces_is_not_what_is_sent() {
    let mut sandbox = Sandbox::with_agent(
        "
def prompt(uuid, text, number):
    home = os.environ['HOME']
    while not os.path.exists(home + '/away'):
        sh('true')
    emit({'type': 'genuine'})
    journal = home + '/../journal/'
    segments = []
    while not any('genuine' in segment for segment in segments):
        names = [name for name in os.listdir(journal) if name.endswith('.jsonl')]
        segments = [open(journal + name).read() for name in names]
    for name, segment in zip(names, segments):
        with open(home + '/forged', 'w') as file:
            file.write(segment.replace('genuine', 'forgery'))
        os.replace(home + '/forged', journal + name)
    write(home + '/replaced', '')
    done(uuid)
",
    );
    let work = plain_work("x");
    sandbox.deliver(work.clone());
    sandbox.start();
    let begun = |state: &crate::gateway::State| state.bodies().iter().any(|body| json_line(body).is_some());
    sandbox.gateway.wait_for("the agent", |state| begun(state).then_some(())).await;
    sandbox.gateway.with(|state| state.store_nothing = true);
    std::fs::write(sandbox.place("home/away"), "").unwrap();
    let replaced = async {
        while !sandbox.place("home/replaced").exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, replaced).await.expect("the agent replaces the journal");
    sandbox.gateway.with(|state| state.store_nothing = false);
    assert_eq!(sandbox.outcome(&work.run).await.ending, Ending::Completed);
    sandbox.exit().await;
    let stored = sandbox.gateway.with(|state| String::from_utf8_lossy(&state.journal).into_owned());
    assert!(stored.contains("genuine") && !stored.contains("forgery"), "{stored}");
}
