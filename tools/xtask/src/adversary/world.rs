//! The attempts in a real sandbox, made by the real agent.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::engine::Engine;
use testkit::parts::Parts;
use testkit::repository;
use testkit::world::{World, WorldSpec};

use super::surroundings::{Surroundings, write_attempts};
use super::table::Attempt;
use super::verdict::Verdict;
use super::witness::{fill, token};

/// Time limit of a run with all attempts.
const WAIT: Duration = Duration::from_mins(8);
/// Name of the scenario.
const SCENARIO: &str = "adversary";

/// Has the agent make every attempt, one tool call each, and judges them.
///
/// # Errors
/// The run does not succeed, or an attempt told nothing.
pub(crate) async fn attack(
    parts: &Parts,
    engine: Engine,
    attempts: &[&Attempt],
    surroundings: &Surroundings,
) -> anyhow::Result<HashMap<&'static str, Verdict>> {
    let side = engine.name();
    let spec = WorldSpec {
        scenario: SCENARIO.to_owned(),
        scenarios: vec![scenario(attempts, side, surroundings)],
        ..WorldSpec::on(engine)
    };
    let world = World::start(parts, spec).await?;
    let project = tempfile::tempdir()?;
    write_attempts(project.path())?;
    let repositories = world.bare.parent().context("the repository has a directory")?;
    repository::bare_from(repositories, "adversary.git", project.path())?;
    let body = json!({
        "workflow": "bug-fixer", "prompt": "Try everything.", "repository": world.host.url("adversary.git"),
        "max_turns": 1000,
    });
    let id = world.api.submit(&body).await?;
    let run = world.api.wait_end(&id, WAIT).await?;
    ensure!(
        run["status"] == "succeeded",
        "the run of the attempts did not succeed: {run:#}\n{}",
        world.server.log()
    );
    surroundings.check()?;
    let told = results(&world.api.events(&id).await?);
    attempts.iter().map(|attempt| Ok((attempt.name, judge(attempt, side, &told, surroundings)?))).collect()
}

fn judge(attempt: &Attempt, side: &str, told: &str, surroundings: &Surroundings) -> anyhow::Result<Verdict> {
    let verdict = Verdict::read(attempt.name, told)
        .with_context(|| format!("{} told nothing in the sandbox", attempt.name))?;
    Ok(verdict.witnessed(attempt, &surroundings.witness, &token(attempt.name, side)))
}

/// What the agent's tools answered, as its lines tell it.
fn results(events: &[Value]) -> String {
    let lines =
        events.iter().filter(|event| event["kind"] == "agent.line" && event["data"]["type"] == "user");
    let blocks = lines.flat_map(|event| event["data"]["message"]["content"].as_array().into_iter().flatten());
    let texts = blocks.filter(|block| block["type"] == "tool_result").map(|block| {
        let content = &block["content"];
        let parts = content.as_array().into_iter().flatten();
        let parts: String = parts.filter_map(|part| part["text"].as_str()).collect();
        content.as_str().map_or(parts, str::to_owned)
    });
    texts.collect::<Vec<_>>().join("\n")
}

fn scenario(attempts: &[&Attempt], side: &str, surroundings: &Surroundings) -> String {
    let mut steps: Vec<Value> = attempts
        .iter()
        .map(|attempt| {
            let values = surroundings.values(attempt.name, side);
            let arguments: Vec<_> = attempt.arguments.iter().map(|word| fill(word, &values)).collect();
            let command = format!("python3 attempt.py {} {}", attempt.name, arguments.join(" "));
            json!({ "tool": { "name": "Bash", "input": { "command": command, "description": "Try" } } })
        })
        .collect();
    steps.push(json!({ "text": "Tried everything." }));
    json!({ SCENARIO: { "prompts": [steps, [{ "text": "chore: try everything" }]] } }).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;

    /// Where the attempts' files are.
    fn files() -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/adversary/attempts")
    }

    #[test]
    fn every_attempt_is_a_function_and_every_function_an_attempt() {
        let modules =
            [("secrets", "secrets_of_others.py", 4), ("network", "network.py", 1), ("host", "host.py", 1)];
        for (module, file, helpers) in modules {
            let text = std::fs::read_to_string(files().join(file)).unwrap();
            let functions: Vec<_> = text
                .lines()
                .filter_map(|line| line.strip_prefix("def ")?.split_once('(').map(|(name, _)| name))
                .collect();
            let tried: Vec<_> = table::ALL
                .iter()
                .filter_map(|found| found.name.strip_prefix(&format!("{module}.")))
                .collect();
            for name in &tried {
                assert!(functions.contains(name), "{module}.{name} is no function");
            }
            let spare: Vec<_> = functions.iter().filter(|name| !tried.contains(name)).collect();
            assert!(spare.len() <= helpers, "{module}: nobody tries {spare:?}");
        }
        let mut names: Vec<_> = table::ALL.iter().map(|attempt| attempt.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), table::ALL.len());
    }

    #[test]
    fn the_answers_of_tools_are_found_in_both_forms() {
        let line = |content: Value| {
            json!({"kind": "agent.line", "data": {"type": "user", "message": {"content": [
                {"type": "tool_result", "content": content}]}}})
        };
        let events = [
            line(json!("attempt a refused x")),
            line(json!([{"type": "text", "text": "attempt b through"}])),
        ];
        assert_eq!(results(&events), "attempt a refused x\nattempt b through");
    }
}
