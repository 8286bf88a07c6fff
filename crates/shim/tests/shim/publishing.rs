//! From a fresh clone to the pushed branch, and every other way the work can go.

use caisson_domain::protocol::{Ending, JournalBody, MessageAuthor, Outcome};
use caisson_domain::run::FailureKind;

use crate::sandbox::{BRANCH, Sandbox, failed, git, git_work, kinds};

/// An agent that changes a file and answers questions with what `answers` says.
fn changing(answers: &str) -> String {
    format!(
        "
ANSWERS = {answers}
def prompt(uuid, text, number):
    if number == 0:
        write('a.txt', 'one\\ntwo\\n')
        write('new file.txt', 'new\\n')
        done(uuid, 'Changed.')
    else:
        log('asked ' + str('commit message' in text) + ' ' + str('new file.txt' in text))
        done(uuid, ANSWERS[number - 1])
"
    )
}

pub(crate) fn commits(sandbox: &Sandbox) -> Vec<(String, MessageAuthor)> {
    let commit = |body| match body {
        JournalBody::Commit { message, author, .. } => Some((message, author)),
        _ => None,
    };
    sandbox.bodies().into_iter().filter_map(commit).collect()
}

pub(crate) fn pushed_messages(sandbox: &Sandbox) -> String {
    sandbox.remote(&["log", "--format=%B", "--reverse", &format!("main..{BRANCH}")])
}

pub(crate) fn assert_published(sandbox: &Sandbox, outcome: &Outcome) {
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert!(outcome.pushed);
    assert_eq!(outcome.head.as_deref(), Some(sandbox.remote(&["rev-parse", BRANCH]).as_str()));
}

#[tokio::test]
async fn uncommitted_work_is_committed_with_the_agents_message_and_pushed() {
    let mut sandbox = Sandbox::with_repository(&changing("['```\\nfeat(x): two files\\n\\nWhy.\\n```']"));
    let outcome = sandbox.run(git_work("Change it")).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(outcome.result.as_deref(), Some("Changed."));
    assert_eq!(pushed_messages(&sandbox), "feat(x): two files\n\nWhy.");
    assert_eq!(commits(&sandbox), [("feat(x): two files\n\nWhy.".to_owned(), MessageAuthor::Agent)]);
    assert_eq!(sandbox.agent_log()[2], "asked True True");
    let author = sandbox.remote(&["log", "-1", "--format=%an <%ae> %cn", BRANCH]);
    assert_eq!(author, "Caisson \"the\" Agent <agent@example.com> Caisson \"the\" Agent");
    let diff = sandbox.artifact("diff.patch").unwrap();
    assert!(diff.contains("+two") && diff.contains("b/new file.txt"), "{diff}");
    assert_eq!(sandbox.artifact("work.bundle"), None);
    let records = sandbox.bodies();
    let base = sandbox.remote(&["rev-parse", "main"]);
    let prepared = JournalBody::Prepared { base_commit: Some(base), branch: Some(BRANCH.parse().unwrap()) };
    assert!(records.contains(&prepared));
    let told = kinds(&records);
    for (first, second) in [
        ("phase prepare", "prepared"),
        ("prepared", "phase agent"),
        ("agent_started", "phase publish"),
        ("phase publish", "commit"),
        ("commit", "agent_exited"),
        ("agent_exited", "finished"),
    ] {
        let at = |kind: &str| told.iter().position(|told| told == kind).unwrap();
        assert!(at(first) < at(second), "{told:?}");
    }
    assert_eq!(told.last().unwrap(), "finished");
}

