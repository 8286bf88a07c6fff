//! A run as clients see it.

use std::collections::BTreeMap;

use caisson_domain::id::{ProjectId, RunId, SessionId};
use caisson_domain::repository_file::CheckName;
use caisson_domain::run::{Failure, FailureKind, Phase, Resources, Run, RunStatus, Waiting, cut};
use caisson_domain::usage::UsageTotals;
use caisson_domain::workflow::Publish;
use caisson_store::{Artifact, CredentialUsage, QueuePlace};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::checks::{self, CheckView};
use super::queueing::{HeldByView, QueueEstimateView, told};
use crate::attachments::{self, AttachmentView};

/// Longest prompt, result or evidence in a list, in bytes; the run itself has all of it.
pub(crate) const LISTED_TEXT_BYTES: usize = 1024;

/// One task given to the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: RunId,
    /// The session it belongs to.
    #[schema(value_type = String)]
    pub session_id: SessionId,
    /// The project it belongs to.
    #[schema(value_type = String)]
    pub project: ProjectId,
    /// The workflow it follows, as it was when the run was created.
    pub workflow: String,
    /// The version of the workflow that is pinned; none for a run of an older version of Caisson.
    pub workflow_version: Option<i64>,
    /// Where it stands.
    #[schema(value_type = crate::schema::RunStatus)]
    pub status: RunStatus,
    /// What it is doing, while running.
    #[schema(value_type = Option<crate::schema::Phase>)]
    pub phase: Option<Phase>,
    /// What it waits for, while running.
    #[schema(value_type = Option<crate::schema::Waiting>)]
    pub waiting: Option<Waiting>,
    /// The task; in a list, its beginning.
    pub prompt: String,
    /// What came with the task, without its bytes; left out if nothing did. What came with an input is told with that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Option<Vec<AttachmentView>>)]
    pub attachments: Vec<AttachmentView>,
    /// Whether this is an item of a list, in which long texts are cut and the environment is left out.
    pub abridged: bool,
    /// The repository; none means an empty workspace.
    pub repository: Option<String>,
    /// The branch it starts from; none means the repository's default branch.
    pub base: Option<String>,
    /// The branch whose instructions and settings steer the agent; none means the repository's default branch.
    pub anchor: Option<String>,
    /// The branch it makes and pushes.
    pub branch: Option<String>,
    /// The model asked for.
    pub model: Option<String>,
    /// Most turns of the agent.
    pub max_turns: Option<u32>,
    /// The sandbox's image, also where the repository chose it; none means the server's default.
    pub image: Option<String>,
    /// Time limit, in seconds.
    pub timeout_s: u32,
    /// What it may spend on the model API, in micro-USD; none means no bound of its own.
    pub budget_micro_usd: Option<u32>,
    /// Share of each budget at which the agent is told to wrap up, in percent; 100, or none for a run of an older version: never.
    pub budget_soft_percent: Option<u32>,
    /// What the sandbox may use.
    pub resources: ResourcesView,
    /// Extra environment of the agent; none in a list.
    pub environment: Option<BTreeMap<String, String>>,
    /// Values of the workflow's parameters; none in a list.
    #[schema(value_type = Option<BTreeMap<String, Object>>)]
    pub parameters: Option<BTreeMap<String, Value>>,
    /// What the structured output must look like; none in a list, or if there is to be none.
    #[schema(value_type = Option<Object>)]
    pub output_schema: Option<Value>,
    /// What happens to the work.
    #[schema(value_type = crate::schema::Publish)]
    pub publish: Publish,
    /// Why it failed.
    pub failure: Option<FailureView>,
    /// The agent's last words; in a list, their beginning.
    pub result: Option<String>,
    /// The structured output of a run that succeeded; none in a list. `output.md` among the artifacts is the same for people.
    #[schema(value_type = Option<Object>)]
    pub output: Option<Value>,
    /// How the repository's own checks ended the last time that they were run, as the sandbox reported it; empty if none were.
    pub checks: Vec<CheckView>,
    /// Of a run that succeeded, those checks of its workflow that were not run, since the repository names no command for them; left
    /// out if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Option<Vec<crate::schema::CheckName>>)]
    pub checks_not_run: Vec<CheckName>,
    /// The commit it started from, as the sandbox reported it.
    pub base_commit: Option<String>,
    /// The commit pushed to its branch, as the gateway saw it.
    pub pushed_commit: Option<String>,
    /// Tokens and cost, as the gateway counted them.
    pub usage: UsageView,
    /// The credentials that the gateway used for it, and how often; none unless the run itself is read.
    pub credential_uses: Option<Vec<CredentialUseView>>,
    /// Which of its project's runs start first, -10 to 10.
    pub priority: i64,
    /// Before when it does not start, Unix ms.
    pub start_at_ms: Option<i64>,
    /// How many runs are about to start up to this one, itself included, while it waits; none before `start_at_ms`, and none
    /// unless the run itself is read. Runs that a busy branch or a cap holds back are counted as well.
    pub queue_position: Option<i64>,
    /// About when it starts; none where there is no position, or too little is known.
    pub queue_estimate: Option<QueueEstimateView>,
    /// What keeps every server that may start it from doing so, while it waits: empty as long as one can, and unless the run itself
    /// is read. A follow-up may start where its session's workspace is, and elsewhere when that server is lost.
    pub held_by: Vec<HeldByView>,
    /// How often it was given to an agent, 0 while queued.
    pub attempt: i64,
    /// When somebody asked for its end, Unix ms.
    pub cancel_requested_at_ms: Option<i64>,
    /// Unix ms.
    pub created_at_ms: i64,
    /// Unix ms.
    pub started_at_ms: Option<i64>,
    /// Unix ms.
    pub finished_at_ms: Option<i64>,
    /// Where to go from here.
    pub links: RunLinks,
}

