//! Every bound of this crate, with its reason.

/// Most bytes of one long argument (system prompt, MCP configuration). Linux refuses a single argument of 128 KiB or
/// more (`MAX_ARG_STRLEN`); the name of the flag needs a little of that.
pub const ARGUMENT_BYTES_MAX: usize = 120_000;
/// Most bytes of a model name.
pub const MODEL_BYTES_MAX: usize = 256;
/// Most entries in one list of tools. With [`TOOL_BYTES_MAX`] it keeps three full lists far under Linux's limit of
/// 2 MiB for all arguments and the environment together.
pub const TOOLS_MAX: usize = 256;
/// Most bytes of one tool name or rule.
pub const TOOL_BYTES_MAX: usize = 1024;
/// Most names added to the agent's environment.
pub const EXTRA_NAMES_MAX: usize = 64;
/// Most bytes of one added name.
pub const EXTRA_NAME_BYTES_MAX: usize = 128;
/// Most bytes of one added value.
pub const EXTRA_VALUE_BYTES_MAX: usize = 8 * 1024;
/// How often the CLI tries a model call again; its own default of 10 takes three minutes over a dead API.
pub const MODEL_RETRIES: u32 = 4;
/// How long a model reply may be silent before the CLI gives it up, in milliseconds. The CLI knows no less than 20 s.
pub const STREAM_IDLE_MS: u32 = 120_000;
/// How long the CLI's first turn may wait for MCP servers that are not connected yet, in milliseconds; those go on connecting
/// beside it. Its own default is 30 s where servers are given by `--mcp-config`.
pub const MCP_STARTUP_WAIT_MS: u32 = 3_000;
/// Most bytes of a prompt.
pub const PROMPT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Most bytes of the preview of a tool's output or of an injected message.
pub const PREVIEW_BYTES_MAX: usize = 2048;
/// Most prompts in the life of one CLI process: each costs an id, which the CLI must never see twice.
pub const PROMPTS_MAX: usize = 1024;
/// Most requests of the CLI that may wait for an answer at once; one more is refused at once.
pub const AWAITING_MAX: usize = 64;
/// Most bytes of standard error that a verdict quotes; the end says more than the beginning.
pub const STDERR_BYTES_MAX: usize = 4096;
