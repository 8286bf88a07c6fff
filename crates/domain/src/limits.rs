//! Bounds with names. Whatever grows has one here, or beside the code that alone uses it.

/// Longest prompt of a run, in bytes of UTF-8.
pub const PROMPT_BYTES: usize = 1024 * 1024;
/// Largest JSON body that the API reads, in bytes: a prompt in which every character is escaped still fits.
pub const API_BODY_BYTES: usize = 4 * 1024 * 1024;
/// Longest `Idempotency-Key`, in bytes.
pub const IDEMPOTENCY_KEY_BYTES: usize = 255;
/// How long an idempotency key is remembered, in milliseconds (24 hours).
pub const IDEMPOTENCY_MS: i64 = 24 * 60 * 60 * 1000;
/// Largest page of a list.
pub const PAGE_ITEMS: u32 = 200;
/// Page of a list when the caller names none.
pub const PAGE_ITEMS_DEFAULT: u32 = 50;
/// Largest page of events.
pub const EVENT_PAGE_ITEMS: u32 = 1000;

/// Projects of a server, the default one among them; the next one is refused.
pub const PROJECTS: i64 = 200;
/// Valid API keys of a project; the next one is refused.
pub const API_KEYS: i64 = 1_000;
/// Longest name of an API key, in characters.
pub const API_KEY_NAME_CHARS: usize = 100;
/// Shortest life of an API key that expires, in seconds.
pub const API_KEY_LIFE_S_MIN: u32 = 60;
/// Longest life of an API key that expires, in seconds (10 years).
pub const API_KEY_LIFE_S_MAX: u32 = 10 * 365 * 24 * 60 * 60;

/// Runs that may wait in the queue; the next one is refused with 429.
pub const QUEUE_RUNS: i64 = 10_000;
/// A lease's length, in milliseconds.
pub const LEASE_MS: i64 = 30_000;
/// Time between heartbeats, in milliseconds.
pub const HEARTBEAT_MS: i64 = 10_000;
/// How long a server may be silent before the API counts it as gone, in milliseconds.
pub const SERVER_SILENT_MS: i64 = 30_000;
/// Shortest silence after which a server's runs may be written off, in milliseconds: longer than a lease and a heartbeat.
pub const SERVER_LOST_MS_MIN: i64 = 40_000;
/// Longest silence after which a server's runs may be written off, in milliseconds (7 days).
pub const SERVER_LOST_MS_MAX: i64 = 7 * 24 * 60 * 60 * 1000;
/// Silence after which a server's runs are written off if nobody says otherwise, in milliseconds (10 minutes).
pub const SERVER_LOST_MS_DEFAULT: i64 = 10 * 60 * 1000;
/// Runs that are written off at a time; the rest has its turn a little later.
pub const LOST_RUNS: i64 = 50;
/// How often placing a run is tried before `agent_started`, the first time included.
pub const PLACE_ATTEMPTS: i64 = 5;

/// Shortest time limit of a run, in seconds.
pub const RUN_TIMEOUT_S_MIN: u32 = 5;
/// Longest time limit of a run, in seconds (24 hours).
pub const RUN_TIMEOUT_S_MAX: u32 = 24 * 60 * 60;
/// Time limit of a run that names none, in seconds (2 hours).
pub const RUN_TIMEOUT_S_DEFAULT: u32 = 2 * 60 * 60;
/// Time that a run told to stop has for saving its work before its sandbox is killed, in seconds.
pub const STOP_GRACE_S: u32 = 20;
/// Most turns of an agent.
pub const MAX_TURNS_MAX: u32 = 1000;

