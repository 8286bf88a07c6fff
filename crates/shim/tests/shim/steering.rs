//! Whose files steer the agent: the real Claude Code and the real git on repositories whose branches try to.
//!
//! Every canary has a control: what must not act acts where it is trusted.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use caisson_domain::git::BranchName;
use caisson_domain::protocol::{Ending, JournalBody, RunWork};
use caisson_domain::run::FailureKind;
use caisson_domain::trust::{Steering, Trust};
use scripted_model::ScriptedModel;
use serde_json::{Value, json};

use crate::real_cli::{bash, hold_the_clone, real, sandbox};
use crate::sandbox::{BRANCH, Sandbox, failed, git, git_work, run_id};

/// The branch that somebody outside wrote.
pub(crate) const HEAD: &str = "pr/7";

/// Files of a repository that steers: `word` is in every text, and every program leaves a file of that name in `marks`.
fn steering_files(seed: &Path, word: &str, marks: &Path) {
    let write = |name: &str, text: &str| {
        let file = seed.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    };
    let mark = |what: &str| marks.join(format!("{word}-{what}")).display().to_string();
    write("CLAUDE.md", &format!("{word}-root @docs/guide.md\n"));
    write("docs/guide.md", &format!("{word}-import\n"));
    write("CLAUDE.local.md", &format!("{word}-local\n"));
    write(".claude/CLAUDE.md", &format!("{word}-inner\n"));
    write(".claude/rules/style.md", &format!("{word}-rule\n"));
    write(".claude/rules/below.md", &format!("---\npaths: [\"sub/**\"]\n---\n{word}-path\n"));
    write("sub/CLAUDE.md", &format!("{word}-nested\n"));
    write("sub/x.txt", "x\n");
    let hook =
        |what: &str| json!([{"hooks": [{"type": "command", "command": format!("touch {}", mark(what))}]}]);
    let settings = json!({
        "env": {"STEERED": word},
        "apiKeyHelper": format!("touch {}; echo x", mark("helper")),
        "hooks": {
            "SessionStart": hook("session"),
            "PreToolUse": [{"matcher": "", "hooks": [{"type": "command", "command": "\"$CLAUDE_PROJECT_DIR\"/.claude/hooks/tool.sh"}]}],
        },
    });
    write(".claude/settings.json", &settings.to_string());
    write(".claude/settings.local.json", &settings.to_string());
    write(".claude/hooks/tool.sh", &format!("#!/bin/sh\ntouch {}\n", mark("tool")));
    let skill = format!("---\nname: known\ndescription: {word}-skill\n---\nx\n");
    write(".claude/skills/known/SKILL.md", &skill);
    write(".claude/agents/helper.md", &format!("---\nname: helper\ndescription: {word}-subagent\n---\nx\n"));
    write(".claude/commands/act.md", &format!("---\ndescription: {word}-command\n---\nx\n"));
    let mcp = json!({"mcpServers": {"m": {"command": "touch", "args": [mark("mcp")]}}});
    write(".mcp.json", &mcp.to_string());
    let script = seed.join(".claude/hooks/tool.sh");
    std::fs::set_permissions(script, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A repository whose default branch steers by "base" and whose branch [`HEAD`] would by "head".
pub(crate) struct Scene {
    pub(crate) sandbox: Sandbox,
    pub(crate) model: ScriptedModel,
    pub(crate) marks: PathBuf,
}

/// What the agent does: it reads below `sub`, where rules for paths count, and runs a command.
fn looking() -> Value {
    let read = json!({"tool": {"name": "Read", "input": {"file_path": "$CWD/sub/x.txt"}}});
    json!({ "prompts": [[read, bash("echo steered=$STEERED"), { "text": "Done." }]] })
}

impl Scene {
    pub(crate) async fn new() -> Option<Self> {
        let (sandbox, model) = sandbox(looking()).await?;
        let marks = sandbox.place("marks");
        std::fs::create_dir(&marks).unwrap();
        let scene = Self { sandbox, model, marks };
        let seed = scene.sandbox.place("seed");
        steering_files(&seed, "base", &scene.marks);
        scene.push("main", "feat: steer");
        git(&seed, &["checkout", "-q", "-b", HEAD]);
        Some(scene)
    }

    /// One whose hostile branch has the same files with another word.
    async fn hostile() -> Option<Self> {
        let scene = Self::new().await?;
        steering_files(&scene.sandbox.place("seed"), "head", &scene.marks);
        scene.push(HEAD, "feat: steer otherwise");
        Some(scene)
    }

    pub(crate) fn push(&self, branch: &str, message: &str) {
        let seed = self.sandbox.place("seed");
        git(&seed, &["add", "-A"]);
        git(&seed, &["commit", "-q", "-m", message]);
        git(&seed, &["push", "-q", "origin", &format!("HEAD:refs/heads/{branch}")]);
    }

    /// What was run, by the files that it left.
    pub(crate) fn marks(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.marks).unwrap();
        let mut marks: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        marks.sort();
        marks
    }

    /// Everything that the model was told.
    pub(crate) fn calls(&self) -> String {
        self.sandbox.gateway.with(|state| state.calls.concat())
    }

    fn told(&self) -> Vec<Steering> {
        let steered = |body| match body {
            JournalBody::Steered(steering) => Some(steering),
            _ => None,
        };
        self.sandbox.bodies().into_iter().filter_map(steered).collect()
    }
}

pub(crate) fn on(base: &str, trust: Trust) -> RunWork {
    let mut work = real(git_work("Look around"));
    work.git.as_mut().unwrap().base = Some(base.parse().unwrap());
    work.trust = trust;
    work
}

pub(crate) const INSTRUCTIONS: Trust = Trust { instructions: true, settings: false };
pub(crate) const SETTINGS: Trust = Trust { instructions: true, settings: true };
const NOTHING: Trust = Trust { instructions: false, settings: false };

/// Texts of a steering repository that are instructions.
const TEXTS: [&str; 7] = ["root", "import", "local", "inner", "rule", "path", "nested"];

#[tokio::test]
async fn a_branch_does_not_steer_its_own_run() {
    let Some(mut scene) = Scene::hostile().await else { return };
    let outcome = scene.sandbox.run(on(HEAD, INSTRUCTIONS)).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", scene.sandbox.shim_log());
    let calls = scene.calls();
    for text in TEXTS {
        assert!(calls.contains(&format!("base-{text}")), "base-{text} is missing");
    }
    assert!(!calls.contains("head-"), "{calls}");
    assert!(!calls.contains("base-skill") && !calls.contains("base-subagent"));
    assert!(!calls.contains("steered=base") && !calls.contains("steered=head"));
    assert_eq!(scene.marks(), Vec::<String>::new());
    // The workspace is the branch's to the last byte, and nothing was published.
    assert_eq!(scene.sandbox.workspace(&["show", "HEAD:CLAUDE.md"]), "head-root @docs/guide.md");
    let there = std::fs::read_to_string(scene.sandbox.place("workspace/CLAUDE.md")).unwrap();
    assert_eq!(there, "head-root @docs/guide.md\n");
    assert_eq!(scene.sandbox.workspace(&["status", "--porcelain"]), "");
    assert_eq!(
        scene.sandbox.workspace(&["ls-files", "-t"]).lines().filter(|line| !line.starts_with('H')).count(),
        0
    );
    let told = scene.told();
    let main = scene.sandbox.remote(&["rev-parse", "main"]);
    assert_eq!((told.len(), &told[0].commit, told[0].settings), (1, &main, false));
    for path in ["CLAUDE.md", ".claude/settings.json", ".claude/hooks/tool.sh", ".mcp.json", "sub/CLAUDE.md"]
    {
        assert!(told[0].replaced.iter().any(|replaced| replaced == path), "{path}: {:?}", told[0]);
    }
    assert!(told[0].files.iter().any(|file| file == "docs/guide.md"), "{:?}", told[0]);
    assert_eq!(told[0].files_count, told[0].files.len() as u64);
    scene.model.shutdown().await;
}

/// The control: the same files act where they are the anchor's and the workflow says so, and those of the branch still do not.
#[tokio::test]
async fn settings_of_the_anchor_act_where_the_workflow_says_so() {
    let Some(mut scene) = Scene::hostile().await else { return };
    let outcome = scene.sandbox.run(on(HEAD, SETTINGS)).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", scene.sandbox.shim_log());
    let calls = scene.calls();
    for text in TEXTS.into_iter().chain(["skill", "subagent", "command"]) {
        assert!(calls.contains(&format!("base-{text}")), "base-{text} is missing");
    }
    assert!(!calls.contains("head-"), "{calls}");
    assert!(calls.contains("steered=base"), "the environment of the settings acts");
    // The hook that the settings name below .claude is the anchor's too, and the helper that would replace the grant is none.
    assert_eq!(scene.marks(), ["base-mcp", "base-session", "base-tool"]);
    assert!(scene.told()[0].settings);
    let notes = scene.sandbox.notes();
    assert!(notes.iter().any(|note| note.contains("do not act: apiKeyHelper")), "{notes:?}");
    scene.model.shutdown().await;
}

/// Another control: a branch that the workflow trusts steers its own run.
#[tokio::test]
async fn a_trusted_branch_steers_its_own_run() {
    let Some(mut scene) = Scene::hostile().await else { return };
    let mut work = on(HEAD, SETTINGS);
    work.git.as_mut().unwrap().anchor = Some(HEAD.parse().unwrap());
    let outcome = scene.sandbox.run(work).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", scene.sandbox.shim_log());
    let calls = scene.calls();
    assert!(
        calls.contains("head-root") && calls.contains("head-skill") && !calls.contains("base-"),
        "{calls}"
    );
    assert_eq!(scene.marks(), ["head-mcp", "head-session", "head-tool"]);
    let told = &scene.told()[0];
    assert_eq!((told.replaced_count, told.anchor.as_ref().map(BranchName::as_str)), (0, Some(HEAD)));
    scene.model.shutdown().await;
}

/// The agent is started beside the clone and held: however long that takes, it has not looked for instructions before.
#[tokio::test]
async fn an_agent_that_is_held_for_a_slow_clone_has_its_instructions() {
    let Some(mut scene) = Scene::hostile().await else { return };
    scene.sandbox.gateway.with(|state| state.hold = Some("/git/"));
    let work = on(HEAD, INSTRUCTIONS);
    scene.sandbox.deliver(work.clone());
    scene.sandbox.start();
    hold_the_clone(&scene.sandbox).await;
    scene.sandbox.gateway.with(|state| state.hold = None);
    assert_eq!(scene.sandbox.outcome(&work.run).await.ending, Ending::Completed);
    scene.sandbox.exit().await;
    let calls = scene.calls();
    assert!(TEXTS.iter().all(|text| calls.contains(&format!("base-{text}"))) && !calls.contains("head-"));
    scene.model.shutdown().await;
}

#[tokio::test]
async fn without_trust_nothing_of_the_repository_steers() {
    let Some(mut scene) = Scene::hostile().await else { return };
    let outcome = scene.sandbox.run(on(HEAD, NOTHING)).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", scene.sandbox.shim_log());
    let calls = scene.calls();
    assert!(!calls.contains("head-") && !calls.contains("base-"), "{calls}");
    assert_eq!(scene.marks(), Vec::<String>::new());
    scene.model.shutdown().await;
}

/// Makes a repository say that a file of the anchor has another content: git does not look whether an object is what its name says.
#[expect(clippy::disallowed_methods, reason = "tests start git")]
fn forge(workspace: &Path, name: &str, content: &str) {
    let script = r#"
set -e
object() { echo "$1" | sed 's,^..,.git/objects/&/,'; }
for pack in .git/objects/pack/*.pack; do
    [ -e "$pack" ] || continue
    mv "$pack" ../forging.pack
    rm -f .git/objects/pack/*
    git unpack-objects -q < ../forging.pack
done
true=$(git rev-parse "refs/caisson/anchor:$1")
false=$(printf %s "$2" | git hash-object -w --stdin)
cp -f "$(object "$false")" "$(object "$true")"
[ "$(git cat-file blob "refs/caisson/anchor:$1")" = "$2" ]
"#;
    let forged = std::process::Command::new("sh")
        .args(["-c", script, "sh", name, content])
        .current_dir(workspace)
        .status();
    assert!(forged.unwrap().success());
}

/// What an agent left in its home and in its repository does not steer the next run of the session.
#[tokio::test]
async fn an_earlier_agent_does_not_steer_the_next_run() {
    let Some(mut scene) = Scene::new().await else { return };
    git(&scene.sandbox.place("seed"), &["checkout", "-q", "main"]);
    std::fs::write(scene.sandbox.place("seed/.caisson.yaml"), "setup: [\"true\"]\n").unwrap();
    scene.push("main", "build: set up");
    let first = on("main", INSTRUCTIONS);
    assert_eq!(
        scene.sandbox.run(first.clone()).await.ending,
        Ending::Completed,
        "{}",
        scene.sandbox.shim_log()
    );
    let home = scene.sandbox.place("home");
    let mark = |what: &str| scene.marks.join(what).display().to_string();
    let hook =
        |what: &str| json!([{"hooks": [{"type": "command", "command": format!("touch {}", mark(what))}]}]);
    std::fs::write(
        home.join(".claude/settings.json"),
        json!({"hooks": {"SessionStart": hook("left-hook")}}).to_string(),
    )
    .unwrap();
    std::fs::write(home.join(".claude/CLAUDE.md"), "left-text").unwrap();
    let project = std::fs::read_dir(home.join(".claude/projects")).unwrap().next().unwrap().unwrap().path();
    std::fs::create_dir_all(project.join("memory")).unwrap();
    std::fs::write(project.join("memory/MEMORY.md"), "left-memory").unwrap();
    std::fs::write(home.join(".claude/rules/left.md"), "left-rule").unwrap();
    std::fs::create_dir_all(home.join(".claude/skills/left")).unwrap();
    std::fs::write(
        home.join(".claude/skills/left/SKILL.md"),
        "---\nname: left\ndescription: left-skill\n---\n",
    )
    .unwrap();
    std::fs::write(home.join(".claude.json"), json!({"env": {"STEERED": "left"}}).to_string()).unwrap();
    std::fs::write(scene.sandbox.place("workspace/CLAUDE.md"), "left-work\n").unwrap();
    let workspace = scene.sandbox.place("workspace");
    git(&workspace, &["config", "filter.left.clean", &format!("touch {}; cat", mark("left-filter"))]);
    git(&workspace, &["config", "filter.left.smudge", &format!("touch {}; cat", mark("left-smudge"))]);
    git(&workspace, &["config", "filter.left.required", "true"]);
    git(&workspace, &["config", "hook.left.command", &format!("touch {}", mark("left-git-hook"))]);
    git(&workspace, &["config", "hook.left.event", "pre-commit"]);
    std::fs::write(workspace.join(".gitattributes"), "* filter=left diff=left merge=left\n").unwrap();
    forge(&workspace, "CLAUDE.md", "left-forged");
    forge(&workspace, ".caisson.yaml", &format!("setup: [touch, {}]", mark("left-set-up")));
    scene.sandbox.begin_anew();
    scene.sandbox.gateway.with(|state| state.calls.clear());
    let mut second = RunWork { run: run_id(2), ..first };
    second.agent.conversation = "0192f0c1-2345-7abc-8def-0123456789ac".to_owned();
    let outcome = scene.sandbox.run(second).await;
    assert_eq!((outcome.ending, outcome.pushed), (Ending::Completed, true), "{}", scene.sandbox.shim_log());
    let calls = scene.calls();
    assert!(!calls.contains("left-") && calls.contains("base-root"), "{calls}");
    assert!(!calls.contains("steered=left"));
    assert!(!project.join("memory").exists());
    assert_eq!(scene.marks(), Vec::<String>::new());
    // Its work on the file is published all the same.
    assert_eq!(scene.sandbox.remote(&["show", &format!("{BRANCH}:CLAUDE.md")]), "left-work");
    scene.model.shutdown().await;
}

/// Files that are none, links, other spellings, and what git itself would follow.
#[tokio::test]
async fn odd_files_of_a_branch_do_not_steer() {
    let Some(mut scene) = Scene::new().await else { return };
    let seed = scene.sandbox.place("seed");
    let mark = |what: &str| scene.marks.join(format!("head-{what}")).display().to_string();
    git(&seed, &["rm", "-rq", ".claude", "CLAUDE.md", "CLAUDE.local.md"]);
    std::fs::create_dir_all(seed.join("hidden/rules")).unwrap();
    let hooks = json!({"hooks": {"SessionStart": [{"hooks": [{"type": "command", "command": format!("touch {}", mark("linked"))}]}]}});
    std::fs::write(seed.join("hidden/settings.json"), hooks.to_string()).unwrap();
    std::fs::write(seed.join("hidden/rules/r.md"), "head-linked-rule").unwrap();
    std::os::unix::fs::symlink("hidden", seed.join(".claude")).unwrap();
    std::fs::create_dir(seed.join("CLAUDE.md")).unwrap();
    std::fs::write(seed.join("CLAUDE.md/CLAUDE.md"), "head-directory").unwrap();
    for name in ["claude.md", "Claude.MD", "AGENTS.md", ".Claude.md"] {
        std::fs::write(seed.join(name), "head-spelling").unwrap();
    }
    std::fs::write(seed.join(".env"), "STEERED=head\nANTHROPIC_CUSTOM_HEADERS=x-head: head-env\n").unwrap();
    std::fs::write(seed.join("bunfig.toml"), "preload = [\"./pre.js\"]\n").unwrap();
    std::fs::write(seed.join("pre.js"), format!("require('fs').writeFileSync('{}', '')", mark("preload")))
        .unwrap();
    let modules = "[submodule \"m\"]\n\tpath = m\n\turl = ext::sh -c 'touch head'\n[submodule \"n\"]\n\tpath = ../n\n\turl = --upload-pack=x\n";
    std::fs::write(seed.join(".gitmodules"), modules).unwrap();
    std::fs::write(seed.join(".lfsconfig"), "[lfs]\n\turl = http://head.example/\n").unwrap();
    let attributes =
        "* filter=lfs diff=head merge=head\nx.txt export-subst ident\na.txt -diff\nsub/x.txt text eol=crlf\n";
    std::fs::write(seed.join(".gitattributes"), attributes).unwrap();
    scene.push(HEAD, "feat: odd files");
    let outcome = scene.sandbox.run(on(HEAD, INSTRUCTIONS)).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", scene.sandbox.shim_log());
    let calls = scene.calls();
    assert!(calls.contains("base-root") && !calls.contains("head-"), "{calls}");
    assert!(!calls.contains("steered=head"));
    assert_eq!(scene.marks(), Vec::<String>::new());
    let replaced = &scene.told()[0].replaced;
    for path in [
        ".claude",
        "claude.md",
        "CLAUDE.md/CLAUDE.md",
        ".gitmodules",
        ".lfsconfig",
        ".gitattributes",
        "AGENTS.md",
    ] {
        assert!(replaced.iter().any(|name| name == path), "{path}: {replaced:?}");
    }
    // The files came as the anchor's attributes have it, and what changes in them is shown.
    assert_eq!(std::fs::read(scene.sandbox.place("workspace/sub/x.txt")).unwrap(), b"x\n");
    assert_eq!(scene.sandbox.workspace(&["status", "--porcelain"]), "");
    std::fs::write(scene.sandbox.place("workspace/a.txt"), "changed\n").unwrap();
    assert!(scene.sandbox.workspace(&["diff"]).contains("+changed"));
    // The control: with the branch's own attributes it is not.
    std::fs::remove_file(scene.sandbox.place("workspace/.git/info/attributes")).unwrap();
    assert!(!scene.sandbox.workspace(&["diff"]).contains("+changed"));
    scene.model.shutdown().await;
}

/// A reviewer sees what a branch changes in these files, and a run that works on them publishes its own version.
#[tokio::test]
async fn what_a_branch_changes_is_seen_and_published_as_it_is() {
    let see = bash(
        "git diff refs/caisson/anchor...HEAD -- CLAUDE.md; echo more >> CLAUDE.md; git diff -- CLAUDE.md",
    );
    let Some((sandbox, model)) = sandbox(json!({ "prompts": [
        [see, { "text": "Seen." }],
        { "when_prompt_contains": "commit message", "steps": [{ "text": "docs: say more" }] },
    ] }))
    .await
    else {
        return;
    };
    let marks = sandbox.place("marks");
    let mut scene = Scene { sandbox, model, marks };
    let seed = scene.sandbox.place("seed");
    scene.sandbox.seed("CLAUDE.md", "base-text\n", "docs: instruct");
    git(&seed, &["checkout", "-q", "-b", HEAD]);
    std::fs::write(seed.join("CLAUDE.md"), "head-text\n").unwrap();
    scene.push(HEAD, "docs: instruct otherwise");
    let outcome = scene.sandbox.run(on(HEAD, INSTRUCTIONS)).await;
    assert_eq!((outcome.ending, outcome.pushed), (Ending::Completed, true), "{}", scene.sandbox.shim_log());
    let first = scene.sandbox.gateway.with(|state| state.calls[0].clone());
    assert!(first.contains("base-text") && !first.contains("head-text"), "{first}");
    let calls = scene.calls();
    assert!(
        calls.contains("-base-text") && calls.contains("+head-text") && calls.contains("+more"),
        "{calls}"
    );
    assert_eq!(scene.sandbox.remote(&["show", &format!("{BRANCH}:CLAUDE.md")]), "head-text\nmore");
    scene.model.shutdown().await;
}

#[tokio::test]
async fn settings_that_cannot_be_read_fail_the_run_before_its_agent_starts() {
    let Some(mut scene) = Scene::new().await else { return };
    let seed = scene.sandbox.place("seed");
    git(&seed, &["checkout", "-q", "main"]);
    std::fs::write(seed.join(".claude/settings.json"), "{ no json").unwrap();
    scene.push("main", "feat: break the settings");
    let message = failed(&scene.sandbox.run(on("main", SETTINGS)).await, FailureKind::BadWorkflow);
    assert!(message.contains(".claude/settings.json"), "{message}");
    assert!(scene.calls().is_empty());
    scene.model.shutdown().await;
}

#[tokio::test]
async fn an_anchor_that_is_not_there_fails_the_run() {
    let Some(mut scene) = Scene::new().await else { return };
    let mut work = on("main", INSTRUCTIONS);
    work.git.as_mut().unwrap().anchor = Some("release/9".parse().unwrap());
    let message = failed(&scene.sandbox.run(work).await, FailureKind::RepoUnreachable);
    assert!(message.contains("release/9"), "{message}");
    scene.model.shutdown().await;
}

/// A tool that writes files makes no settings, skills or instructions for the agent that has it.
#[tokio::test]
async fn a_tool_that_writes_files_does_not_steer() {
    let (targets, expected) = (["settings.json", "skills/a/SKILL.md", "CLAUDE.md"], "base-root");
    let steps = |home: &str| {
        let write = |name: &str| json!({"tool": {"name": "Write", "input": {"file_path": format!("{home}/.claude/{name}"), "content": "written"}}});
        let steps: Vec<Value> =
            targets.iter().map(|name| write(name)).chain([json!({"text": "Done."})]).collect();
        json!({ "prompts": [steps] })
    };
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("home");
    std::fs::create_dir(&place).unwrap();
    let Some((mut sandbox, model)) = sandbox(steps(place.to_str().unwrap())).await else { return };
    sandbox.set("home", place.to_str().unwrap());
    sandbox.seed("CLAUDE.md", expected, "docs: instruct");
    let outcome = sandbox.run(on("main", INSTRUCTIONS)).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert!(!place.join(".claude/settings.json").exists() && !place.join(".claude/skills").exists());
    assert!(!std::fs::read_to_string(place.join(".claude/CLAUDE.md")).unwrap().contains("written"));
    model.shutdown().await;
}
