//! Programs that the repository's own settings would have git start: none runs in the shim's commands.

use caisson_domain::protocol::Ending;
use caisson_domain::run::FailureKind;
use caisson_domain::workflow::Publish;

use crate::publishing::{assert_published, commits, pushed_messages, racing};
use crate::sandbox::{BRANCH, Sandbox, failed, git, git_work, run_id};

/// A driver's name that is no text, as Python writes it.
const NO_TEXT: &str = r"\udcff";

/// An agent that has git start programs of its own on every file, by drivers of that name, and leaves its work uncommitted.
fn arming(name: &str, ending: &str) -> String {
    format!(
        "
def prompt(uuid, text, number):
    if number:
        return done(uuid, 'fix: two')
    ran = 'touch ' + os.environ['HOME'] + '/ran-'
    with open('.gitattributes', 'wb') as file:
        file.write(os.fsencode('* filter={name} diff={name} merge={name}\\n'))
    write('b.txt', 'two\\n')
    for key, value in [('filter.{name}.clean', ran + 'clean; cat'), ('filter.{name}.smudge', ran + 'smudge; cat'),
                       ('filter.{name}.required', 'true'), ('filter.own.x=y.clean', ran + 'odd; cat'),
                       ('diff.{name}.command', ran + 'diff'), ('diff.{name}.textconv', ran + 'textconv'),
                       ('merge.{name}.driver', ran + 'merge'), ('core.fsmonitor', ran + 'monitor'),
                       ('core.alternateRefsCommand', ran + 'refs'), ('hook.{name}.command', ran + 'hook'),
                       ('hook.{name}.event', 'pre-commit'), ('gpg.program', ran + 'gpg'),
                       ('protocol.ext.allow', 'always'), ('protocol.allow', 'always'),
                       ('url.ext::sh -c ' + (ran + 'ext').replace(' ', '% ') + '.pushInsteadOf', 'nothing://')]:
        sh('git', 'config', key, value)
    {ending}
"
    )
}

fn ran(sandbox: &Sandbox) -> Vec<String> {
    let names = std::fs::read_dir(sandbox.place("home")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("ran-")).collect()
}

#[tokio::test]
async fn no_program_of_the_repository_runs_when_work_is_published() {
    for name in ["own", NO_TEXT] {
        none_runs_when_published(name).await;
    }
}