/// One line of the agent, as journaled; the rest of a longer one is cut off and counted. In bytes.
pub const JOURNAL_LINE_BYTES: usize = 1024 * 1024;
/// One batch of the journal, in bytes. It holds at least one line of [`JOURNAL_LINE_BYTES`] with every byte escaped.
pub const JOURNAL_BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Unacknowledged bytes of a journal; beyond them the shim stops reading the agent.
pub const JOURNAL_BYTES: u64 = 64 * 1024 * 1024;
/// How long `GET /next` and `GET /inputs` wait for something to say, in milliseconds.
pub const LONG_POLL_MS: u64 = 25_000;
/// One text delta, in bytes.
pub const DELTA_BYTES: usize = 8 * 1024;
/// The model API's id of a message, in bytes; they have about 30.
pub const MESSAGE_ID_BYTES: usize = 128;
/// Text deltas per session and second.
pub const DELTAS_PER_SECOND: u32 = 20;
/// Inputs that a run may have that its sandbox has not taken yet.
pub const PENDING_INPUTS: i64 = 100;

/// Messages that people may give the agent of one run.
pub const RUN_MESSAGES: i64 = 100;

/// Of these, messages that may wait for a run whose agent has not started: the shim keeps no more.
pub const RUN_MESSAGES_WAITING: i64 = 8;

/// Users of the Automagik-compatible API in one project.
pub const PROJECT_USERS: i64 = 10_000;

/// Events of a run; beyond them what its sandbox says is dropped, but for what moves the run.
pub const RUN_EVENTS: i64 = 200_000;
/// Details of a run's events, in bytes (256 MiB); beyond them as beyond [`RUN_EVENTS`].
pub const RUN_EVENT_BYTES: i64 = 256 * 1024 * 1024;
/// Events beyond [`RUN_EVENTS`] that are kept for what moves the run.
pub const RUN_EVENTS_RESERVED: i64 = 1_000;
/// Bytes beyond [`RUN_EVENT_BYTES`] that are kept for what moves the run (8 MiB).
pub const RUN_EVENT_RESERVED_BYTES: i64 = 8 * 1024 * 1024;

/// One artifact, in bytes.
pub const ARTIFACT_BYTES: usize = 64 * 1024 * 1024;
/// All artifacts of a run, in bytes.
pub const RUN_ARTIFACT_BYTES: u64 = 512 * 1024 * 1024;
/// Artifacts of a run.
pub const RUN_ARTIFACTS: i64 = 100;
/// Longest artifact name, in bytes.
pub const ARTIFACT_NAME_BYTES: usize = 128;

/// The archived transcript of a session, in bytes; a longer one is not archived.
pub const TRANSCRIPT_BYTES: usize = 32 * 1024 * 1024;
/// Forks of a project that never had a run; the next one is refused. Each has a copy of a transcript.
pub const FORKS_WITHOUT_RUN: i64 = 100;

/// Longest branch name, in bytes.
pub const BRANCH_BYTES: usize = 200;
/// Longest repository reference, in bytes.
pub const REPOSITORY_BYTES: usize = 1024;
/// Names in a run's `environment`.
pub const ENVIRONMENT_NAMES: usize = 64;
/// One value in a run's `environment`, in bytes.
pub const ENVIRONMENT_VALUE_BYTES: usize = 8 * 1024;
/// Workflows of a project, the server's among them; the next one is refused. A list has one page.
pub const WORKFLOWS: i64 = PAGE_ITEMS as i64;
/// Longest workflow file, in bytes. Its prompt becomes one argument of the agent, and Linux takes at most 128 KiB.
pub const WORKFLOW_BYTES: usize = 100 * 1024;
/// Longest MCP configuration, in bytes of JSON; it is one argument as well.
pub const MCP_BYTES: usize = 100 * 1024;
/// Longest sentence kept as a run's result or failure evidence, in bytes.
pub const RESULT_TEXT_BYTES: usize = 64 * 1024;

/// Credentials of a project.
pub const CREDENTIALS: i64 = 100;
/// One secret of a credential, in bytes: a private key of 8192 bits fits.
pub const CREDENTIAL_SECRET_BYTES: usize = 16 * 1024;
/// One setting of a credential, in bytes.
pub const CREDENTIAL_TEXT_BYTES: usize = 1024;
/// The certificates of a credential, in bytes of PEM.
pub const CREDENTIAL_CA_BYTES: usize = 32 * 1024;
