//! Whether a requested run can be accepted, and what it then is exactly.
//!
//! A value that the request gives is taken as it is or refused, never quietly changed; the workflow's value stands in
//! only for what the request leaves out.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use caisson_domain::budget::{RUN_BUDGET_MICRO_USD, SOFT_PERCENT};
use caisson_domain::git::{BranchName, Repository};
use caisson_domain::image::check_image_name;
use caisson_domain::limits;
use caisson_domain::parameters::{self, FILLED_PROMPT_BYTES, Values};
use caisson_domain::run::{Resources, RunSpec};
use caisson_domain::schema::Schema;
use caisson_domain::workflow::{CPU_MILLIS, MEMORY_MIB, PIDS, TMP_MIB, WORKSPACE_MIB, Workflow};
use serde_json::Value;

use super::request::{CreateRun, RepositoryChoice};
use crate::config::ApiConfig;
use crate::problem::Faults;

/// Turns of the agent.
pub(super) const MAX_TURNS: RangeInclusive<u32> = 1..=limits::MAX_TURNS_MAX;
/// Time limits, in seconds.
pub(super) const TIMEOUT_S: RangeInclusive<u32> = limits::RUN_TIMEOUT_S_MIN..=limits::RUN_TIMEOUT_S_MAX;
/// Longest model id, in bytes.
const MODEL_BYTES: usize = 128;

/// Checks everything that can be checked without the outside, adds what is wrong to `faults`, and makes the
/// specification. It may be used only if there are no faults; none without a workflow.
pub(super) fn specification(
    request: &CreateRun,
    workflow: Option<(&Workflow, i64)>,
    config: &ApiConfig,
    faults: &mut Faults,
) -> Option<RunSpec> {
    check_prompt(&request.prompt, faults);
    let repository = check_repository(&request.repository, config, faults);
    let has_repository = repository.is_some() || faults.mention("repository");
    let base = check_branch("base", request.base.as_deref(), has_repository, faults);
    let asked = check_branch("anchor", request.anchor.as_deref(), has_repository, faults);
    let branch = check_branch("branch", request.branch.as_deref(), has_repository, faults);
    check_model(request.model.as_deref(), faults);
    check_image(request.image.as_deref(), faults);
    check_range("max_turns", request.max_turns, &MAX_TURNS, faults);
    check_range("timeout_s", request.timeout_s, &TIMEOUT_S, faults);
    check_range("budget_micro_usd", request.budget_micro_usd, &RUN_BUDGET_MICRO_USD, faults);
    check_range("budget_soft_percent", request.budget_soft_percent, &SOFT_PERCENT, faults);
    check_resources(request, faults);
    check_environment_values(&request.environment, faults);
    check_schema(request.output_schema.as_ref(), faults);
    let (workflow, version) = workflow?;
    let parameters = check_parameters(request, workflow, faults);
    let image = request.image.clone().or_else(|| workflow.caisson.image.clone());
    check_image_support(image.as_deref(), config, faults);
    check_environment_names(request.environment.keys(), workflow, faults);
    let anchor = workflow.caisson.trust.anchor(base.as_ref(), asked.as_ref()).unwrap_or_else(|error| {
        faults.add("anchor", "anchor_not_trusted", error.to_string());
        None
    });
    Some(RunSpec {
        prompt: request.prompt.clone(),
        repository,
        base,
        anchor,
        branch,
        model: request.model.clone().or_else(|| workflow.model.clone()),
        max_turns: request.max_turns.or(workflow.max_turns),
        image,
        timeout_s: request.timeout_s.unwrap_or(workflow.caisson.timeout_s),
        budget_micro_usd: request.budget_micro_usd.or(workflow.caisson.budget_micro_usd),
        budget_soft_percent: request
            .budget_soft_percent
            .or(workflow.caisson.budget_soft_percent)
            .or(config.budget_soft_percent),
        resources: resolve(request, workflow),
        environment: request.environment.clone(),
        priority: 0,
        start_at_ms: None,
        parameters,
        output_schema: request.output_schema.clone().or_else(|| workflow.caisson.output_schema.clone()),
        workflow_version: Some(version),
        // The store fills them in.
        attachments: Vec::new(),
        workflow: workflow.clone(),
    })
}

