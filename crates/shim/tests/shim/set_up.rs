//! What a set-up command may do to the agent that is started behind it, where the agent writes: it runs the scripts of the branch.

use caisson_domain::protocol::Ending;
use caisson_domain::run::FailureKind;
use caisson_domain::trust::Trust;
use serde_json::json;

use crate::kept::{KEEPING, next};
use crate::sandbox::{Sandbox, failed, git, git_work};
use crate::steering::{HEAD, INSTRUCTIONS, SETTINGS, Scene, on};

/// A script that steers whoever reads what it writes into the home.
fn hostile(scene: &Scene) -> String {
    let mark = |what: &str| scene.marks.join(format!("left-{what}")).display().to_string();
    let hook = |what: &str| json!({"hooks": {"SessionStart": [{"hooks": [{"type": "command", "command": format!("touch {}", mark(what))}]}]}});
    let own =
        json!({"env": {"STEERED": "left"}, "mcpServers": {"m": {"command": "touch", "args": [mark("mcp")]}}});
    format!(
        r"
mkdir -p ~/.claude/rules ~/.claude/skills/left ~/.caisson/anchor ~/.cache
echo left-text > ~/.claude/CLAUDE.md
echo left-rule > ~/.claude/rules/left.md
echo left-copy > ~/.caisson/anchor/CLAUDE.md
printf -- '---\nname: left\ndescription: left-skill\n---\nx\n' > ~/.claude/skills/left/SKILL.md
echo '{}' > ~/.claude/settings.json
echo '{own}' > ~/.claude.json
memory=~/.claude/projects/$(pwd | sed 's/[^A-Za-z0-9]/-/g')/memory
mkdir -p $memory && echo left-memory > $memory/MEMORY.md
echo built > ~/.cache/built
touch {}
",
        hook("hook"),
        mark("set-up"),
    )
}

async fn scene_with(script: impl Fn(&Scene) -> String) -> Option<Scene> {
    let scene = Scene::new().await?;
    let seed = scene.sandbox.place("seed");
    git(&seed, &["checkout", "-q", "main"]);
    std::fs::write(seed.join(".caisson.yaml"), "setup: [sh, set_up.sh]\n").unwrap();
    std::fs::write(seed.join("set_up.sh"), "true\n").unwrap();
    scene.push("main", "build: set up");
    git(&seed, &["checkout", "-q", "-B", HEAD]);
    std::fs::write(seed.join("set_up.sh"), script(&scene)).unwrap();
    scene.push(HEAD, "build: set up otherwise");
    Some(scene)
}

async fn is_not_steered_by_the_set_up(trust: Trust) {
    let Some(mut scene) = scene_with(hostile).await else { return };
    let outcome = scene.sandbox.run(on(HEAD, trust)).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", scene.sandbox.shim_log());
    let calls = scene.calls();
    assert!(calls.contains("base-root") && !calls.contains("left-"), "{calls}");
    assert!(!calls.contains("steered=left"));
    // The script has run, and nothing that it wrote.
    let marks: Vec<_> = scene.marks().into_iter().filter(|mark| mark.starts_with("left-")).collect();
    assert_eq!(marks, ["left-set-up"]);
    let notes = scene.sandbox.notes();
    assert!(
        notes.iter().any(|note| note.contains("set-up command has changed files in the agent's home")),
        "{notes:?}"
    );
    assert!(scene.sandbox.place("home/.cache/built").exists(), "what steers nobody stays");
    scene.model.shutdown().await;
}

#[tokio::test]
async fn a_branch_does_not_steer_by_what_its_set_up_writes_into_the_home() {
    is_not_steered_by_the_set_up(INSTRUCTIONS).await;
}

#[tokio::test]
async fn a_branch_does_not_steer_by_its_set_up_where_settings_act() {
    is_not_steered_by_the_set_up(SETTINGS).await;
}

/// The agent is started when the command has ended.
#[tokio::test]
async fn a_set_up_command_finds_no_agent_and_installs_for_it() {
    let script = "
def prompt(uuid, text, number):
    log(open(os.environ['HOME'] + '/.local/tool').read().strip())
    log('is alone' if '--session-id' not in open('processes').read() else 'there was an agent')
    log('saw itself' if 'set_up.sh' in open('processes').read() else 'saw nothing')
    done(uuid)
";
    let mut sandbox = Sandbox::with_repository(script);
    std::fs::write(sandbox.place("seed/.caisson.yaml"), "setup: [sh, set_up.sh]\n").unwrap();
    let set_up = "
mkdir -p ~/.local && echo installed > ~/.local/tool
for process in $(cat /proc/$PPID/task/*/children); do tr '\\0' ' ' < /proc/$process/cmdline; echo; done > processes
";
    sandbox.seed("set_up.sh", set_up, "build: set up");
    let outcome = sandbox.run(git_work("Look")).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    let log = sandbox.agent_log();
    for said in ["installed", "is alone", "saw itself"] {
        assert!(log.contains(&said.to_owned()), "{said}: {log:?}");
    }
    let notes = sandbox.notes();
    assert!(!notes.iter().any(|note| note.contains("set-up command")), "{notes:?}");
}

#[tokio::test]
async fn a_set_up_command_that_changes_the_conversation_fails_the_run() {
    let script = format!("{KEEPING}\ndef prompt(uuid, text, number):\n    keep(uuid)\n    done(uuid)\n");
    let mut sandbox = Sandbox::with_repository(&script);
    std::fs::write(sandbox.place("seed/.caisson.yaml"), "setup: [sh, set_up.sh]\n").unwrap();
    let set_up =
        "for file in ~/.claude/projects/*/*.jsonl; do [ ! -e \"$file\" ] || echo '{}' >> \"$file\"; done\n";
    sandbox.seed("set_up.sh", set_up, "build: set up");
    let first = git_work("One");
    assert_eq!(sandbox.run(first.clone()).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    sandbox.begin_anew();
    let message = failed(&sandbox.run(next(&first, "Two")).await, FailureKind::SetupFailed);
    assert!(message.contains("the session's conversation"), "{message}");
}