#[tokio::test]
async fn what_the_shim_tells_comes_behind_the_last_line_of_a_turn() {
    let mut sandbox = Sandbox::with_repository(
        "
def state(uuid, word):
    emit({'type': 'command_lifecycle', 'command_uuid': uuid, 'state': word})

def prompt(uuid, text, number):
    state(uuid, 'started')
    write('a.txt', 'two\\n')
    done(uuid, 'fix: two')
    # What an agent still runs then is ended by the shim, which is no fault of the agent's.
    for _ in range(20):
        subprocess.run(['true'])
    state(uuid, 'completed')
",
    );
    sandbox.set("quiet_ms", 60_000);
    let outcome = sandbox.run(git_work("Change it")).await;
    assert_published(&sandbox, &outcome);
    let told = kinds(&sandbox.bodies());
    let at = |kind: &str| told.iter().position(|told| told == kind).unwrap();
    let lines = |from: usize, to: usize| told[from..to].iter().filter(|kind| *kind == "line").count();
    // Of each turn: its beginning, the two words on how far it is, and its result.
    assert_eq!(lines(at("agent_started"), at("phase publish")), 4, "{told:?}");
    assert_eq!(lines(at("phase publish"), at("commit")), 4, "{told:?}");
}

#[tokio::test]
async fn a_bad_message_is_asked_for_once_more_and_then_stood_in_for() {
    let mut sandbox = Sandbox::with_repository(&changing("['I changed it', 'fix: now right']"));
    let outcome = sandbox.run(git_work("Change it")).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(commits(&sandbox), [("fix: now right".to_owned(), MessageAuthor::Agent)]);

    let mut sandbox = Sandbox::with_repository(&changing("['I changed it', 'no', 'fix: too late']"));
    let outcome = sandbox.run(git_work("Change it")).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(pushed_messages(&sandbox), "fix: the reported bug");
    assert_eq!(commits(&sandbox), [("fix: the reported bug".to_owned(), MessageAuthor::Fallback)]);
}

#[tokio::test]
async fn an_agent_that_does_not_answer_in_time_is_stood_in_for() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    if number == 0:
        write('a.txt', 'two\\n')
        done(uuid)
    while number > 0:
        heard()
",
    );
    sandbox.set("question_ms", 300);
    sandbox.set("exit_ms", 300);
    let outcome = sandbox.run(git_work("Change it")).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(pushed_messages(&sandbox), "fix: the reported bug");
}

#[tokio::test]
async fn the_agents_own_good_commits_are_pushed_as_they_are() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    write('a.txt', 'two\\n'); commit('fix: one')
    write('a.txt', 'three\\n'); commit('fix: two')
    done(uuid)
",
    );
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(pushed_messages(&sandbox), "fix: one\n\nfix: two");
    assert_eq!(sandbox.agent_log().len(), 1, "nothing was asked");
    let author = sandbox.remote(&["log", "-1", "--format=%an", BRANCH]);
    assert_eq!(author, "Caisson \"the\" Agent", "the checkout carries the identity");
}

#[tokio::test]
async fn a_last_commit_with_a_bad_message_gets_a_better_one_from_the_agent() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    if number == 0:
        write('a.txt', 'two\\n'); commit('fix: one')
        write('a.txt', 'three\\n'); commit('stuff')
        done(uuid)
    else:
        log('commit message' in text and 'stuff' in text and 'a.txt' in text and 'asked')
        done(uuid, 'fix: two')
",
    );
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(pushed_messages(&sandbox), "fix: one\n\nfix: two");
    assert_eq!(sandbox.agent_log()[2], "asked");
    let authors: Vec<_> = commits(&sandbox).into_iter().map(|(_, author)| author).collect();
    assert_eq!(authors, [MessageAuthor::Agent, MessageAuthor::Agent]);
    assert_eq!(sandbox.workspace(&["status", "--porcelain"]), "");
}

#[tokio::test]
async fn several_bad_messages_are_reworded_and_nothing_else_changes() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    os.environ['GIT_AUTHOR_DATE'] = '2001-02-03T04:05:06+0100'
    write('a.txt', 'two\\n'); commit('First try')
    write('a.txt', 'three\\n'); commit('feat: good')
    write('b.txt', 'b\\n'); commit('oops\\n\\nA body.')
    done(uuid)