async fn none_runs_when_published(name: &str) {
    let mut sandbox = Sandbox::with_repository(&arming(name, "done(uuid)"));
    // Somebody else was faster, so that files are merged and checked out as well.
    racing(&sandbox, "other.txt");
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_published(&sandbox, &outcome);
    assert_eq!(pushed_messages(&sandbox), "docs: somebody else\n\nfix: two");
    assert_eq!(commits(&sandbox).len(), 2);
    assert_eq!(sandbox.remote(&["show", &format!("{BRANCH}:b.txt")]), "two");
    assert_eq!(ran(&sandbox), Vec::<String>::new());
    // And in the next run, whose shim finds all this in place.
    sandbox.begin_anew();
    let mut second = git_work("more");
    second.run = run_id(2);
    std::fs::write(sandbox.place("workspace/c.txt"), "three\n").unwrap();
    assert_eq!(sandbox.run(second).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!(ran(&sandbox), Vec::<String>::new());
    // The control: git would have run them, by the attributes that are there and not the anchor's.
    std::fs::write(sandbox.place("workspace/b.txt"), "four\n").unwrap();
    std::fs::remove_file(sandbox.place("workspace/.git/info/attributes")).unwrap();
    sandbox.workspace(&["-c", "core.fsmonitor=false", "add", "--all"]);
    assert!(ran(&sandbox).contains(&"ran-clean".to_owned()), "{:?}", ran(&sandbox));
}

#[tokio::test]
async fn no_program_of_the_repository_runs_when_work_is_saved() {
    for name in ["own", NO_TEXT] {
        none_runs_when_saved(name).await;
    }
}

async fn none_runs_when_saved(name: &str) {
    let ending = "sh('git', 'add', 'b.txt'); sh('rm', '-f', *[os.environ['HOME'] + '/ran-clean']); write('b.txt', 'three\\n'); done(uuid)";
    let mut sandbox = Sandbox::with_repository(&arming(name, ending));
    let mut work = git_work("Fix it");
    work.publish = Publish::None;
    assert_eq!(sandbox.run(work).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert!(sandbox.artifact("uncommitted.patch").unwrap().contains("+three"));
    // The agent itself had git look for changes.
    let ran: Vec<_> = ran(&sandbox).into_iter().filter(|name| name != "ran-monitor").collect();
    assert_eq!(ran, Vec::<String>::new());
}

/// Settings that count on the run's branch alone, to which publishing brings what the agent has left elsewhere.
#[tokio::test]
async fn no_program_of_settings_that_count_on_one_branch_runs_when_work_is_published() {
    // With a commit that the branch has not, and at one that it has.
    for left in ["commit('feat: elsewhere')", "sh('git', 'checkout', '-q', 'HEAD~1')"] {
        let script = format!(
            "
def prompt(uuid, text, number):
    if number:
        return done(uuid, 'fix: two')
    write('c.txt', 'three\\n')
    commit('feat: three')
    sh('git', 'checkout', '-q', '--detach')
    write('d.txt', 'four\\n')
    {left}
    write('.gitattributes', '* filter=own\\n')
    write('b.txt', 'two\\n')
    write('.git/more', '[filter \"own\"]\\n\\tclean = \"touch ' + os.environ['HOME'] + '/ran-clean; cat\"\\n')
    sh('git', 'config', 'includeIf.onbranch:{BRANCH}.path', 'more')
    done(uuid)
"
        );
        let mut sandbox = Sandbox::with_repository(&script);
        let outcome = sandbox.run(git_work("Fix it")).await;
        assert_published(&sandbox, &outcome);
        assert_eq!(sandbox.remote(&["show", &format!("{BRANCH}:b.txt")]), "two");
        assert_eq!(ran(&sandbox), Vec::<String>::new(), "{left}");
        // The control: on that branch git would have run it.
        std::fs::write(sandbox.place("workspace/b.txt"), "five\n").unwrap();
        sandbox.workspace(&["add", "--all"]);
        assert_eq!(ran(&sandbox), ["ran-clean"], "{left}");
    }
}

/// What two have changed in one file is merged by git itself, with its own driver.
#[tokio::test]
async fn no_driver_of_the_repository_merges_a_file() {
    let lines = |first: &str, last: &str| format!("{first}\n2\n3\n4\n5\n6\n7\n8\n{last}\n");
    for name in ["own", NO_TEXT] {
        let ending = "write('lines.txt', open('lines.txt').read().replace('9', 'nine')); done(uuid)";
        let mut sandbox = Sandbox::with_repository(&arming(name, ending));
        // By the attributes of the commit that is rebased onto.
        let written = if name == NO_TEXT { b"\xff".as_slice() } else { name.as_bytes() };
        let attributes = [b"* merge=", written, b"\n"].concat();
        std::fs::write(sandbox.place("seed/.gitattributes"), attributes).unwrap();
        sandbox.seed("lines.txt", &lines("1", "9"), "docs: count");
        git(&sandbox.place("seed"), &["checkout", "-q", "-b", BRANCH]);
        sandbox.seed("lines.txt", &lines("one", "9"), "docs: somebody else");
        let outcome = sandbox.run(git_work("Fix it")).await;
        assert_published(&sandbox, &outcome);
        let merged = sandbox.remote(&["show", &format!("{BRANCH}:lines.txt")]);
        assert_eq!(format!("{merged}\n"), lines("one", "nine"));
        assert_eq!(ran(&sandbox), Vec::<String>::new());
    }
}

#[tokio::test]
async fn settings_that_name_too_many_programs_fail_the_run() {
    let many = |count: usize| {
        format!(
            "
def prompt(uuid, text, number):
    if number:
        return done(uuid, 'fix: two')
    with open('.git/config', 'a') as file:
        for number in range({count}):
            file.write(f'[filter \"{{number}}\"]\\n\\tclean = cat\\n')
    write('a.txt', 'two\\n')
    done(uuid)
"
        )
    };
    let mut sandbox = Sandbox::with_repository(&many(500));
    let outcome = sandbox.run(git_work("Fix it")).await;
    assert_published(&sandbox, &outcome);
    let mut sandbox = Sandbox::with_repository(&many(501));
    let message = failed(&sandbox.run(git_work("Fix it")).await, FailureKind::PolicyDenied);
    assert!(message.contains("500 programs"), "{message}");
}
