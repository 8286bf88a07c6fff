//! Claude Code, as seen from outside: its arguments, its environment, what it prints and what it is told.
//!
//! Everything here is a pure function or a small state machine. No I/O, no clock, no async: the driver in the sandbox
//! reads lines, hands them to [`parse`] and [`Conversation`], and does what comes back.
//!
//! What is stated about the CLI was measured on version 2.1.330; `tests/real_cli.rs` repeats the measurements that
//! this crate stands on. Other versions print kinds and fields that are not known here: they are never an error.

mod argv;
mod conversation;
mod environment;
mod event;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod input;
mod json;
pub mod limits;
mod line;
mod servers;
mod settings;
mod uuid;
mod verdict;

pub use argv::{Launch, LaunchError, PermissionMode, PermissionPrompts, SessionMode, SettingSource};
pub use conversation::{Action, Conversation, ConversationError, Finished, Unanswered};
pub use environment::{ACTIVE_PROFILE, EnvironmentError, EnvironmentSpec, Refusal, environment};
pub use event::{
    ApiRetry, Assistant, Block, CommandLifecycle, CommandState, ControlRequest, ControlResponse, Delta,
    Denial, Init, McpServer, PermissionDenied, ResultLine, StreamDelta, ToolResult, User,
};
pub use input::{
    InputError, PromptImage, allow_tool, answer_error, answer_success, answer_unsupported, deny_tool,
    end_session, initialize, interrupt, mcp_status, user_prompt, user_prompt_with,
};
pub use line::{Line, parse};
pub use servers::{ServerState, ServerStatus, server_statuses};
pub use settings::{asking, closed_to_tools, settings_of_no_repository};
pub use uuid::{Uuid, UuidError};
pub use verdict::{Ending, Exit, Reason, Verdict, conclude, judge};