",
    );
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(pushed_messages(&sandbox), "fix: First try\n\nfeat: good\n\nfix: oops\n\nA body.");
    assert_eq!(
        commits(&sandbox).into_iter().map(|(_, author)| author).collect::<Vec<_>>(),
        [MessageAuthor::Fallback, MessageAuthor::Agent, MessageAuthor::Fallback]
    );
    let dates = sandbox.remote(&["log", "--format=%ai", &format!("main..{BRANCH}")]);
    assert_eq!(dates.lines().filter(|date| date.starts_with("2001-02-03 04:05:06 +0100")).count(), 3);
    assert_eq!(sandbox.remote(&["show", &format!("{BRANCH}:a.txt")]), "three");
}

#[tokio::test]
async fn history_with_a_merge_and_pushed_history_keep_their_messages() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    sh('git', 'checkout', '-q', '-b', 'side'); write('s.txt', 's\\n'); commit('side')
    sh('git', 'checkout', '-q', '-'); write('a.txt', 'two\\n'); commit('two')
    sh('git', 'merge', '-q', '--no-edit', 'side')
    done(uuid)
",
    );
    let outcome = sandbox.run(git_work("Merge")).await;
    assert_published(&sandbox, &outcome);
    assert!(sandbox.notes()[0].contains("its history has a merge"));

    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    write('a.txt', 'two\\n'); commit('two'); sh('git', 'push', '-q', 'origin', 'HEAD')
    write('a.txt', 'three\\n'); commit('fix: three')
    done(uuid)
",
    );
    let outcome = sandbox.run(git_work("Push it yourself")).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(pushed_messages(&sandbox), "two\n\nfix: three");
    assert!(sandbox.notes()[0].contains("it is pushed already"));
}

#[tokio::test]
async fn work_on_another_branch_is_put_on_the_runs_branch() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    sh('git', 'checkout', '-q', '--detach'); write('a.txt', 'two\\n'); commit('fix: two')
    done(uuid)
",
    );
    let outcome = sandbox.run(git_work("Detach")).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(pushed_messages(&sandbox), "fix: two");
    assert_eq!(sandbox.workspace(&["branch", "--show-current"]), BRANCH);
    assert!(sandbox.notes()[0].contains("left its work on no branch"));

    // It looked at another branch at the end, and its work is where it should be.
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    write('a.txt', 'two\\n'); commit('fix: two'); sh('git', 'checkout', '-q', 'main')
    done(uuid)
",
    );
    let outcome = sandbox.run(git_work("Look away")).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(pushed_messages(&sandbox), "fix: two");
}

#[tokio::test]
async fn history_that_does_not_come_after_the_base_is_not_pushed() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    sh('git', 'checkout', '-q', '--orphan', 'new'); commit('feat: all new')
    done(uuid)
",
    );
    let outcome = sandbox.run(git_work("Begin anew")).await;
    let message = failed(&outcome, FailureKind::PolicyDenied);
    assert!(message.contains("replaced the branch's history"), "{message}");
    assert_eq!(sandbox.remote(&["branch", "--list"]), "* main");
    assert!(sandbox.artifact("work.bundle").is_some());
}

#[tokio::test]
async fn a_run_that_changes_nothing_pushes_nothing() {
    let mut sandbox = Sandbox::with_repository("def prompt(uuid, text, number):\n    done(uuid)\n");
    let outcome = sandbox.run(git_work("Look")).await;
    assert_eq!((outcome.ending, outcome.pushed), (Ending::Completed, false));
    assert_eq!(outcome.head, Some(sandbox.remote(&["rev-parse", "main"])));
    assert_eq!(sandbox.remote(&["branch", "--list"]), "* main");
    assert_eq!(sandbox.artifact("diff.patch").as_deref(), Some(""));
}

