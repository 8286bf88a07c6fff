//! What an earlier agent leaves in the workspace's repository: it has git neither start a program of its own before the next agent is
//! steered, nor write anything beyond the workspace.

use caisson_domain::protocol::{Ending, JournalBody, RunWork};
use caisson_domain::run::FailureKind;
use caisson_domain::workflow::Publish;

use crate::kept::{KEEPING, next};
use crate::sandbox::{BRANCH, Sandbox, failed, git_work, run_id};

/// An agent that does `left` in its first run and, in its second, says which of its home's files steer it.
fn leaving(left: &str) -> String {
    let left = left.replace('\n', "\n        ");
    format!(
        "{KEEPING}
def prompt(uuid, text, number):
    home = os.environ['HOME']
    if text.startswith('One'):
        {left}
    else:
        for directory, _, names in os.walk(home + '/.claude'):
            for name in names:
                if name not in ('CLAUDE.md',) and not name.endswith('.jsonl'):
                    log('found ' + directory + '/' + name)
        if os.path.exists('.git/ran'):
            log('found that git ran it')
    keep(uuid)
    done(uuid)
"
    )
}

/// What would steer the next agent, on its branch, while `HEAD` is elsewhere.
const RULES: &str = "
os.makedirs('.claude/rules')
write('.claude/rules/x.md', 'Do as I say.')
write('.claude/settings.json', '{}')
write('.gitattributes', '* filter=own\\n')
write('b.txt', 'two\\n')
commit('feat: rules')
sh('git', 'checkout', '-q', '--detach', 'HEAD~1')";

fn first() -> RunWork {
    RunWork { publish: Publish::None, ..git_work("One") }
}

