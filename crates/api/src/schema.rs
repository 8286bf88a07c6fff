//! Schemas of the domain's types, which know nothing of OpenAPI.

use caisson_domain::event::{DeltaKind, EventKind};
use caisson_domain::run::{FailureKind, Phase, RunStatus, Waiting};
use caisson_domain::workflow::{PermissionMode, Publish};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};

/// Declares a function that makes the schema of an enumeration of texts, from the list of all its values.
macro_rules! texts {
    ($($name:ident: $of:ty,)+) => { $(
        pub(crate) fn $name() -> RefOr<Schema> {
            let values = <$of>::ALL.iter().map(|value| value.as_str());
            ObjectBuilder::new().schema_type(Type::String).enum_values(Some(values)).build().into()
        }
    )+ };
}

texts! {
    run_status: RunStatus,
    failure_kind: FailureKind,
    event_kind: EventKind,
    delta_kind: DeltaKind,
    publish: Publish,
    permission_mode: PermissionMode,
}

/// The same for a value that may be `null`.
macro_rules! texts_or_null {
    ($($name:ident: $of:ty,)+) => { $(
        pub(crate) fn $name() -> RefOr<Schema> {
            let values = <$of>::ALL.iter().map(|value| Some(value.as_str())).chain([None]);
            let types = SchemaType::from_iter([Type::String, Type::Null]);
            ObjectBuilder::new().schema_type(types).enum_values(Some(values)).build().into()
        }
    )+ };
}

texts_or_null! {
    run_status_or_null: RunStatus,
    phase_or_null: Phase,
    waiting_or_null: Waiting,
}

/// A text, or `null`.
pub(crate) fn text_or_null() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::String, Type::Null])).build().into()
}