fn check_prompt(prompt: &str, faults: &mut Faults) {
    if faults.mention("prompt") {
        return;
    }
    if prompt.trim().is_empty() {
        faults.add("prompt", "prompt_blank", "it is blank; say what the agent should do");
    } else if prompt.len() > limits::PROMPT_BYTES {
        let message = format!("it has {} bytes; at most {} are taken", prompt.len(), limits::PROMPT_BYTES);
        faults.add("prompt", "prompt_too_long", message);
    } else if prompt.contains('\0') {
        // Not every database can hold one, and no terminal shows it.
        faults.add("prompt", "prompt_invalid", "it holds a null character");
    }
}

fn check_repository(
    choice: &RepositoryChoice,
    config: &ApiConfig,
    faults: &mut Faults,
) -> Option<Repository> {
    let repository = match choice {
        RepositoryChoice::Empty => return None,
        RepositoryChoice::Default => config.default_repository.clone()?,
        RepositoryChoice::ServerDefault => {
            let Some(repository) = config.default_repository.clone() else {
                let message = "this server has no default repository: name one, or, for an empty workspace, null \
                               (`--no-repo` on the command line)";
                faults.add("repository", "no_default_repository", message);
                return None;
            };
            repository
        }
        RepositoryChoice::Named(text) => match text.parse::<Repository>() {
            Ok(repository) => repository,
            Err(error) => {
                faults.add("repository", "repository_invalid", error.to_string());
                return None;
            }
        },
    };
    if config.allow.allows(&repository) {
        return Some(repository);
    }
    let remedy = match &repository {
        Repository::Path(_) => "start the server with `--allow-repo DIR` for a directory around it",
        Repository::Url(_) => "add it to `repositories` in the server's configuration",
    };
    let message = format!("runs of this server may not work on \"{repository}\"; to allow it, {remedy}");
    faults.add("repository", "repository_not_allowed", message);
    None
}

fn check_branch(
    field: &'static str,
    text: Option<&str>,
    has_repository: bool,
    faults: &mut Faults,
) -> Option<BranchName> {
    let text = text?;
    match text.parse() {
        Ok(name) if has_repository => Some(name),
        Ok(_) => {
            let message = "a run without a repository has no branches; name a repository or leave this out";
            faults.add(field, "branch_without_repository", message);
            None
        }
        Err(error) => {
            let error: caisson_domain::git::BranchError = error;
            faults.add(field, "branch_invalid", error.to_string());
            None
        }
    }
}

/// The agent gets the model's name as an argument, so a leading dash must not pass.
fn check_model(model: Option<&str>, faults: &mut Faults) {
    let Some(model) = model else { return };
    let first = model.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = model.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:/@[]-".contains(&b));
    if !first || !rest || model.len() > MODEL_BYTES {
        let message = format!(
            "it is no model id; use 1 to {MODEL_BYTES} letters, digits and . _ : / @ [ ] -, beginning with a letter or digit"
        );
        faults.add("model", "model_invalid", message);
    }
}

/// Well formed, not proven: only the engine knows whether there is such an image.
/// The workflow's image counts as well: it is never quietly left out.
fn check_image_support(image: Option<&str>, config: &ApiConfig, faults: &mut Faults) {
    if let Some(image) = image.filter(|_| config.without_images) {
        let message = format!(
            "this server's engine is local and has no images, so \"{image}\" cannot be used: leave the image out of run and workflow, or use a server with the Docker engine"
        );
        faults.add("image", "image_unsupported", message);
    }
}