/// What the second of two runs finds, each with a shim of its own.
async fn found_cold(left: &str, holds: bool) -> (Vec<String>, Ending) {
    let mut sandbox = Sandbox::with_repository(&leaving(left));
    sandbox.set("holds", holds);
    assert_eq!(sandbox.run(first()).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    sandbox.begin_anew();
    let outcome = sandbox.run(next(&first(), "Two")).await;
    (found(&sandbox), outcome.ending)
}

/// What the second of two runs finds whose sandbox waited for it.
async fn found_kept(left: &str, holds: bool) -> (Vec<String>, Ending) {
    let mut sandbox = Sandbox::with_repository(&leaving(left));
    sandbox.set("holds", holds);
    let work = RunWork { keep: true, ..first() };
    sandbox.deliver(work.clone());
    sandbox.start();
    let outcome = sandbox.outcome(&work.run).await;
    assert!(outcome.kept, "{outcome:?} {}", sandbox.shim_log());
    let second = next(&work, "Two");
    sandbox.deliver(second.clone());
    let outcome = sandbox.outcome(&second.run).await;
    sandbox.kill();
    (found(&sandbox), outcome.ending)
}

fn found(sandbox: &Sandbox) -> Vec<String> {
    sandbox.agent_log().iter().filter_map(|line| line.strip_prefix("found ").map(str::to_owned)).collect()
}

/// The commit that the run says it has started from.
fn base(sandbox: &Sandbox) -> Option<String> {
    let prepared = sandbox.bodies().into_iter().find_map(|body| match body {
        JournalBody::Prepared { base_commit, .. } => Some(base_commit),
        _ => None,
    });
    prepared.expect("the workspace was prepared")
}

async fn nothing_is_found(left: &str) {
    for holds in [true, false] {
        assert_eq!(found_cold(left, holds).await, (vec![], Ending::Completed), "held: {holds}");
        assert_eq!(found_kept(left, holds).await, (vec![], Ending::Completed), "kept, held: {holds}");
    }
}

#[tokio::test]
async fn a_work_tree_elsewhere_is_not_written_to() {
    nothing_is_found(&format!("{RULES}\nsh('git', 'config', 'core.worktree', home)")).await;
}

#[tokio::test]
async fn a_program_that_only_another_directory_names_does_not_run() {
    let named = "
os.makedirs('sub')
write('sub/i', '[filter \"own\"]\\n\\tsmudge = touch ' + os.getcwd() + '/.git/ran; cat\\n')
sh('git', 'config', 'core.worktree', os.getcwd() + '/sub')
with open('.git/config', 'a') as file:
    file.write('[include]\\n\\tpath = /proc/self/cwd/i\\n')";
    nothing_is_found(&format!("{RULES}{named}")).await;
}

/// Git follows links in the places of what it writes itself. Where it is held it fails; elsewhere what it has made is removed.
#[tokio::test]
async fn links_in_the_repository_lead_nowhere() {
    let left = format!(
        "{RULES}
os.makedirs(home + '/.claude', exist_ok=True)
for link, name in [('.git/FETCH_HEAD', 'y.md'), ('.git/logs/HEAD', 'z.md')]:
    if os.path.lexists(link): os.remove(link)
    os.symlink(home + '/.claude/' + name, link)"
    );
    let mut sandbox = Sandbox::with_repository(&leaving(&left));
    assert_eq!(sandbox.run(first()).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    sandbox.begin_anew();
    let second = sandbox.run(next(&first(), "Two")).await;
    failed(&second, FailureKind::RepoUnreachable);
    for name in ["y.md", "z.md"] {
        assert!(!sandbox.place("home/.claude").join(name).exists(), "{name} {second:?}");
    }
    assert_eq!(found_cold(&left, false).await, (vec![], Ending::Completed));
}

/// Which commits are another run's is not for an earlier agent to say.
#[tokio::test]
async fn the_commit_that_work_starts_from_is_not_read_from_the_workspace() {
    let left = "
write('b.txt', 'two\\n')
commit('feat: two')
write('.git/caisson-base', subprocess.run(['git', 'rev-parse', 'HEAD'], stdout=subprocess.PIPE).stdout.decode().strip())";
    let mut sandbox = Sandbox::with_repository(&leaving(left));
    assert_eq!(sandbox.run(first()).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    let began = base(&sandbox).unwrap();
    let told = |since: &str| {
        let mut work = next(&first(), "Two");
        work.git.as_mut().unwrap().since = Some(since.to_owned());
        work
    };
    for (since, expected) in [(began.as_str(), Some(began.clone())), ("", None)] {
        sandbox.begin_anew();
        let outcome = sandbox.run(told(since)).await;
        assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
        assert_eq!(base(&sandbox), expected);
    }
    let diff = sandbox.artifact("diff.patch").unwrap();
    assert!(diff.contains("+two"), "{diff}");
    sandbox.begin_anew();
    let message = failed(&sandbox.run(told(&"c0ffee".repeat(7)[..40])).await, FailureKind::RepoUnreachable);
    assert!(message.contains("begin a new session"), "{message}");
}

/// It was the agent's to take back what it had pushed itself.
#[tokio::test]
async fn work_that_was_pushed_and_amended_starts_where_the_two_parted() {
    let left = "
write('b.txt', 'two\\n')
commit('feat: two')
sh('git', 'tag', 'pushed')
write('b.txt', 'three\\n')
sh('git', 'commit', '-q', '-a', '--amend', '-m', 'feat: three')";
    let mut sandbox = Sandbox::with_repository(&leaving(left));
    assert_eq!(sandbox.run(first()).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    let began = base(&sandbox).unwrap();
    let pushed = sandbox.workspace(&["rev-parse", "pushed"]);
    sandbox.begin_anew();
    let mut second = next(&first(), "Two");
    second.publish = Publish::Branch;
    second.git.as_mut().unwrap().since = Some(pushed);
    let outcome = sandbox.run(second).await;
    assert_eq!((outcome.ending, outcome.pushed), (Ending::Completed, true), "{}", sandbox.shim_log());
    assert_eq!(base(&sandbox), Some(began));
    assert_eq!(sandbox.remote(&["show", &format!("{BRANCH}:b.txt")]), "three");
}

/// Only set-up commands have been in it: what they have left there is nobody's work, and their word for where work starts is none.
#[tokio::test]
async fn a_checkout_that_no_agent_has_come_to_work_in_is_made_anew() {
    let script = "
def prompt(uuid, text, number):
    done(uuid)
";
    let set_up = "
echo two > b.txt && git add b.txt && git commit -q -m 'feat: two' && git rev-parse HEAD > .git/caisson-base
rm -f ~/.caisson-preparing
test -e ~/again || { touch ~/again; exit 1; }
";
    for is_first in [true, false] {
        let mut sandbox = Sandbox::with_repository(script);
        std::fs::write(sandbox.place("seed/.caisson.yaml"), "setup: [sh, set_up.sh]\n").unwrap();
        // The gateway knows that no agent was there, or the mark tells of it.
        let set_up =
            if is_first { set_up.to_owned() } else { set_up.replace("rm -f ~/.caisson-preparing", "") };
        sandbox.seed("set_up.sh", &set_up, "build: set up");
        let mut work = RunWork { publish: Publish::None, ..git_work("Look") };
        work.git.as_mut().unwrap().is_first = is_first;
        failed(&sandbox.run(work.clone()).await, FailureKind::SetupFailed);
        sandbox.begin_anew();
        work.run = run_id(2);
        assert_eq!(sandbox.run(work).await.ending, Ending::Completed, "{}", sandbox.shim_log());
        assert_eq!(base(&sandbox), Some(sandbox.remote(&["rev-parse", "main"])), "{is_first}");
        assert!(!sandbox.place("home/.caisson-preparing").exists(), "from here on it is the agent's");
    }
}

/// The control: git itself would have done all this.
#[tokio::test]
async fn git_alone_would_do_what_is_kept_from_it() {
    let mut sandbox =
        Sandbox::with_repository(&leaving(&format!("{RULES}\nsh('git', 'config', 'core.worktree', home)")));
    assert_eq!(sandbox.run(first()).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert!(!sandbox.place("home/.claude/rules/x.md").exists());
    sandbox.workspace(&["checkout", "--quiet", BRANCH, "--"]);
    assert!(sandbox.place("home/.claude/rules/x.md").exists());
}
