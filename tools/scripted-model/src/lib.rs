//! A scripted Messages API server: it answers like the model API, from scenarios that are data.
//!
//! It drives the real coding CLI without a network in the demo, in tests and in benches, and it keeps a record of
//! every request it served, so that it is a witness of what other parts count. See the README beside the manifest
//! for the form of a scenario.

mod acts;
mod catalogue;
mod conversation;
mod delivery;
mod gathering;
mod images;
mod key;
mod listen;
mod record;
mod respond;
mod scenario;
mod server;
mod step;
mod tries;
mod usage;

pub use catalogue::{Catalogue, CatalogueError, FILE_SUFFIX};
pub use delivery::{DelayScale, DelayScaleError, MAX_DELAY_SCALE, MAX_SILENCE};
pub use gathering::MAX_GATHERING;
pub use images::SeenImage;
pub use key::KeyDigest;
pub use listen::MAX_CONNECTIONS;
pub use record::{LogEvent, LogLine, MAX_RECORDS, Outcome, Record, ScriptPlace, SeenKey};
pub use respond::{BODY_TIMEOUT, MAX_BODY_BYTES};
pub use scenario::{Choice, Scenario, ScenarioError};
pub use server::{Options, ScriptedModel, StartError};
pub use step::{
    Cut, ErrorBody, Fault, HttpError, MAX_DELAY_MS, MAX_TEXT_REPEAT, Reply, Step, StepError, ToolCall,
};
pub use tries::MAX_COUNTED_STEPS;
pub use usage::{CacheCreation, Compaction, DEFAULT_INPUT_TOKENS, DEFAULT_OUTPUT_TOKENS, Usage, UsageError};
