//! Schemas of the domain's enumerations, which know nothing of OpenAPI. Each stands for the type of its name and lists
//! all of that type's values.

use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

macro_rules! texts {
    ($($name:ident: $of:path, $description:literal;)+) => { $(
        #[doc = $description]
        pub(crate) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let values = <$of>::ALL.iter().map(|value| value.as_str());
                let schema = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(values));
                schema.description(Some($description)).build().into()
            }
        }

        impl ToSchema for $name {}
    )+ };
}

texts! {
    RunStatus: caisson_domain::run::RunStatus, "Where a run stands.";
    Phase: caisson_domain::run::Phase, "What a running run is doing.";
    Waiting: caisson_domain::run::Waiting, "What a running run waits for.";
    FailureKind: caisson_domain::run::FailureKind, "Why a run failed.";
    EventKind: caisson_domain::event::EventKind, "What an event tells of.";
    DeltaKind: caisson_domain::event::DeltaKind, "What a piece of live text is part of.";
    InputKind: caisson_domain::input::InputKind, "When an input reaches the agent.";
    AttachmentKind: caisson_domain::attachment::AttachmentKind, "How an attachment reaches the agent.";
    InputState: caisson_domain::input::InputState, "How far an input is.";
    ApprovalState: caisson_domain::approval::ApprovalState, "Where an approval stands.";
    DefaultAnswer: caisson_domain::approval::DefaultAnswer, "The answer to an approval.";
    Older: caisson_domain::fork::Older, "What of a fork is older than the other.";
    Scope: caisson_domain::principal::Scope, "What an API key allows.";
    CredentialKind: caisson_domain::credential::CredentialKind, "What a credential opens.";
    CheckName: caisson_domain::repository_file::CheckName, "A command of a repository that says whether its files are as they should be.";
    CheckOutcome: caisson_domain::check_result::CheckOutcome, "How a check ended.";
    Publish: caisson_domain::workflow::Publish, "What happens to the agent's work.";
    WorkspaceAccess: caisson_domain::workflow::WorkspaceAccess, "What the agent may do with the workspace.";
    PermissionMode: caisson_domain::workflow::PermissionMode, "How the agent asks for permission.";
}
