//! What an earlier agent leaves in the workspace's repository: it has git neither start a program of its own before the next agent is
//! steered, nor write anything beyond the workspace.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;

use caisson_domain::protocol::{Ending, JournalBody, Outcome, RunWork};
use caisson_domain::run::FailureKind;
use caisson_domain::workflow::Publish;

use crate::kept::{KEEPING, next};
use crate::sandbox::{BRANCH, SEARCH_PATH, Sandbox, failed, git, git_work, run_id};
use crate::steering::INSTRUCTIONS;

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

/// The shim itself writes there.
#[tokio::test]
async fn a_link_in_the_place_of_the_repositorys_own_files_fails_the_run() {
    let left = "
sh('rm', '-rf', '.git/info')
os.makedirs(home + '/tasks', exist_ok=True)
write(home + '/tasks/attributes', 'kept')
os.symlink(home + '/tasks', '.git/info')";
    for holds in [true, false] {
        let mut sandbox = Sandbox::with_repository(&leaving(left));
        sandbox.set("holds", holds);
        assert_eq!(sandbox.run(first()).await.ending, Ending::Completed, "{}", sandbox.shim_log());
        sandbox.begin_anew();
        let second = sandbox.run(next(&first(), "Two")).await;
        let said = failed(&second, FailureKind::PolicyDenied);
        assert!(said.contains("attributes of the workspace's repository cannot be written"), "{said}");
        assert_eq!(std::fs::read(sandbox.place("home/tasks/attributes")).unwrap(), b"kept");
    }
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

/// A sandbox whose git can be brought to start a program, whatever is done against that: one in `.git/armed` of the workspace, before it
/// checks out, and one in `.git/moving`, when it has fetched. An agent leaves `left` in its first run, and does `second` in the next.
fn armed(left: &str, second: &str) -> Sandbox {
    let indented = |text: &str| text.trim().replace('\n', "\n        ");
    let script = format!(
        "{KEEPING}
def prompt(uuid, text, number):
    home = os.environ['HOME']
    if text.startswith('One'):
        sh('git', 'checkout', '-q', '--detach')
        {}
    else:
        {}
    keep(uuid)
    done(uuid)
",
        indented(left),
        indented(second)
    );
    let mut sandbox = Sandbox::with_repository(&script);
    let seed = sandbox.place("seed");
    std::fs::write(seed.join(".caisson.yaml"), "caches: [build]\n").unwrap();
    sandbox.seed("CLAUDE.md", "base-root\n", "docs: steer");
    let wrapper = "#!/bin/sh
case \" $* \" in
*' checkout '*) [ ! -e .git/armed ] || python3 .git/armed ;;
*' fetch '*) /usr/bin/git \"$@\" || exit; [ ! -e .git/moving ] || sh .git/moving; exit 0 ;;
esac
exec /usr/bin/git \"$@\"
";
    let bin = sandbox.place("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("git"), wrapper).unwrap();
    std::fs::set_permissions(bin.join("git"), std::fs::Permissions::from_mode(0o755)).unwrap();
    sandbox.set("path", format!("{}:{SEARCH_PATH}", bin.display()));
    sandbox
}

