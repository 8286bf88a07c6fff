//! What the shim is told about a run: pure.

use std::collections::BTreeMap;

use caisson_domain::approval::ApprovalWork;
use caisson_domain::check_result::CHECK_TURNS_DEFAULT;
use caisson_domain::git::BranchName;
use caisson_domain::id::Epoch;
use caisson_domain::mcp;
use caisson_domain::parameters::{self, ParameterKind};
use caisson_domain::protocol::{AgentWork, ArchiveWork, GitWork, RunWork};
use caisson_domain::run::{Run, RunSpec};
use caisson_domain::trust::Trust;
use caisson_domain::workflow::Workflow;
use caisson_store::Archive;
use serde_json::Value;

use crate::bounds::SUBJECT_CHARS;
use crate::config::GitIdentity;

/// A run as the store hands it out.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) run: Run,
    pub(crate) epoch: Epoch,
    pub(crate) conversation: String,
    pub(crate) resume: bool,
    pub(crate) archive: Option<Archive>,
    pub(crate) files: Files,
    pub(crate) image: Option<String>,
    /// Whether sandboxes of this server may wait for another run.
    pub(crate) keep: bool,
}

/// Where the run's files come from, and what of them is new.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) pushed: bool,
    pub(crate) start: Option<String>,
    pub(crate) start_branch: Option<BranchName>,
    pub(crate) since: Option<String>,
}

/// The run has a repository and no branch, which the store never writes.
#[derive(Debug, thiserror::Error)]
#[error("the run has a repository but no branch")]
pub(crate) struct NoBranch;

/// Builds the run's work; `now_ms` is the store's time.
pub(crate) fn run_work(delivery: Delivery, identity: &GitIdentity, now_ms: i64) -> Result<RunWork, NoBranch> {
    let Delivery { run, epoch, conversation, resume, archive, files, image, keep } = delivery;
    let git = git_work(&run, files, identity)?;
    let timeout_ms = time_left_ms(&run, now_ms);
    let servers = Servers::of(&run.spec.workflow);
    // One that was asked for is not asked for again: what the file says meanwhile is for the next run.
    let may_choose_image = image.is_some() && run.spec.image.is_none() && run.repository_image.is_none();
    let spec = run.spec;
    let workflow = spec.workflow;
    let agent = AgentWork {
        conversation,
        resume,
        archive: archive.map(|archive| ArchiveWork { run: archive.run, is_latest: archive.is_latest }),
        model: spec.model,
        permission_mode: workflow.permission_mode,
        tools: workflow.tools,
        disallowed_tools: workflow.disallowed_tools,
        allowed_tools: workflow.allowed_tools,
        max_turns: spec.max_turns,
        system_prompt: Some(parameters::fill(&workflow.prompt, &spec.parameters))
            .filter(|prompt| !prompt.trim().is_empty()),
        mcp_servers: servers.programs,
        mcp_http: servers.http,
        mcp_required: servers.required,
        environment: spec.environment,
        approvals: workflow.caisson.approvals.map(|approvals| ApprovalWork { ask: approvals.ask }),
    };
    let trust = workflow.caisson.trust;
    Ok(RunWork {
        run: run.id,
        epoch,
        attempt: run.attempt,
        workflow: workflow.name,
        prompt: spec.prompt,
        attachments: spec.attachments,
        agent,
        git,
        publish: workflow.caisson.publish,
        trust: Trust { instructions: trust.instructions, settings: trust.settings },
        forbidden_paths: workflow.caisson.forbidden_paths,
        workspace: workflow.caisson.workspace,
        image,
        may_choose_image,
        output_schema: spec.output_schema,
        checks: workflow.caisson.checks,
        check_turns: workflow.caisson.check_turns.unwrap_or(CHECK_TURNS_DEFAULT),
        timeout_ms,
        keep,
    })
}

