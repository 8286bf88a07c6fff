//! What a client sends to create a run, and how it is read.

use std::collections::BTreeMap;

use caisson_domain::budget::{RUN_BUDGET_MICRO_USD, SOFT_PERCENT};
use caisson_domain::limits;
use caisson_domain::workflow::{CPU_MILLIS, MEMORY_MIB, PIDS, TMP_MIB, WORKSPACE_MIB};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use utoipa::ToSchema;

use super::queueing;
use super::validate::{MAX_TURNS, TIMEOUT_S};
use crate::attachments::{self, CreateAttachment};
use crate::extract::Fields;
use crate::problem::Faults;

/// A run to be created. What is left out has the workflow's value, and else the server's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRun {
    /// The workflow to follow, by name; needed unless the run goes on with a session, which has one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(example = "bug-fixer", pattern = "^[a-z0-9][a-z0-9-]{0,62}$")]
    pub workflow: String,
    /// The session to go on with: its conversation, workspace and branch. What is left out of repository, base, anchor, branch,
    /// image and parameters is as in its last run; another workflow, repository, base or branch is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^ses_[0-9a-f]{32}$")]
    pub session: Option<String>,
    /// The task, in your words: 1 byte to 1 MiB of UTF-8, not blank.
    #[schema(
        example = "The parser drops the last line of a file without a line end. Fix it.",
        pattern = r"^[^\x00]*[^\x00\s][^\x00]*$"
    )]
    pub prompt: String,
    /// The repository to work on: an http or https URL, or an absolute path on the server. `default` is the server's
    /// default repository, and is refused if there is none; left out, it is that one too, but an empty workspace if there
    /// is none; `null` always means an empty workspace.
    #[serde(default, skip_serializing_if = "RepositoryChoice::is_default")]
    #[schema(value_type = Option<String>)]
    pub repository: RepositoryChoice,
    /// The branch to start from; left out, the repository's default branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The branch whose instructions and settings steer the agent, one that the workflow trusts; left out, `base` if the
    /// workflow trusts it, and else the repository's default branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anchor: Option<String>,
    /// The branch to make and push; left out, `caisson/<workflow>/<short run id>`. Not one that a workflow of the project
    /// trusts to steer agents, nor the repository's default branch, unless the run's own workflow says `trust.publish`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// The model's id or alias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = r"^[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,127}$")]
    pub model: Option<String>,
    /// Most turns of the agent, 1 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1000)]
    pub max_turns: Option<u32>,
    /// The sandbox's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Time limit from start to finish, in seconds: 5 to 86400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 5, maximum = 86400)]
    pub timeout_s: Option<u32>,
    /// What the run may spend on the model API, in micro-USD: 1 to 4000000000. At its end the run fails as `budget`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 4_000_000_000_u32)]
    pub budget_micro_usd: Option<u32>,
    /// Share of each budget that bounds the run, in percent, at which its agent is told to wrap up and commit; 100: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub budget_soft_percent: Option<u32>,
    /// What the sandbox may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<CreateRunResources>,
    /// Environment variables for the agent, never secrets; only names that the workflow allows.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub environment: BTreeMap<String, String>,
    /// Which of the project's runs start first: -10 to 10, 0 if left out. Each 10 minutes of waiting count as one step, so
    /// that none waits for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = -10, maximum = 10)]
    pub priority: Option<i64>,
    /// Before when it does not start, Unix ms, at most 30 days ahead; a time that has passed means now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    pub start_at_ms: Option<i64>,
    /// The same as seconds from now on, by the server's clock; not both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 2_592_000)]
    pub delay_s: Option<i64>,
    /// Values of the workflow's parameters; what is left out has its default.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Option<BTreeMap<String, Object>>)]
    pub parameters: BTreeMap<String, Value>,
    /// What the structured output must look like, instead of what the workflow says: a JSON Schema of an object, at most 16 KiB. It
    /// may use type, properties, required, additionalProperties, items, enum, const, anyOf and the bounds of length and value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub output_schema: Option<Value>,
    /// Images that the agent is shown with the task, and files that it finds in the sandbox: at most 10, of 8 MiB each and 12 MiB
    /// together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Option<Vec<CreateAttachment>>, max_items = 10)]
    pub attachments: Vec<CreateAttachment>,
}

/// What the sandbox of a run may use; what is left out has the workflow's value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRunResources {
    /// Memory, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 128, maximum = 262_144)]
    pub memory_mib: Option<u32>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 32, maximum = 32_768)]
    pub pids: Option<u32>,
    /// CPU time per second, in thousandths of a core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 100, maximum = 256_000)]
    pub cpu_millis: Option<u32>,
    /// Size of `/tmp`, in MiB; it counts as memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 16, maximum = 65_536)]
    pub tmp_mib: Option<u32>,
    /// Workspace and home of the session together, in MiB; at most what the server gives, and fixed by its first run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 64, maximum = 1_048_576)]
    pub workspace_mib: Option<u32>,
}

/// What a request names for [`RepositoryChoice::ServerDefault`]. No repository is called so: they are URLs and absolute paths.
const SERVER_DEFAULT: &str = "default";

/// Which repository a run names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RepositoryChoice {
    /// It says nothing: the server's default.
    #[default]
    Default,
    /// The server's default, and nothing instead of it.
    ServerDefault,
    /// None at all: an empty workspace.
    Empty,
    /// This one.
    Named(String),
}

impl RepositoryChoice {
    fn of(text: String) -> Self {
        if text == SERVER_DEFAULT { Self::ServerDefault } else { Self::Named(text) }
    }