/// Both runs of such a sandbox; how the second ends.
async fn run_armed(sandbox: &mut Sandbox, holds: bool) -> Outcome {
    sandbox.set("holds", holds);
    let first = RunWork { trust: INSTRUCTIONS, ..first() };
    assert_eq!(sandbox.run(first.clone()).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    sandbox.begin_anew();
    sandbox.run(next(&first, "Two")).await
}

/// A program's beginning that goes on in the background, where it does `again` as fast as it can. In front it does `meanwhile`.
fn in_background(again: &str, meanwhile: &str) -> String {
    let again = again.trim().replace('\n', "\n        ");
    format!(
        "import glob, os, subprocess, time
home, workspace = os.environ['HOME'], os.getcwd()
if os.fork() == 0:
    os.setsid()
    nothing = os.open('/dev/null', os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    until = time.time() + 60
    while time.time() < until:
        {again}
{meanwhile}
"
    )
}

/// What lives beside the work on an earlier agent's repository writes what it likes into another one, where nothing holds it: git does not
/// look whether an object is what its name says.
#[tokio::test]
async fn what_git_was_brought_to_start_does_not_write_what_steers() {
    let again = r"
apart = home + '/.caisson/repository'
def git(*arguments, **more):
    clean = {'PATH': '/usr/bin:/bin', 'GIT_CONFIG_GLOBAL': '/dev/null'}
    return subprocess.run(['/usr/bin/git', *arguments], cwd=apart, env=clean, check=True, stdout=-1, stderr=-1, **more).stdout
try:
    packs = glob.glob(apart + '/objects/pack/*.pack')
    if not packs or glob.glob(apart + '/objects/pack/*.keep') or not git('rev-parse', 'HEAD'):
        continue
    for pack in packs:
        packed = open(pack, 'rb').read()
        for name in glob.glob(pack[:-5] + '*'):
            os.remove(name)
        git('unpack-objects', '-q', input=packed)
    def forge(name, content):
        places = []
        for object in [git('rev-parse', 'HEAD:' + name), git('hash-object', '-w', '--stdin', input=content)]:
            object = object.decode().strip()
            places.append(apart + '/objects/' + object[:2] + '/' + object[2:])
        os.replace(places[1], places[0])
    forge('CLAUDE.md', b'left-root')
    forge('.caisson.yaml', b'setup: [touch, left-set-up]')
    open(workspace + '/.git/forged', 'w').close()
    break
except (OSError, subprocess.CalledProcessError):
    pass
";
    // A filter takes what time it likes.
    let meanwhile = "
until = time.time() + 3
while time.time() < until and not os.path.exists('.git/forged'):
    time.sleep(0.01)
";
    for holds in [true, false] {
        let left = format!("write('.git/armed', {:?})", in_background(again, meanwhile));
        let second = "
log('found ' + open(home + '/.caisson/anchor/CLAUDE.md').read().strip())
log('found ' + str(os.path.exists('left-set-up')))";
        let mut sandbox = armed(&left, second);
        let outcome = run_armed(&mut sandbox, holds).await;
        assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
        assert_eq!(found(&sandbox), ["base-root", "False"], "held: {holds}");
    }
}

/// The kernel keeps nobody of one user from taking rights away from files, or from sending a signal to an agent that waits.
#[tokio::test]
async fn what_git_was_brought_to_start_takes_no_rights_from_what_steers_and_meets_no_agent() {
    let again = "
for name in ['', '/.claude', '/.caisson', '/.claude/CLAUDE.md', '/.caisson/anchor/CLAUDE.md', '/.caisson/anchor', '/.caisson/profiles']:
    try:
        os.chmod(home + name, 0)
    except OSError:
        pass";
    let meanwhile = "
agents = 0
for name in glob.glob('/proc/[0-9]*/cmdline'):
    try:
        agents += os.path.dirname(home).encode() + b'/agent\\0' in open(name, 'rb').read()
    except OSError:
        pass
time.sleep(0.2)
with open('.git/met', 'w') as file:
    file.write(str(agents))
";
    for holds in [true, false] {
        let left = format!("write('.git/armed', {:?})", in_background(again, meanwhile));
        let second = "
for name in ['', '/.claude', '/.caisson', '/.claude/CLAUDE.md', '/.caisson/anchor/CLAUDE.md', '/.caisson/anchor', '/.caisson/profiles']:
    if not os.stat(home + name).st_mode & 0o400:
        log('found no right to read ~' + name)
log('found ' + open('.git/met').read() + ' agents')";
        let mut sandbox = armed(&left, second);
        let outcome = run_armed(&mut sandbox, holds).await;
        assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
        assert_eq!(found(&sandbox), ["0 agents"], "held: {holds}");
    }
}

/// An agent that waits for the next run goes on only as it was held.
#[tokio::test]
async fn an_agent_that_git_was_brought_to_wake_does_not_go_on() {
    let wake = "
import glob, os, signal
for name in glob.glob('/proc/[0-9]*/cmdline'):
    try:
        if os.path.dirname(os.environ['HOME']).encode() + b'/agent\\0' in open(name, 'rb').read():
            os.kill(int(name.split('/')[2]), signal.SIGCONT)
    except OSError:
        pass
";
    for (program, processes) in [("", 1), (wake, 2)] {
        let mut sandbox = armed(&format!("write('.git/armed', {program:?})"), "pass");
        let work = RunWork { keep: true, ..first() };
        sandbox.deliver(work.clone());
        sandbox.start();
        assert!(sandbox.outcome(&work.run).await.kept, "{}", sandbox.shim_log());
        let second = next(&work, "Two");
        sandbox.deliver(second.clone());
        let outcome = sandbox.outcome(&second.run).await;
        assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
        let log = sandbox.agent_log();
        let agents: BTreeSet<_> = log
            .iter()
            .filter_map(|line| line.strip_prefix("--")?.split_once(' '))
            .map(|(_, pid)| pid)
            .collect();
        assert_eq!(agents.len(), processes, "{log:?}");
    }
}

/// Somebody pushes what steers between the two times that it is fetched: so often it is taken in, and once more it is told.
#[tokio::test]
async fn an_anchor_that_moves_while_it_is_fetched_is_fetched_again_a_few_times() {
    for (pushes, expected) in [(2, Some("later 2")), (3, None)] {
        let mut sandbox = armed(
            "write('.git/moving', open(home + '/../moving').read())",
            "log('found ' + open(home + '/.caisson/anchor/CLAUDE.md').read().strip())",
        );
        git(&sandbox.place("seed"), &["checkout", "-q", "-b", "later"]);
        for number in 1..=pushes {
            sandbox.seed("CLAUDE.md", &format!("later {number}\n"), "docs: steer otherwise");
        }
        let moving = format!(
            "cd '{}'
git() {{ env -i /usr/bin/git --git-dir=. \"$@\"; }}
next=$(git rev-list --reverse main..later | head -n 1)
[ -z \"$next\" ] || git update-ref refs/heads/main \"$next\"
",
            sandbox.place("bare.git").display()
        );
        std::fs::write(sandbox.place("moving"), moving).unwrap();
        // It pushes to a directory of the test's, beyond the workspace.
        let outcome = run_armed(&mut sandbox, false).await;
        if let Some(text) = expected {
            assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
            assert_eq!(found(&sandbox), [text]);
        } else {
            let message = failed(&outcome, FailureKind::Conflict);
            assert!(message.contains("another commit in the workspace"), "{message}");
        }
    }
}