fn git_work(run: &Run, files: Files, identity: &GitIdentity) -> Result<Option<GitWork>, NoBranch> {
    let Files { pushed, start, start_branch, since } = files;
    let Some(branch) = &run.spec.branch else {
        return if run.spec.repository.is_some() { Err(NoBranch) } else { Ok(None) };
    };
    if run.spec.repository.is_none() {
        return Ok(None);
    }
    Ok(Some(GitWork {
        base: run.spec.base.clone(),
        anchor: run.spec.anchor.clone(),
        branch: branch.clone(),
        go_on: pushed,
        start: start.filter(|_| !pushed),
        start_branch: start_branch.filter(|_| !pushed),
        is_first: since.is_none(),
        since,
        revisions: revisions(&run.spec),
        author_name: identity.name.clone(),
        author_email: identity.email.clone(),
        commit_type: run.spec.workflow.caisson.commit_type.clone(),
        commit_subject: subject(run),
    }))
}

/// What the run's parameters of the type revision name.
fn revisions(spec: &RunSpec) -> BTreeMap<String, String> {
    let named = spec.workflow.caisson.parameters.iter();
    let named = named.filter(|(_, parameter)| parameter.kind == ParameterKind::Revision);
    named
        .map(|(name, _)| {
            let given = spec.parameters.get(name).and_then(Value::as_str).unwrap_or_default();
            (name.clone(), given.to_owned())
        })
        .collect()
}

/// The workflow's MCP servers, as the shim starts the agent with them.
#[derive(Debug, Default)]
struct Servers {
    programs: serde_json::Map<String, serde_json::Value>,
    http: Vec<String>,
    required: Vec<String>,
}

impl Servers {
    /// One that cannot be read, which another version may have written, is left out; if it may be a required one, the shim
    /// fails the run by it.
    fn of(workflow: &Workflow) -> Self {
        let mut servers = Self::default();
        for (name, written) in &workflow.mcp_servers {
            let read = mcp::Server::read(written);
            let is_required = match &read {
                Ok(server) => server.required,
                Err(_) => !matches!(written.get("required"), None | Some(Value::Bool(false))),
            };
            if is_required {
                servers.required.push(name.clone());
            }
            match read.map(|server| server.reach) {
                Ok(mcp::Reach::Program(program)) => {
                    servers.programs.insert(name.clone(), program.into());
                }
                // Where it is the gateway alone has to know.
                Ok(mcp::Reach::Http(_)) => servers.http.push(name.clone()),
                Err(_) => {}
            }
        }
        servers
    }
}

/// What is left of the run's time limit; a clock that jumped back does not lengthen it.
fn time_left_ms(run: &Run, now_ms: i64) -> u64 {
    let limit = i64::from(run.spec.timeout_s) * 1000;
    let spent = run.started_at_ms.map_or(0, |started| now_ms.saturating_sub(started)).clamp(0, limit);
    (limit - spent).unsigned_abs()
}

/// The prompt's first line with words in it, fit for the subject of a commit: one line, no control or
/// invisible characters, no closing full stop, at most [`SUBJECT_CHARS`].
fn subject(run: &Run) -> String {
    let found = run.spec.prompt.lines().map(plain).find(|line| line.chars().any(char::is_alphanumeric));
    let Some(line) = found else { return format!("work of run {}", run.id.short()) };
    let mut cut: String = line.chars().take(SUBJECT_CHARS).collect();
    // Rather a whole word less than half a word.
    if line.chars().nth(SUBJECT_CHARS).is_some_and(|next| !next.is_whitespace())
        && let Some((whole, _)) = cut.rsplit_once(' ')
    {
        cut = whole.to_owned();
    }
    cut.trim_end_matches(['.', ' ', ',', ':', ';']).to_owned()
}

/// The line in one-space words, without the marks that Markdown begins lines with.
fn plain(line: &str) -> String {
    let visible: String =
        line.chars().map(|c| if c.is_control() || is_invisible(c) { ' ' } else { c }).collect();
    let words: Vec<&str> = visible.split_whitespace().collect();
    words.join(" ").trim_start_matches(['#', '*', '-', '>', '`', ' ']).to_owned()
}