/// An agent that changes `a.txt` and commits, while somebody else pushes the run's branch.
pub(crate) fn racing(sandbox: &Sandbox, file: &str) {
    git(&sandbox.place("seed"), &["checkout", "-q", "-b", BRANCH]);
    sandbox.seed(file, "somebody else\n", "docs: somebody else");
}

pub(crate) const COMMITTING: &str = "
def prompt(uuid, text, number):
    write('a.txt', 'two\\n'); commit('fix: two')
    done(uuid)
";

#[tokio::test]
async fn a_branch_that_moved_on_is_rebased_onto_once() {
    let mut sandbox = Sandbox::with_repository(COMMITTING);
    racing(&sandbox, "other.txt");
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(pushed_messages(&sandbox), "docs: somebody else\n\nfix: two");
    assert_eq!(commits(&sandbox).len(), 2, "the commit is told of again, since the rebase made a new one");
    let told = |body: &JournalBody| matches!(body, JournalBody::Commit { commit, .. } if Some(commit) == outcome.head.as_ref());
    assert!(sandbox.bodies().iter().any(told));
}

#[tokio::test]
async fn work_that_the_branch_has_already_is_not_claimed_as_pushed() {
    let pulling = "
def prompt(uuid, text, number):
    sh('git', 'fetch', '-q', 'origin', 'BRANCH'); sh('git', 'reset', '-q', '--hard', 'FETCH_HEAD')
    done(uuid)
";
    for agent in [COMMITTING.to_owned(), pulling.replace("BRANCH", BRANCH)] {
        let mut sandbox = Sandbox::with_repository(&agent);
        git(&sandbox.place("seed"), &["checkout", "-q", "-b", BRANCH]);
        sandbox.seed("a.txt", "two\n", "fix: the same by somebody else");
        let before = sandbox.remote(&["rev-parse", BRANCH]);
        let outcome = sandbox.run(git_work("Fix it")).await;
        assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
        assert!(!outcome.pushed, "the gateway carried nothing");
        assert_eq!(outcome.head.as_ref(), Some(&before));
        assert_eq!(sandbox.remote(&["rev-parse", BRANCH]), before);
        let notes = sandbox.notes();
        assert!(notes.iter().any(|note| note.contains("has this change already")), "{notes:?}");
    }
}

#[tokio::test]
async fn a_conflict_names_its_files_and_the_work_is_saved() {
    let mut sandbox = Sandbox::with_repository(COMMITTING);
    racing(&sandbox, "a.txt");
    let outcome = sandbox.run(git_work("Fix it")).await;
    let message = failed(&outcome, FailureKind::Conflict);
    assert!(message.contains("a.txt"), "{message}");
    let evidence = crate::sandbox::failure(&outcome).evidence.unwrap();
    assert!(evidence.starts_with("error: could not apply") && !evidence.contains("hint:"), "{evidence}");
    assert!(!outcome.pushed);
    assert_eq!(outcome.head, Some(sandbox.workspace(&["rev-parse", "HEAD"])));
    assert_eq!(pushed_messages(&sandbox), "docs: somebody else");
    assert_eq!(sandbox.workspace(&["status", "--porcelain"]), "", "the rebase was given up");
    assert!(sandbox.artifact("work.bundle").is_some() && sandbox.artifact("diff.patch").is_some());
}

#[tokio::test]
async fn an_unfinished_merge_is_a_conflict() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    sh('git', 'checkout', '-q', '-b', 'side'); write('a.txt', 'side\\n'); commit('fix: side')
    sh('git', 'checkout', '-q', '-'); write('a.txt', 'two\\n'); commit('fix: two')
    subprocess.run(['git', 'merge', '-q', 'side'], stdout=subprocess.DEVNULL)
    done(uuid)
",
    );
    let outcome = sandbox.run(git_work("Merge")).await;
    let message = failed(&outcome, FailureKind::Conflict);
    assert!(message.contains("unfinished: a.txt"), "{message}");
    assert!(sandbox.artifact("uncommitted.patch").unwrap().contains("<<<<<<<"));
}