/// Paths of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunLinks {
    /// The run.
    #[serde(rename = "self")]
    pub this: String,
    /// Its events.
    pub events: String,
    /// Ends it, by POST.
    pub cancel: String,
    /// Its work as a patch.
    pub diff: String,
    /// What was kept for it.
    pub artifacts: String,
    /// Its session.
    pub session: String,
}

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailureView {
    /// The class.
    #[schema(value_type = crate::schema::FailureKind)]
    pub kind: FailureKind,
    /// What happened and what to do.
    pub message: String,
    /// What was seen.
    pub evidence: Option<String>,
    /// Whether sending the same request again may succeed.
    pub retry_can_help: bool,
}

/// What a sandbox may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResourcesView {
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Processes and threads.
    pub pids: u32,
    /// CPU time per second, in thousandths of a core.
    pub cpu_millis: u32,
    /// Size of `/tmp`, in MiB; it counts as memory.
    pub tmp_mib: u32,
    /// Workspace and home of the session together, in MiB, where it was asked for; what the server gives is also the most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_mib: Option<u32>,
}

/// Tokens and cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageView {
    /// Model calls begun.
    pub calls: i64,
    /// Calls whose numbers are an estimate: their reply was cut, or cost something that the price list does not say.
    pub estimated_calls: i64,
    /// Tokens of uncached input.
    pub input: i64,
    /// Tokens of output.
    pub output: i64,
    /// Tokens of input read from the cache.
    pub cache_read: i64,
    /// Tokens of input written to the cache for five minutes.
    pub cache_write_5m: i64,
    /// Tokens of input written to the cache for one hour.
    pub cache_write_1h: i64,
    /// Cost in micro-USD.
    pub cost_micro_usd: i64,
}

/// How often a run used a credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CredentialUseView {
    /// The stored credential's id, which may have been removed since; `config:` and its name for one of the server's configuration.
    pub credential_id: String,
    /// How many requests carried it; exact once the run's outcome is known, or a minute after the last use.
    pub uses: i64,
    /// Unix ms.
    pub first_used_at_ms: i64,
    /// Unix ms; exact to a minute.
    pub last_used_at_ms: i64,
}

/// A page of runs, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunPage {
    /// The runs, abridged.
    pub items: Vec<RunView>,
    /// Asks for the next page, as `cursor`; none on the last page.
    pub next_cursor: Option<String>,
}

/// A file kept for a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ArtifactView {
    /// Its name, unique in its run.
    pub name: String,
    /// Its size.
    pub size_bytes: i64,
    /// SHA-256 of its bytes, as hexadecimal digits.
    pub sha256: String,
    /// Unix ms.
    pub created_at_ms: i64,
}

/// The files kept for a run, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ArtifactList {
    /// All of them.
    pub items: Vec<ArtifactView>,
}

/// How much of a run is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    Full,
    Listed,
}

impl Detail {
    fn text(self, text: String) -> String {
        match self {
            Self::Full => text,
            Self::Listed => cut(&text, LISTED_TEXT_BYTES).to_owned(),
        }
    }
}

