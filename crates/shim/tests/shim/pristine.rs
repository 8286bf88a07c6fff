//! Agents that only read, and the repository's set-up command, which may write: neither an earlier agent nor what set-up leaves behind
//! changes what is read.

use caisson_domain::protocol::{Ending, RunWork, StopReason};
use caisson_domain::run::FailureKind;
use caisson_domain::workflow::{Publish, WorkspaceAccess};

use crate::sandbox::{Sandbox, failed, git, git_work, run_id};
use crate::steering::INSTRUCTIONS;

pub(crate) fn reading(number: i64) -> RunWork {
    let mut work = git_work("Look");
    (work.run, work.publish, work.workspace) = (run_id(number), Publish::None, WorkspaceAccess::ReadOnly);
    work
}

/// A repository with a set-up command of its own, and an agent.
pub(crate) fn with_set_up(agent: &str, set_up: &str) -> Sandbox {
    let sandbox = Sandbox::with_repository(agent);
    let seed = sandbox.place("seed");
    std::fs::write(seed.join(".caisson.yaml"), "setup: [python3, set_up.py]\ncaches: [build]\n").unwrap();
    sandbox.seed("set_up.py", set_up, "build: add a set-up command");
    sandbox
}

/// What the agents noted of something, oldest first.
pub(crate) fn noted(log: &[String], name: &str) -> Vec<String> {
    log.iter().filter_map(|line| line.strip_prefix(name)).map(str::to_owned).collect()
}

#[tokio::test]
async fn what_an_agent_has_put_into_its_home_is_not_run_by_the_next_set_up() {
    // Each of these is looked for by what the set-up command starts.
    let agent = "
import site
MODULES = site.getusersitepackages()

def prompt(uuid, text, number):
    log('home ' + ' '.join(sorted(os.listdir(os.environ['HOME']))))
    log('planted ' + str(os.path.exists('planted')))
    memory = os.environ['HOME'] + '/.claude/projects/-workspace/memory'
    log('memory ' + str(os.path.exists(memory)))
    os.makedirs(memory, exist_ok=True)
    write(memory + '/MEMORY.md', 'x')
    evil = 'open(\"planted\", \"a\").write(\"x\")'
    os.makedirs(MODULES, exist_ok=True)
    write(MODULES + '/usercustomize.py', evil)
    os.makedirs(os.environ['HOME'] + '/.local/bin', exist_ok=True)
    write(os.environ['HOME'] + '/.gitconfig', '[alias]\\nlook = !touch planted\\n')
    write(os.environ['TMPDIR'] + '/left', evil)
    try:
        write('planted', 'x')
        log('it can write')
    except OSError:
        pass
    os.chmod('build', 0)
    done(uuid)
";
    let set_up = "
import os, subprocess
print(subprocess.run(['git', 'look'], capture_output=True))
os.makedirs('build', exist_ok=True)
open('build/left', 'w').write(str(os.path.exists(os.environ['TMPDIR'] + '/left')))
";
    let mut sandbox = with_set_up(agent, set_up);
    let outcome = sandbox.run(reading(1)).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!(noted(&sandbox.agent_log(), "planted "), ["False"]);
    // The same is there when the next run begins, and would be run.
    let modules = sandbox.place("home/.local/lib");
    let version = std::fs::read_dir(modules).unwrap().next().unwrap().unwrap().path();
    assert!(version.join("site-packages/usercustomize.py").exists());

    sandbox.begin_anew();
    let outcome = sandbox.run(reading(2)).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    let log = sandbox.agent_log();
    assert_eq!(noted(&log, "planted "), ["False"], "and the log of the first is gone with the home");
    assert_eq!(noted(&log, "home "), [".claude agent.log"]);
    assert_eq!(noted(&log, "memory "), ["False"]);
    assert!(!log.contains(&"it can write".to_owned()), "{log:?}");
    assert_eq!(std::fs::read_to_string(sandbox.place("workspace/build/left")).unwrap(), "False");
}