fn check_image(image: Option<&str>, faults: &mut Faults) {
    let Some(image) = image else { return };
    if let Err(error) = check_image_name(image) {
        faults.add("image", "image_invalid", error.to_string());
    }
}

fn check_range(field: &str, value: Option<u32>, range: &RangeInclusive<u32>, faults: &mut Faults) {
    if let Some(value) = value.filter(|value| !range.contains(value)) {
        let message = format!("{value} is not from {} to {}", range.start(), range.end());
        faults.add(field, "out_of_range", message);
    }
}

fn check_resources(request: &CreateRun, faults: &mut Faults) {
    let Some(resources) = request.resources else { return };
    check_range("resources.memory_mib", resources.memory_mib, &MEMORY_MIB, faults);
    check_range("resources.pids", resources.pids, &PIDS, faults);
    check_range("resources.cpu_millis", resources.cpu_millis, &CPU_MILLIS, faults);
    check_range("resources.tmp_mib", resources.tmp_mib, &TMP_MIB, faults);
    check_range("resources.workspace_mib", resources.workspace_mib, &WORKSPACE_MIB, faults);
}

/// The request's values over the workflow's, over the defaults.
fn resolve(request: &CreateRun, workflow: &Workflow) -> Resources {
    let below = workflow.caisson.resources.resolve();
    let above = request.resources.unwrap_or_default();
    Resources {
        memory_mib: above.memory_mib.unwrap_or(below.memory_mib),
        pids: above.pids.unwrap_or(below.pids),
        cpu_millis: above.cpu_millis.unwrap_or(below.cpu_millis),
        tmp_mib: above.tmp_mib.unwrap_or(below.tmp_mib),
        workspace_mib: above.workspace_mib.or(below.workspace_mib),
    }
}

fn check_schema(schema: Option<&Value>, faults: &mut Faults) {
    if let Some(Err(error)) = schema.map(Schema::read) {
        faults.add("output_schema", "schema_invalid", error.to_string());
    }
}

fn check_parameters(request: &CreateRun, workflow: &Workflow, faults: &mut Faults) -> Values {
    let values = parameters::resolve(&workflow.caisson.parameters, &request.parameters);
    let values = values.unwrap_or_else(|found| {
        for fault in found {
            faults.add(&format!("parameters.{}", fault.name), "parameter_invalid", fault.reason);
        }
        Values::new()
    });
    let bytes = parameters::fill(&workflow.prompt, &values).len();
    if bytes > FILLED_PROMPT_BYTES {
        let message = format!(
            "the workflow's prompt has {bytes} bytes with these values, and at most {FILLED_PROMPT_BYTES} are taken; shorten them"
        );
        faults.add("parameters", "parameters_too_long", message);
    }
    values
}

fn check_environment_values(environment: &BTreeMap<String, String>, faults: &mut Faults) {
    for (name, value) in environment {
        let field = format!("environment.{name}");
        if value.len() > limits::ENVIRONMENT_VALUE_BYTES {
            let message = format!(
                "it has {} bytes; at most {} are taken",
                value.len(),
                limits::ENVIRONMENT_VALUE_BYTES
            );
            faults.add(&field, "environment_value_too_long", message);
        } else if value.contains('\0') {
            faults.add(&field, "environment_value_invalid", "it holds a null character");
        }
    }
}

fn check_environment_names<'a>(
    names: impl Iterator<Item = &'a String>,
    workflow: &Workflow,
    faults: &mut Faults,
) {
    let allowed = &workflow.caisson.environment;
    for name in names.filter(|name| !allowed.contains(name)) {
        let message = if allowed.is_empty() {
            format!("the workflow {} lets a run set no environment variable", workflow.name)
        } else {
            format!("the workflow {} lets a run set only: {}", workflow.name, allowed.join(", "))
        };
        faults.add(&format!("environment.{name}"), "environment_not_allowed", message);
    }
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