impl RunView {
    pub(crate) fn new(run: Run, detail: Detail) -> Self {
        let links = RunLinks::new(&run);
        let full = detail == Detail::Full;
        let checks_not_run = checks::not_run(&run);
        let spec = run.spec;
        Self {
            id: run.id,
            session_id: run.session,
            project: run.project,
            workflow: spec.workflow.name,
            workflow_version: spec.workflow_version,
            status: run.status,
            phase: run.phase,
            waiting: run.waiting,
            prompt: detail.text(spec.prompt),
            attachments: attachments::views(spec.attachments),
            abridged: detail == Detail::Listed,
            repository: spec.repository.map(|repository| repository.to_string()),
            base: spec.base.map(String::from),
            anchor: spec.anchor.map(String::from),
            branch: spec.branch.map(String::from),
            model: spec.model,
            max_turns: spec.max_turns,
            image: spec.image.or(run.repository_image),
            timeout_s: spec.timeout_s,
            budget_micro_usd: spec.budget_micro_usd,
            budget_soft_percent: spec.budget_soft_percent,
            resources: spec.resources.into(),
            environment: full.then_some(spec.environment),
            parameters: full.then_some(spec.parameters),
            output_schema: spec.output_schema.filter(|_| full),
            publish: spec.workflow.caisson.publish,
            failure: run.failure.map(|failure| FailureView::new(failure, detail)),
            result: run.result.map(|text| detail.text(text)),
            output: run.output.filter(|_| full),
            checks: run.checks.into_iter().map(|result| CheckView::new(result, detail)).collect(),
            checks_not_run,
            base_commit: run.base_commit,
            pushed_commit: run.pushed_commit,
            usage: run.usage.into(),
            credential_uses: None,
            priority: spec.priority,
            start_at_ms: spec.start_at_ms,
            queue_position: None,
            queue_estimate: None,
            held_by: Vec::new(),
            attempt: run.attempt,
            cancel_requested_at_ms: run.cancel_requested_at_ms,
            created_at_ms: run.created_at_ms,
            started_at_ms: run.started_at_ms,
            finished_at_ms: run.finished_at_ms,
            links,
        }
    }

    /// With its place in the queue.
    pub(crate) fn with_queue_place(self, place: Option<QueuePlace>) -> Self {
        let (queue_position, queue_estimate) = told(place);
        Self { queue_position, queue_estimate, ..self }
    }

    /// With the credentials that it used.
    pub(crate) fn with_credential_uses(self, uses: Vec<CredentialUsage>) -> Self {
        Self { credential_uses: Some(uses.into_iter().map(CredentialUseView::from).collect()), ..self }
    }
}

impl From<CredentialUsage> for CredentialUseView {
    fn from(usage: CredentialUsage) -> Self {
        let CredentialUsage { credential, uses, first_used_at_ms, last_used_at_ms } = usage;
        Self { credential_id: credential, uses, first_used_at_ms, last_used_at_ms }
    }
}

impl RunLinks {
    fn new(run: &Run) -> Self {
        let this = format!("/v1/runs/{}", run.id);
        Self {
            events: format!("{this}/events"),
            cancel: format!("{this}/cancel"),
            diff: format!("{this}/diff"),
            artifacts: format!("{this}/artifacts"),
            session: format!("/v1/sessions/{}", run.session),
            this,
        }
    }
}

impl FailureView {
    fn new(failure: Failure, detail: Detail) -> Self {
        Self {
            kind: failure.kind,
            message: detail.text(failure.message),
            evidence: failure.evidence.map(|text| detail.text(text)),
            retry_can_help: failure.retry_can_help,
        }
    }
}

impl From<Resources> for ResourcesView {
    fn from(resources: Resources) -> Self {
        let Resources { memory_mib, pids, cpu_millis, tmp_mib, workspace_mib } = resources;
        Self { memory_mib, pids, cpu_millis, tmp_mib, workspace_mib }
    }
}

impl From<UsageTotals> for UsageView {
    fn from(usage: UsageTotals) -> Self {
        Self {
            calls: usage.calls,
            estimated_calls: usage.estimated_calls,
            input: usage.tokens.input,
            output: usage.tokens.output,
            cache_read: usage.tokens.cache_read,
            cache_write_5m: usage.tokens.cache_write_5m,
            cache_write_1h: usage.tokens.cache_write_1h,
            cost_micro_usd: usage.cost_micro_usd,
        }
    }
}

impl From<Artifact> for ArtifactView {
    fn from(artifact: Artifact) -> Self {
        Self {
            name: artifact.name,
            size_bytes: artifact.size_bytes,
            sha256: artifact.sha256,
            created_at_ms: artifact.created_at_ms,
        }
    }
}