    /// Whether the run says nothing about a repository.
    #[must_use]
    pub const fn is_default(&self) -> bool {
        matches!(self, Self::Default)
    }
}

impl Serialize for RepositoryChoice {
    /// Writes `null` or the text; the default is meant to be skipped by the field it is in.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Default | Self::Empty => serializer.serialize_none(),
            Self::ServerDefault => serializer.serialize_some(SERVER_DEFAULT),
            Self::Named(text) => serializer.serialize_some(text),
        }
    }
}

impl<'de> Deserialize<'de> for RepositoryChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::<String>::deserialize(deserializer).map(|text| text.map_or(Self::Empty, Self::of))
    }
}

impl CreateRun {
    /// Reads the fields one by one, so that every fault is found and not only the first. A field with a fault is as if
    /// it were left out.
    pub(super) fn read(mut fields: Fields, faults: &mut Faults) -> Self {
        let session: Option<String> = fields.take("session", faults);
        let workflow = match session {
            Some(_) => fields.take("workflow", faults),
            None => fields.require("workflow", faults),
        };
        let request = Self {
            workflow: workflow.unwrap_or_default(),
            session,
            prompt: fields.require("prompt", faults).unwrap_or_default(),
            repository: read_repository(&mut fields, faults),
            base: fields.take("base", faults),
            anchor: fields.take("anchor", faults),
            branch: fields.take("branch", faults),
            model: fields.take("model", faults),
            max_turns: fields.take_number("max_turns", &MAX_TURNS, faults),
            image: fields.take("image", faults),
            timeout_s: fields.take_number("timeout_s", &TIMEOUT_S, faults),
            budget_micro_usd: fields.take_number("budget_micro_usd", &RUN_BUDGET_MICRO_USD, faults),
            budget_soft_percent: fields.take_number("budget_soft_percent", &SOFT_PERCENT, faults),
            resources: fields.take_object("resources", faults).map(|fields| read_resources(fields, faults)),
            environment: read_environment(&mut fields, faults),
            priority: queueing::take_priority(&mut fields, faults),
            start_at_ms: queueing::take_start_at_ms(&mut fields, faults),
            delay_s: queueing::take_delay_s(&mut fields, faults),
            parameters: read_parameters(&mut fields, faults),
            output_schema: fields.take_value("output_schema").filter(|value| !value.is_null()),
            attachments: attachments::take(&mut fields, faults),
        };
        fields.finish(faults);
        request
    }
}

fn read_repository(fields: &mut Fields, faults: &mut Faults) -> RepositoryChoice {
    match fields.take_value("repository") {
        None => RepositoryChoice::Default,
        Some(Value::Null) => RepositoryChoice::Empty,
        Some(Value::String(text)) => RepositoryChoice::of(text),
        Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            faults.add("repository", "wrong_type", "it is neither a text nor null");
            RepositoryChoice::Default
        }
    }
}

fn read_resources(mut fields: Fields, faults: &mut Faults) -> CreateRunResources {
    let resources = CreateRunResources {
        memory_mib: fields.take_number("memory_mib", &MEMORY_MIB, faults),
        pids: fields.take_number("pids", &PIDS, faults),
        cpu_millis: fields.take_number("cpu_millis", &CPU_MILLIS, faults),
        tmp_mib: fields.take_number("tmp_mib", &TMP_MIB, faults),
        workspace_mib: fields.take_number("workspace_mib", &WORKSPACE_MIB, faults),
    };
    fields.finish(faults);
    resources
}

fn read_environment(fields: &mut Fields, faults: &mut Faults) -> BTreeMap<String, String> {
    let named: BTreeMap<String, Value> = fields.take("environment", faults).unwrap_or_default();
    if named.len() > limits::ENVIRONMENT_NAMES {
        let message =
            format!("it has {} names; at most {} are taken", named.len(), limits::ENVIRONMENT_NAMES);
        faults.add("environment", "too_many", message);
        return BTreeMap::new();
    }
    let mut environment = BTreeMap::new();
    for (name, value) in named {
        if let Value::String(text) = value {
            environment.insert(name, text);
        } else {
            faults.add(&format!("environment.{name}"), "wrong_type", "it is not a text");
        }
    }
    environment
}

fn read_parameters(fields: &mut Fields, faults: &mut Faults) -> BTreeMap<String, Value> {
    match fields.take_value("parameters") {
        None | Some(Value::Null) => BTreeMap::new(),
        Some(Value::Object(named)) => named.into_iter().collect(),
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
            faults.add("parameters", "wrong_type", "it is not an object");
            BTreeMap::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_a_client_reads_back_the_same() {
        let named = CreateRun {
            workflow: "x".to_owned(),
            prompt: "y".to_owned(),
            repository: RepositoryChoice::Named("/srv/x".to_owned()),
            resources: Some(CreateRunResources { pids: Some(64), ..CreateRunResources::default() }),
            ..CreateRun::default()
        };
        let empty = CreateRun { repository: RepositoryChoice::Empty, ..named.clone() };
        let default = CreateRun { repository: RepositoryChoice::Default, ..named.clone() };
        let insisting = CreateRun { repository: RepositoryChoice::ServerDefault, ..named.clone() };
        for request in [&named, &empty, &default, &insisting] {
            let json = serde_json::to_string(request).unwrap();
            assert_eq!(&serde_json::from_str::<CreateRun>(&json).unwrap(), request, "{json}");
        }
        assert_ne!(serde_json::to_string(&empty).unwrap(), serde_json::to_string(&default).unwrap());
    }
}
