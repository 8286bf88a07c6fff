//! The `caisson` block of a workflow file, read strictly.

use serde::Deserialize;
use serde_json::Value;

use super::{
    CaissonBlock, PermissionMode, Publish, ResourcesBlock, Workflow, WorkflowError, WorkspaceAccess,
};
use crate::approval::ApprovalsFront;
use crate::parameters::Parameters;
use crate::repository_file::CheckName;
use crate::trust::TrustFront;

/// The `caisson` block as written: a key that is not known is a mistake of whoever wrote the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CaissonFront {
    image: Option<String>,
    timeout_s: Option<u32>,
    budget_micro_usd: Option<u32>,
    budget_soft_percent: Option<u32>,
    resources: ResourcesFront,
    environment: Vec<String>,
    publish: Option<Publish>,
    commit_type: Option<String>,
    egress: Option<Vec<String>>,
    trust: TrustFront,
    forbidden_paths: Vec<String>,
    workspace: Option<WorkspaceAccess>,
    output_schema: Option<Value>,
    parameters: Parameters,
    checks: Vec<CheckName>,
    check_turns: Option<u32>,
    checks_must_pass: bool,
    approvals: Option<ApprovalsFront>,
}

/// The resources as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ResourcesFront {
    memory_mib: Option<u32>,
    pids: Option<u32>,
    cpu_millis: Option<u32>,
    tmp_mib: Option<u32>,
    workspace_mib: Option<u32>,
}

impl From<CaissonFront> for CaissonBlock {
    fn from(front: CaissonFront) -> Self {
        let CaissonFront {
            image,
            timeout_s,
            budget_micro_usd,
            budget_soft_percent,
            resources,
            environment,
            publish,
            commit_type,
            egress,
            trust,
            forbidden_paths,
            workspace,
            output_schema,
            parameters,
            checks,
            check_turns,
            checks_must_pass,
            approvals,
        } = front;
        let ResourcesFront { memory_mib, pids, cpu_millis, tmp_mib, workspace_mib } = resources;
        let default = Self::default();
        Self {
            image,
            timeout_s: timeout_s.unwrap_or(default.timeout_s),
            budget_micro_usd,
            budget_soft_percent,
            resources: ResourcesBlock { memory_mib, pids, cpu_millis, tmp_mib, workspace_mib },
            environment,
            publish: publish.unwrap_or(default.publish),
            commit_type: commit_type.unwrap_or(default.commit_type),
            egress,
            trust: trust.into(),
            forbidden_paths,
            workspace: workspace.unwrap_or(default.workspace),
            output_schema,
            parameters,
            checks,
            check_turns,
            checks_must_pass,
            approvals: approvals.map(Into::into),
        }
    }
}

impl Workflow {
    /// Refuses rules that would bind nothing: whoever writes them counts on them.
    pub(super) fn validate_allowed(&self) -> Result<(), WorkflowError> {
        if self.caisson.checks_must_pass && self.caisson.checks.is_empty() {
            let reason = "there are none that could; name them as well: checks: [test]".to_owned();
            return Err(WorkflowError::Value { field: "caisson.checks_must_pass", reason });
        }
        let why = match self.permission_mode {
            PermissionMode::BypassPermissions => "allows everything",
            PermissionMode::Plan => "allows nothing but reading",
            PermissionMode::Default | PermissionMode::AcceptEdits | PermissionMode::DontAsk => return Ok(()),
        };
        if self.allowed_tools.is_empty() {
            return Ok(());
        }
        let reason = format!(
            "permissionMode {} {why} whatever they say; write permissionMode: dontAsk, in which they alone are allowed",
            self.permission_mode
        );
        Err(WorkflowError::Value { field: "allowedTools", reason })
    }
}