#[tokio::test]
async fn what_a_set_up_command_leaves_changes_nothing_that_is_read() {
    let agent = "
import time
def prompt(uuid, text, number):
    def told(*arguments):
        return subprocess.run(['git', *arguments], stdout=subprocess.PIPE).stdout.decode().strip()
    for _ in range(2):
        log('a.txt ' + open('a.txt').read().strip())
        time.sleep(0.3)
    log('mode ' + oct(os.stat('a.txt').st_mode & 0o111))
    log('anchor ' + told('rev-parse', 'refs/caisson/anchor'))
    log('head ' + told('rev-parse', 'HEAD'))
    log('refs ' + told('for-each-ref', 'refs/heads/made', 'refs/replace'))
    log('alias ' + told('config', '--get', 'alias.look'))
    log('changed ' + told('diff', '--name-only'))
    log('built ' + open('build/count').read() + ' ' + str(os.path.exists('out')))
    done(uuid)
";
    let set_up = "
import os, subprocess, sys, time
if len(sys.argv) > 1:
    while True:
        for name in ['a.txt', 'running']:
            with open(name, 'w') as file:
                file.write('evil')
        time.sleep(0.005)
os.makedirs('build', exist_ok=True)
with open('build/count', 'a') as file:
    file.write('x' if not os.path.exists('out') else 'an earlier one is there')
open('out', 'w').write('x')
def git(*arguments):
    subprocess.run(['git', *arguments], check=True)
git('config', 'alias.look', 'status')
git('config', 'core.fileMode', 'false')
git('-c', 'user.name=x', '-c', 'user.email=x', 'commit', '-q', '--allow-empty', '-m', 'x')
git('update-ref', 'refs/caisson/anchor', 'HEAD')
git('update-ref', 'refs/heads/made', 'HEAD')
git('replace', '-f', 'HEAD', 'HEAD~1')
git('update-index', '--assume-unchanged', 'a.txt')
git('checkout', '-q', '--detach')
os.chmod('a.txt', 0o777)
subprocess.Popen([sys.executable, 'set_up.py', 'stay'], start_new_session=True,
                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
while not os.path.exists('running'):
    time.sleep(0.005)
";
    let mut sandbox = with_set_up(agent, set_up);
    let main = sandbox.remote(&["rev-parse", "main"]);
    for (number, built) in [(1, "x True"), (2, "xx True")] {
        let outcome = sandbox.run(reading(number)).await;
        assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
        let log = sandbox.agent_log();
        let of = |name: &str| noted(&log, name);
        assert_eq!(of("a.txt "), ["one", "one"], "nothing writes while it is read");
        for (name, is_like) in [
            ("mode ", "0o0"),
            ("anchor ", main.as_str()),
            ("head ", main.as_str()),
            ("refs ", ""),
            ("alias ", ""),
            ("changed ", ""),
        ] {
            assert_eq!(of(name), [is_like], "{name}");
        }
        assert_eq!(of("built "), [built], "what it builds stays, and in its caches for the next run");
        let note = "the set-up command has changed files of the commit, which the agent only reads: a.txt; they were put back";
        assert!(sandbox.notes().iter().any(|told| told == note), "{:?}", sandbox.notes());
        sandbox.begin_anew();
    }
}

#[tokio::test]
async fn a_set_up_command_reaches_neither_the_agent_nor_its_home_nor_the_repository_that_is_read() {
    let agent = "
def prompt(uuid, text, number):
    home = os.environ['HOME']
    log('asked ' + text)
    log('home ' + ' '.join(sorted(name for name in os.listdir(home) if name != 'agent.log')))
    told = subprocess.run(['git', 'log', '--format=%s'], stdout=subprocess.PIPE).stdout.decode()
    log('commits ' + str(len(told.splitlines())))
    log('tried ' + open('tried').read())
    done(uuid)
";
    // It is told what it did; each of it would have an agent read something else than there is.
    let set_up = "
import glob, os, shutil, subprocess
tried = []
def attempt(name, what):
    try:
        if what() is not None:
            tried.append(name)
    except OSError:
        pass
home = os.path.abspath('../home')
attempt('home', lambda: open(home + '/.gitconfig', 'w').write('x'))
attempt('journal', lambda: open(os.path.abspath('../journal') + '/x', 'w').write('x'))
own = str(os.getpid())
for process in glob.glob('/proc/[0-9]*'):
    number = process.rsplit('/')[-1]
    if number != own:
        attempt('fds', lambda: open(process + '/fd/0', 'w'))
        # Not the environment: root, as which this may run, reads it with a capability that no sandbox has.
        attempt('memory', lambda: open(process + '/mem', 'rb'))
open('tried', 'w').write(' '.join(sorted(set(tried))))
open('.git/shallow', 'w').write(subprocess.check_output(['git', 'rev-parse', 'HEAD']).decode())
shutil.rmtree('.git/objects')
os.symlink('/tmp', '.git/objects')
os.makedirs('.git/refs/closed')
os.chmod('.git/refs/closed', 0)
";
    let mut sandbox = with_set_up(agent, set_up);
    let commits = sandbox.remote(&["rev-list", "--count", "main"]);
    let outcome = sandbox.run(reading(1)).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    let log = sandbox.agent_log();
    assert_eq!(noted(&log, "tried "), [""]);
    assert_eq!(noted(&log, "commits "), [commits.as_str()]);
    assert_eq!(noted(&log, "asked ").len(), 1);
    assert!(!noted(&log, "home ")[0].contains("caisson"), "{log:?}");
}

#[tokio::test]
async fn a_repository_that_set_up_makes_where_the_commit_has_a_submodule_runs_nothing() {
    let agent = "
def prompt(uuid, text, number):
    log('ran ' + str(os.path.exists(os.environ['HOME'] + '/ran') or os.path.exists('ran')))
    log('repository ' + str(os.path.exists('sub/.git')))
    subprocess.run(['git', 'status'])
    log('ran ' + str(os.path.exists(os.environ['HOME'] + '/ran') or os.path.exists('ran')))
    done(uuid)
";
    // Its own settings name a program, which git starts to see whether the submodule is changed.
    let set_up = "
import os, subprocess
os.makedirs('sub', exist_ok=True)
os.chdir('sub')
def git(*arguments):
    return subprocess.check_output(['git', *arguments]).decode().strip()
git('init', '-q')
open('file', 'w').write('one')
git('add', '--all')
by = 'x <x> 1700000000 +0000'
open('../commit', 'w').write('tree ' + git('write-tree') + '\\nauthor ' + by + '\\ncommitter ' + by + '\\n\\nx\\n')
git('update-ref', 'HEAD', git('hash-object', '-t', 'commit', '-w', '../commit'))
git('config', 'filter.x.clean', 'sh -c \"touch ../ran ../../home/ran; cat\"')
open('.gitattributes', 'w').write('* filter=x')
os.utime('file', (1, 1))
";
    let mut sandbox = Sandbox::with_repository(agent);
    let seed = sandbox.place("seed");
    // The same commit is the submodule's, so that git looks further.
    let made = sandbox.place("made");
    std::fs::create_dir(&made).unwrap();
    git(&made, &["init", "-q"]);
    std::fs::write(made.join("file"), "one").unwrap();
    git(&made, &["add", "--all"]);
    let (tree, by) = (git(&made, &["write-tree"]), "x <x> 1700000000 +0000");
    let commit = format!("tree {}\nauthor {by}\ncommitter {by}\n\nx\n", tree.trim());
    std::fs::write(made.join("commit"), commit).unwrap();
    let commit = git(&made, &["hash-object", "-t", "commit", "commit"]);
    std::fs::create_dir(seed.join("sub")).unwrap();
    let link = format!("160000,{},sub", commit.trim());
    git(&seed, &["update-index", "--add", "--cacheinfo", &link]);
    std::fs::write(seed.join(".caisson.yaml"), "setup: [python3, set_up.py]\n").unwrap();
    sandbox.seed("set_up.py", set_up, "build: add a submodule");
    for number in [1, 2] {
        let outcome = sandbox.run(reading(number)).await;
        assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
        let log = sandbox.agent_log();
        assert_eq!(noted(&log, "ran "), ["False", "False"]);
        assert_eq!(noted(&log, "repository "), ["False"]);
        sandbox.begin_anew();
    }
}

#[tokio::test]
async fn what_a_set_up_command_that_fails_closes_or_leaves_hides_not_why() {
    let set_up = "
import os, sys
os.makedirs('closed/in')
os.chmod('closed', 0)
os.chmod('.', 0)
print('the registry is away')
sys.exit(3)
";
    let mut sandbox = with_set_up("", set_up);
    let outcome = sandbox.run(reading(1)).await;
    let message = failed(&outcome, FailureKind::SetupFailed);
    assert!(message.contains("ended with code 3"), "{message}");
    let Ending::Failed(failure) = outcome.ending else { panic!("{message}") };
    assert!(failure.evidence.is_some_and(|shown| shown.contains("the registry is away")));
}

#[tokio::test]
async fn what_a_set_up_command_that_fails_leaves_is_not_there_for_the_next_run() {
    let agent = "
def prompt(uuid, text, number):
    told = subprocess.run(['git', 'config', '--get', 'alias.look'], stdout=subprocess.PIPE).stdout.decode()
    log('alias ' + told.strip())
    done(uuid)
";
    let set_up = "
import os, subprocess, sys
subprocess.run(['git', 'config', 'alias.look', 'status'], check=True)
os.makedirs('build', exist_ok=True)
if not os.path.exists('build/tried'):
    open('build/tried', 'w').close()
    sys.exit(1)
subprocess.run(['git', 'config', '--unset', 'alias.look'], check=True)
";
    let mut sandbox = with_set_up(agent, set_up);
    failed(&sandbox.run(reading(1)).await, FailureKind::SetupFailed);
    sandbox.begin_anew();
    let outcome = sandbox.run(reading(2)).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!(noted(&sandbox.agent_log(), "alias "), [""]);
}

#[tokio::test]
async fn a_checkout_whose_set_up_was_stopped_is_made_anew_for_the_next_run() {
    let agent = "
def prompt(uuid, text, number):
    told = subprocess.run(['git', 'config', '--get', 'alias.look'], stdout=subprocess.PIPE).stdout.decode()
    log('alias ' + told.strip())
    done(uuid)
";
    let set_up = "
import os, subprocess, sys, time
if os.path.exists(os.path.abspath('../go_on')):
    sys.exit(0)
subprocess.run(['git', 'config', 'alias.look', 'status'], check=True)
open('begun', 'w').close()
time.sleep(60)
";
    let mut sandbox = with_set_up(agent, set_up);
    let work = reading(1);
    sandbox.deliver(work.clone());
    sandbox.start();
    let begun = sandbox.place("workspace/begun");
    while !begun.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    sandbox.stop(&work.run, StopReason::Cancel);
    assert_eq!(sandbox.outcome(&work.run).await.ending, Ending::Stopped(StopReason::Cancel));
    sandbox.exit().await;
    std::fs::write(sandbox.place("go_on"), "").unwrap();
    sandbox.begin_anew();
    let outcome = sandbox.run(reading(2)).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!(noted(&sandbox.agent_log(), "alias "), [""]);
    assert!(!begun.exists(), "it is a checkout of its own");
}

#[tokio::test]
async fn what_a_set_up_command_leaves_running_stays_where_the_agent_may_write() {
    let agent = "
import time
def prompt(uuid, text, number):
    at = open('at').read()
    until = time.monotonic() + 20
    while open('served').read() == at and time.monotonic() < until:
        time.sleep(0.005)
    log('served ' + open('served').read())
    done(uuid)
";
    let set_up = "
import os, subprocess, sys, time
subprocess.Popen(['sh', '-c', 'while :; do sleep 0.01; date +%s%N > next; mv next served; done'], start_new_session=True,
                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
while not os.path.exists('served'):
    time.sleep(0.005)
at = open('served').read()
open('at', 'w').write(at)
";
    let mut sandbox = with_set_up(agent, set_up);
    let mut work = reading(1);
    work.workspace = WorkspaceAccess::ReadWrite;
    let outcome = sandbox.run(work).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    let at = std::fs::read_to_string(sandbox.place("workspace/at")).unwrap();
    let served = noted(&sandbox.agent_log(), "served ");
    assert!(served[0].trim() > at.trim(), "{served:?} {at}");
}

/// No wall of the kernel keeps it from taking rights away.
#[tokio::test]
async fn a_set_up_command_takes_no_rights_from_what_steers() {
    let agent = "
def prompt(uuid, text, number):
    for name in ['', '/.claude', '/.claude/CLAUDE.md', '/.caisson/anchor', '/.caisson/anchor/CLAUDE.md']:
        log('right ' + str(os.stat(os.environ['HOME'] + name).st_mode & 0o400 != 0))
    done(uuid)
";
    let set_up = "
import os
for name in ['.claude/CLAUDE.md', '.caisson/anchor/CLAUDE.md', '.caisson/anchor', '.caisson', '.claude', '']:
    os.chmod('../home/' + name, 0)
";
    let mut sandbox = with_set_up(agent, set_up);
    sandbox.seed("CLAUDE.md", "Be careful.\n", "docs: steer");
    let outcome = sandbox.run(RunWork { trust: INSTRUCTIONS, ..reading(1) }).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!(noted(&sandbox.agent_log(), "right "), ["True"; 5]);
}