/// Zero-width and direction characters, which could make a subject read as something else.
const fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::support::{a_run, run_spec};
    use caisson_store::NewAttachment;

    fn subject_of(prompt: &str) -> String {
        let mut spec = run_spec(None);
        spec.prompt = prompt.to_owned();
        subject(&a_run(spec))
    }

    fn identity() -> GitIdentity {
        GitIdentity { name: "Agent".to_owned(), email: "agent@example.com".to_owned() }
    }

    fn delivery(run: Run) -> Delivery {
        let conversation = "c".to_owned();
        Delivery {
            run,
            epoch: Epoch(3),
            conversation,
            resume: true,
            archive: None,
            files: Files { pushed: true, start: None, start_branch: None, since: Some("c0ffee".to_owned()) },
            image: Some("own:1".to_owned()),
            keep: false,
        }
    }

    #[test]
    fn the_subject_is_the_first_line_with_words_cut_at_a_word() {
        assert_eq!(subject_of("\n\n# Fix the  add\tfunction.\nIt is wrong"), "Fix the add function");
        assert_eq!(subject_of("a\u{202e}b\u{7}c"), "a b c");
        let cut = subject_of(&"word ".repeat(30));
        assert!(cut.len() <= SUBJECT_CHARS && cut.ends_with("word"), "{cut}");
        assert_eq!(subject_of(&"ä".repeat(100)).chars().count(), SUBJECT_CHARS);
        assert_eq!(subject_of(&"x".repeat(SUBJECT_CHARS)).len(), SUBJECT_CHARS);
        assert!(subject_of("***\n---").starts_with("work of run "));
    }

    #[test]
    fn the_time_left_counts_from_the_start_and_never_grows() {
        let mut run = a_run(run_spec(None));
        run.spec.timeout_s = 60;
        run.started_at_ms = Some(1_000);
        assert_eq!(time_left_ms(&run, 31_000), 30_000);
        assert_eq!(time_left_ms(&run, 0), 60_000);
        assert_eq!(time_left_ms(&run, 1_000_000), 0);
    }

    #[test]
    fn the_work_says_what_the_run_and_its_workflow_say() {
        let mut run = a_run(run_spec(Some("/srv/git/x")));
        run.spec.attachments = vec![NewAttachment::new("a.txt", None, b"abc".to_vec()).what];
        let work = run_work(delivery(run.clone()), &identity(), 0).unwrap();
        assert_eq!((&work.prompt, &work.attachments), (&run.spec.prompt, &run.spec.attachments));
        assert_eq!(work.agent.system_prompt.as_deref(), Some("Be careful."));
        assert!(work.agent.resume);
        assert_eq!(work.agent.max_turns, Some(7));
        let git = work.git.unwrap();
        assert_eq!(Some(git.branch), run.spec.branch);
        assert!(git.go_on);
        assert_eq!((git.since.as_deref(), git.is_first), (Some("c0ffee"), false));
        assert_eq!((git.author_name.as_str(), git.commit_type.as_str()), ("Agent", "chore"));
        let none = run_work(delivery(a_run(run_spec(None))), &identity(), 0).unwrap();
        assert!(none.git.is_none());
    }

    #[test]
    fn the_values_of_a_run_stand_in_its_workflows_prompt_as_data() {
        let mut run = a_run(run_spec(None));
        run.spec.workflow.prompt = "Look at {{ what }}.".to_owned();
        run.spec.parameters.insert("what".to_owned(), serde_json::json!("a\"\n{{ what }}"));
        run.spec.output_schema = Some(serde_json::json!({"type": "object"}));
        run.spec.workflow.caisson.workspace = caisson_domain::workflow::WorkspaceAccess::ReadOnly;
        let work = run_work(delivery(run.clone()), &identity(), 0).unwrap();
        assert_eq!(work.agent.system_prompt.as_deref(), Some("Look at \"a\\\"\\n{{ what }}\"."));
        assert_eq!(work.output_schema, run.spec.output_schema);
        assert_eq!(work.workspace, caisson_domain::workflow::WorkspaceAccess::ReadOnly);
        let json = serde_json::to_value(&work).unwrap();
        assert_eq!(serde_json::from_value::<RunWork>(json).unwrap(), work);
        // What an older server says leaves the workspace open.
        let plain = run_work(delivery(a_run(run_spec(None))), &identity(), 0).unwrap();
        assert!(serde_json::to_value(&plain).unwrap().get("workspace").is_none());
    }

    #[test]
    fn commits_that_parameters_name_are_told_with_the_branches() {
        let mut run = a_run(run_spec(Some("/srv/git/x")));
        let plain = run_work(delivery(run.clone()), &identity(), 0).unwrap().git.unwrap();
        assert!(serde_json::to_value(&plain).unwrap().get("revisions").is_none());
        let parameters = serde_json::json!({
            "base": {"type": "revision"}, "focus": {"type": "string"}, "other": {"type": "revision", "default": ""},
        });
        run.spec.workflow.caisson.parameters = serde_json::from_value(parameters).unwrap();
        for (name, value) in [("base", "release/1"), ("focus", "all"), ("other", "")] {
            run.spec.parameters.insert(name.to_owned(), value.into());
        }
        let git = run_work(delivery(run), &identity(), 0).unwrap().git.unwrap();
        let told: Vec<_> = git.revisions.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(told, [("base", "release/1"), ("other", "")]);
    }

    #[test]
    fn a_repository_may_choose_an_image_once_and_only_where_nobody_else_has() {
        let asks = |change: &dyn Fn(&mut Delivery)| {
            let mut delivery = delivery(a_run(run_spec(None)));
            change(&mut delivery);
            run_work(delivery, &identity(), 0).unwrap()
        };
        let plain = asks(&|_| {});
        assert_eq!((plain.image.as_deref(), plain.may_choose_image), (Some("own:1"), true));
        assert!(!asks(&|delivery| delivery.image = None).may_choose_image, "there are no images");
        assert!(!asks(&|delivery| delivery.run.spec.image = Some("a".to_owned())).may_choose_image);
        assert!(!asks(&|delivery| delivery.run.repository_image = Some("a".to_owned())).may_choose_image);
    }

    #[test]
    fn where_an_http_server_is_the_sandbox_does_not_learn() {
        let mut run = a_run(run_spec(None));
        let servers = serde_json::json!({
            "here": {"command": "serve", "required": true},
            "there": {"type": "http", "url": "https://mcp.example.com/secret-place", "required": true},
            "also": {"type": "http", "url": "https://mcp.example.com/"},
        });
        run.spec.workflow.mcp_servers = servers.as_object().unwrap().clone();
        let agent = run_work(delivery(run), &identity(), 0).unwrap().agent;
        assert_eq!(
            serde_json::Value::from(agent.mcp_servers),
            serde_json::json!({"here": {"command": "serve"}})
        );
        assert_eq!(agent.mcp_http, ["also", "there"]);
        assert_eq!(agent.mcp_required, ["here", "there"]);
    }

    #[test]
    fn a_required_server_that_cannot_be_read_does_not_become_optional() {
        let mut run = a_run(run_spec(None));
        let servers = serde_json::json!({
            "later": {"type": "websocket", "url": "wss://mcp.example.com/", "required": true},
            "odd": {"command": "serve", "required": "always"},
            "optional": {"type": "websocket", "required": false},
            "unsaid": {"type": "websocket"},
        });
        run.spec.workflow.mcp_servers = servers.as_object().unwrap().clone();
        let agent = run_work(delivery(run), &identity(), 0).unwrap().agent;
        assert!(agent.mcp_servers.is_empty() && agent.mcp_http.is_empty());
        assert_eq!(agent.mcp_required, ["later", "odd"]);
    }

    #[test]
    fn a_repository_without_a_branch_is_refused_rather_than_guessed() {
        let mut run = a_run(run_spec(Some("/srv/git/x")));
        run.spec.branch = None;
        assert!(run_work(delivery(run), &identity(), 0).is_err());
    }
}