#[tokio::test]
async fn an_unfinished_rebase_is_a_conflict() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    sh('git', 'checkout', '-q', '-b', 'side'); write('a.txt', 'side\\n'); commit('fix: side')
    sh('git', 'checkout', '-q', '-'); write('a.txt', 'two\\n'); commit('fix: two')
    subprocess.run(['git', 'rebase', '-q', 'side'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    sh('git', 'checkout', '-q', '--theirs', 'a.txt'); sh('git', 'add', 'a.txt')
    done(uuid)
",
    );
    let outcome = sandbox.run(git_work("Rebase")).await;
    assert_eq!(failed(&outcome, FailureKind::Conflict), "the agent left a rebase unfinished");
    assert!(sandbox.place("workspace/.git/rebase-merge").exists(), "it is the agent's");
    assert!(sandbox.artifact("work.bundle").is_some());
}

#[tokio::test]
async fn changes_on_another_branch_come_along_to_the_runs_branch() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    if number == 0:
        write('b.txt', 'b\\n'); commit('fix: b')
        sh('git', 'checkout', '-q', 'main'); write('a.txt', 'two\\n')
    done(uuid, 'fix: a')
",
    );
    let outcome = sandbox.run(git_work("Look away")).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(pushed_messages(&sandbox), "fix: b\n\nfix: a");
}

#[tokio::test]
async fn a_refused_push_says_the_gateways_or_the_git_hosts_words() {
    let refusal = |code: &str, message: &str| {
        let problem =
            caisson_domain::protocol::DoorProblem { code: code.to_owned(), message: message.to_owned() };
        Some(("git-receive-pack".to_owned(), problem))
    };
    let mut sandbox = Sandbox::with_repository(COMMITTING);
    sandbox.gateway.with(|state| state.refuse_git = refusal("push_refused", "this branch may not be pushed"));
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_eq!(failed(&outcome, FailureKind::PushRejected), "this branch may not be pushed");
    assert!(sandbox.artifact("work.bundle").is_some());

    let mut sandbox = Sandbox::with_repository(COMMITTING);
    let hook = sandbox.place("bare.git/hooks/update");
    std::fs::write(&hook, "#!/bin/sh\necho no pushing today >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_eq!(failed(&outcome, FailureKind::PushRejected), "the git host refused the push: hook declined");
    let evidence = crate::sandbox::failure(&outcome).evidence.unwrap();
    assert!(evidence.contains("no pushing today"), "{evidence}");
}

#[tokio::test]
async fn the_repositorys_configuration_does_not_steer_publishing() {
    let mut sandbox = Sandbox::with_repository(
        "
def prompt(uuid, text, number):
    if number == 0:
        write('a.txt', 'two\\n')
        for name in ['pre-commit', 'commit-msg', 'pre-push', 'post-commit']:
            write('.git/hooks-' + name, '#!/bin/sh\\ntouch ' + os.environ['HOME'] + '/hooked\\nexit 1\\n')
        os.makedirs('.git/hooks', exist_ok=True)
        for name in ['pre-commit', 'commit-msg', 'pre-push', 'post-commit']:
            os.rename('.git/hooks-' + name, '.git/hooks/' + name)
            os.chmod('.git/hooks/' + name, 0o755)
        for key, value in [('commit.gpgsign', 'true'), ('push.gpgsign', 'true'), ('core.pager', 'false'),
                           ('log.showSignature', 'true'), ('color.ui', 'always'), ('diff.external', 'false'),
                           ('diff.noprefix', 'true'), ('status.showUntrackedFiles', 'no')]:
            sh('git', 'config', key, value)
        done(uuid)
    else:
        done(uuid, 'fix: two')
",
    );
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(pushed_messages(&sandbox), "fix: two");
    assert!(!sandbox.place("home/hooked").exists());
    let diff = sandbox.artifact("diff.patch").unwrap();
    assert!(diff.starts_with("diff --git a/a.txt b/a.txt"), "{diff}");
}
