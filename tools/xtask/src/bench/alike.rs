//! The script's agent is started as a run's agent is: what differs is listed here, and anything else fails. Else the bench would
//! measure two different agents, and nobody would notice.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use caisson_domain::protocol::places;
use caisson_domain::workflow::Workflow;
use testkit::engine::Engine;
use testkit::parts::Parts;
use testkit::world::{World, WorldSpec};

use super::script::{Script, ScriptSpec};

/// Arguments whose values differ: each conversation has an id of its own.
const OWN_VALUES: [&str; 1] = ["--session-id"];
/// Variables of the script's agent alone: the way to the model without a gateway, and who commits, which the shim tells git in
/// other ways.
const OF_THE_SCRIPT: [&str; 5] = [
    "ANTHROPIC_UNIX_SOCKET",
    "GIT_AUTHOR_EMAIL",
    "GIT_AUTHOR_NAME",
    "GIT_COMMITTER_EMAIL",
    "GIT_COMMITTER_NAME",
];
/// Variables of a run's agent alone: its tools go outside through the gateway, for which the script has nothing.
const OF_A_RUN: [&str; 8] = [
    "ALL_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];
/// The server that scripts/setup has built.
const CAISSON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.caisson/bin/caisson");
const WAIT: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn the_scripts_agent_is_started_as_a_runs_agent_is() {
    let Some(parts) = Parts::find(CAISSON) else { return };
    let (arguments, names) = of_a_run(&parts).await;
    let root = tempfile::tempdir().unwrap();
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/cart");
    let spec = ScriptSpec {
        limit: std::time::Duration::from_mins(1),
        apart: 0,
        id: "alike".to_owned(),
        image: caisson_sandbox::docker::DEFAULT_IMAGE.to_owned(),
        agent_version: super::stage::installed_version(&parts.agents_dir).unwrap(),
        workflow: Workflow::parse(include_str!("../../../../workflows/bug-fixer.md")).unwrap(),
        token: "a-key".to_owned(),
        prompt: "The tests fail. Find the bug.".to_owned(),
    };
    let script = Script::make(&parts, root.path(), &project, spec).unwrap();
    assert_eq!(without_own_values(&script.agent_arguments().unwrap()), without_own_values(&arguments));
    let of_the_script: BTreeSet<String> =
        script.environment().unwrap().into_iter().map(|(name, _)| name).collect();
    let alone = |these: &BTreeSet<String>, those: &BTreeSet<String>| {
        these.difference(those).cloned().collect::<Vec<String>>()
    };
    assert_eq!(alone(&of_the_script, &names), OF_THE_SCRIPT);
    assert_eq!(alone(&names, &of_the_script), OF_A_RUN);
}

/// Arguments of a real run's agent and the names in its environment, as the kernel has them.
async fn of_a_run(parts: &Parts) -> (Vec<String>, BTreeSet<String>) {
    let world = World::start(parts, WorldSpec::on(Engine::Local)).await.unwrap();
    let (_, sandbox) = world.half_done(&world.run_body(), WAIT).await.unwrap();
    let texts = |pid: u32, file: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let texts = bytes.split(|byte| *byte == 0).filter(|text| !text.is_empty());
        texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect::<Vec<_>>()
    };
    let of_the_agent =
        |pid: &u32| texts(*pid, "cmdline").first().is_some_and(|program| program == places::AGENT);
    let pid = world.processes(&sandbox).unwrap().into_iter().find(of_the_agent).unwrap();
    let names =
        texts(pid, "environ").iter().filter_map(|text| Some(text.split_once('=')?.0.to_owned())).collect();
    (texts(pid, "cmdline").split_off(1), names)
}

fn without_own_values(arguments: &[String]) -> Vec<String> {
    let cut = |argument: &String| match argument.split_once('=') {
        Some((name, _)) if OWN_VALUES.contains(&name) => name.to_owned(),
        Some(_) | None => argument.clone(),
    };
    arguments.iter().map(cut).collect()
}
