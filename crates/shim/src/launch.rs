//! What the agent is started with, made of what the workflow says: command line and environment.

use std::path::Path;

use caisson_claude::{
    EnvironmentSpec, Launch, PermissionMode as CliPermissionMode, PermissionPrompts, SessionMode,
    SettingSource, Uuid, asking, environment, settings_of_no_repository,
};
use caisson_domain::protocol::places::STEERING;
use caisson_domain::protocol::{AgentWork, RunWork, paths};
use caisson_domain::run::{Failure, FailureKind};
use caisson_domain::workflow::PermissionMode;
use serde_json::{Map, Value, json};

use crate::gate::profiles;
use crate::servers;
use crate::shim::Shim;
use crate::steering::{self, Acting};

/// The command line, without the program.
///
/// # Errors
/// [`Failure`] if the work cannot be made one.
pub(crate) fn launch(
    run: &RunWork,
    acting: &Acting,
    servers: &Map<String, Value>,
    resume: bool,
) -> Result<Launch, Failure> {
    let work = &run.agent;
    let conversation = Uuid::parse(&work.conversation).map_err(|error| bad_workflow(&error))?;
    let session = if resume { SessionMode::Resume(conversation) } else { SessionMode::New(conversation) };
    let mut launch = Launch::new(session);
    launch.model.clone_from(&work.model);
    launch.permission_mode = match work.permission_mode {
        PermissionMode::Default => CliPermissionMode::Default,
        PermissionMode::AcceptEdits => CliPermissionMode::AcceptEdits,
        PermissionMode::DontAsk => CliPermissionMode::DontAsk,
        PermissionMode::BypassPermissions => CliPermissionMode::BypassPermissions,
        PermissionMode::Plan => CliPermissionMode::Plan,
    };
    launch.tools.clone_from(&work.tools);
    launch.disallowed_tools.clone_from(&work.disallowed_tools);
    launch.max_turns = work.max_turns;
    launch.json_schema.clone_from(&run.output_schema);
    launch.append_system_prompt = system_prompt(run);
    if steering::acts(run) {
        // What is the user's there, the shim has put there. Of the workspace nothing is read.
        launch.setting_sources = vec![SettingSource::User];
        launch.settings =
            Some(acting.settings.clone().unwrap_or_else(|| settings_of_no_repository(STEERING)));
    }
    if let Some(approvals) = &work.approvals {
        launch.permission_prompts = PermissionPrompts::Driver;
        launch.settings = asking(launch.settings.take(), &approvals.ask);
    }
    if work.permission_mode != PermissionMode::Plan {
        launch.allowed_tools = servers::allowed(work);
    }
    if !servers.is_empty() {
        launch.mcp_config = Some(json!({ "mcpServers": servers }).to_string());
    }
    Ok(launch)
}

/// The workflow's prompt, and what the agent would otherwise learn when its push is refused.
fn system_prompt(run: &RunWork) -> Option<String> {
    let own = run.agent.system_prompt.as_deref().filter(|prompt| !prompt.trim().is_empty());
    if run.forbidden_paths.is_empty() {
        return own.map(str::to_owned);
    }
    let paths = run.forbidden_paths.join("\n- ");
    let rule = format!(
        "Your work is pushed only if none of its commits adds, changes or removes a file that one of these patterns covers:\n- {paths}\nIf the task needs that, leave it and say so in your last message."
    );
    Some(own.map_or_else(|| rule.clone(), |own| format!("{own}\n\n{rule}")))
}

/// The environment of the agent, and of what the repository names to be run.
///
/// # Errors
/// [`Failure`] for variables that the workflow must not set.
pub(crate) fn variables(shim: &Shim, work: &AgentWork) -> Result<Vec<(String, String)>, Failure> {
    let extra: Vec<_> = work.environment.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let text = |path: &Path| path.to_string_lossy().into_owned();
    environment(&EnvironmentSpec {
        home: &text(&shim.places.home),
        profiles: &text(&profiles(&shim.places.home)),
        path: &shim.path,
        tmpdir: &text(&shim.places.tmp),
        base_url: &format!("{}{}", shim.loopback, paths::MODEL),
        agent_grant: shim.door.grants().agent_text(),
        // What may not go out is told at once, and no tool waits for a name server.
        proxy_url: Some(&shim.loopback),
        extra: &extra,
    })
    .map_err(|error| bad_workflow(&error))
}

pub(crate) fn bad_workflow(error: &dyn std::error::Error) -> Failure {
    Failure::new(
        FailureKind::BadWorkflow,
        format!("the agent cannot be started as the workflow says: {error}"),
    )
}
