//! Bounds of the gateway with names. Those that a test must be able to hit quickly are fields of [`Bounds`],
//! whose default is the named constant.

use std::time::Duration;

use crate::mcp::McpBounds;

/// Connections of one sandbox that are served at once; further ones wait in the socket's backlog.
pub(crate) const CONNECTIONS: usize = 64;
/// Request line and headers of one request, in bytes.
pub(crate) const HEADER_BYTES: usize = 64 * 1024;
/// Headers of one request.
pub(crate) const HEADERS: usize = 100;
/// How long a connection may take to send a request's headers, the wait for the next request included.
pub(crate) const HEADER_READ: Duration = Duration::from_mins(1);
/// Longest silence in the middle of a request's body.
pub(crate) const BODY_IDLE: Duration = Duration::from_mins(1);
/// How long requests under way may go on after the server was told to stop or the sandbox is gone.
pub(crate) const GRACE: Duration = Duration::from_secs(5);
/// How often the sandboxes are read even if no hint came.
pub(crate) const RECONCILE: Duration = Duration::from_secs(5);
/// How often credentials that could not be opened are tried again, in looks [`RECONCILE`] apart at most: the master key may be
/// back.
pub(crate) const UNOPENED_LOOKS: u32 = 12;
/// How often `GET /next` and `GET /inputs` look within their wait even if no hint came: well under
/// [`caisson_domain::limits::STOP_GRACE_S`], so that a run whose hint was lost has time to save its work.
pub(crate) const LOOK: Duration = Duration::from_secs(2);
/// Bodies of one sandbox that are in memory at once, in bytes.
pub(crate) const BODY_POOL_BYTES: usize = 64 * 1024 * 1024;
/// JSON up to this size is read on the spot, in bytes; longer texts go to a blocking thread.
pub(crate) const INLINE_BYTES: usize = 512 * 1024;

/// How long a request is held while the database is away, before it is refused. The agent gives up after the third refusal
/// in a few seconds, so this is nearly all of what an outage may last.
pub(crate) const STORE_HOLD: Duration = Duration::from_mins(1);
/// How long settling a call or recording a push is retried while the database is away.
pub(crate) const SETTLE_HOLD: Duration = Duration::from_mins(1);
/// How long the outcome of a run is held back while a git host is asked what became of its pending push: less
/// than the shim waits for an answer.
pub(crate) const OUTCOME_HOLD: Duration = Duration::from_secs(10);
/// How long after its start the server goes on asking a git host that is away what became of a push: as long as
/// the shim holds a request.
pub(crate) const PUSH_LOOK: Duration = Duration::from_mins(15);
/// Longest wait between two such questions.
pub(crate) const LOOK_BACKOFF_MOST: Duration = Duration::from_secs(10);
/// How long the end of a model reply is held back until the call is settled.
pub(crate) const END_HOLD: Duration = Duration::from_secs(5);
/// First wait between two tries at the database.
pub(crate) const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// Longest wait between two tries at the database.
pub(crate) const BACKOFF_MOST: Duration = Duration::from_secs(1);

/// Lines of one journal batch that are stored at once; the acknowledged offset then lies before the batch's
/// end.
pub(crate) const JOURNAL_BATCH_LINES: usize = 4096;
/// Lines of one batch that are not understood and told of one by one; the others are counted.
pub(crate) const JOURNAL_NOTES: usize = 16;
/// How much of a line that is not understood is shown, in bytes.
pub(crate) const EXCERPT_BYTES: usize = 200;
/// Message of a note, in bytes.
pub(crate) const NOTE_BYTES: usize = 8 * 1024;
/// Body of a batch of text deltas, in bytes: [`caisson_domain::limits::DELTAS_PER_SECOND`] full ones,
/// escaped.
pub(crate) const DELTA_BODY_BYTES: usize = 1024 * 1024;

/// Artifacts that one sandbox may have on their way.
pub(crate) const ARTIFACT_UPLOADS: usize = 1;
/// Attachments that may be on their way to one sandbox: each is up to [`caisson_domain::attachment::ATTACHMENT_BYTES`] of this
/// server's memory until it is sent.
pub(crate) const ATTACHMENT_EXCHANGES: usize = 1;
/// Transcripts that one sandbox may have on their way, in both directions together: each is up to
/// [`caisson_domain::limits::TRANSCRIPT_BYTES`] of this server's memory until it is stored or sent.
pub(crate) const TRANSCRIPT_EXCHANGES: usize = 1;
/// Transcripts that are taken of one run. The shim sends one, and again only where it got no answer. Counted by each door in
/// memory, so a restart of the server begins anew.
pub(crate) const TRANSCRIPT_PUTS: u32 = 8;

/// Body of a request to the model API, in bytes.
pub(crate) const MODEL_BODY_BYTES: usize = 40 * 1024 * 1024;
/// Calls of the model API that one sandbox may have under way, those drained after the client left included.
pub(crate) const MODEL_CALLS: usize = 16;
/// Largest piece of a reply handed to a connection at once, in bytes.
pub(crate) const CHUNK_BYTES: usize = 16 * 1024;
/// Pieces of a reply that wait for a connection. With the one in hand: 64 KiB a stream.
pub(crate) const CHUNKS: usize = 3;
/// How long connecting to an upstream may take.
pub(crate) const CONNECT: Duration = Duration::from_secs(10);
/// How long an unused connection to an upstream is kept: less than upstreams keep theirs, so that none is
/// used just when it is closed.
pub(crate) const POOL_IDLE: Duration = Duration::from_secs(30);
/// How long an upstream may take to answer.
pub(crate) const FIRST_BYTE: Duration = Duration::from_mins(10);
/// Longest silence in the middle of a reply, on either side.
pub(crate) const IDLE: Duration = Duration::from_mins(5);
/// How long a model reply is read on for its usage after the client left.
pub(crate) const DRAIN: Duration = Duration::from_secs(30);
/// How much of a model reply is read on for its usage after the client left, in bytes.
pub(crate) const DRAIN_BYTES: usize = 8 * 1024 * 1024;
/// Copy of a reply that is not streamed, kept to read its usage, in bytes.
pub(crate) const JSON_COPY_BYTES: usize = 8 * 1024 * 1024;
/// One line, and the data of one event, of a streamed reply that the meter reads, in bytes.
pub(crate) const SSE_LINE_BYTES: usize = 1024 * 1024;
/// Passes over its input that a reply's usage may list one by one; what is beyond is added up and priced as the dearest.
pub(crate) const USAGE_PARTS: usize = 64;
/// Output tokens that a call is estimated at before anything is known.
pub(crate) const OUTPUT_ESTIMATE_TOKENS: i64 = 1000;
/// Output tokens that a streamed call holds its share of the budgets for: before it is forwarded, and each time that it
/// has written as many. More than most replies have: of calls at once against the end of a budget, few that end are better
/// than many that are all cut.
pub(crate) const OUTPUT_SLICE_TOKENS: i64 = 4000;
/// Output tokens that are reserved for a reply that cannot be cut and whose request does not plainly say how long it may
/// get: as many as any model writes into one reply. Source: the Messages API's table of models (`max output`), 2026.
pub(crate) const OUTPUT_UNSTATED_TOKENS: i64 = 128_000;
/// Output tokens that a streamed call is content with at the end of a budget, when no other call holds any of it.
pub(crate) const OUTPUT_LAST_TOKENS: i64 = 1000;
/// Output tokens that a reply under way is content with at the very end.
pub(crate) const OUTPUT_CRUMB_TOKENS: i64 = 100;
/// How often a reply that no budget bounds notes what it has come to, for its estimate alone.
pub(crate) const NOTE_EVERY: Duration = Duration::from_secs(1);
/// How long a call waits for its share of a budget while other calls hold it, before it is refused.
pub(crate) const BUDGET_HOLD: Duration = Duration::from_mins(2);
/// How long a reply under way waits for its next share, before it is cut.
pub(crate) const EXTEND_HOLD: Duration = Duration::from_secs(10);
/// How often a budget is looked at even if no hint came.
pub(crate) const BUDGET_POLL: Duration = Duration::from_millis(500);
/// Tries of one model call, the first included.
pub(crate) const MODEL_TRIES: u32 = 8;
/// First wait between two tries of a model call; each further one is twice as long.
pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Longest wait between two tries, unless the model API names a longer one.
pub(crate) const RETRY_MOST: Duration = Duration::from_secs(20);
/// How long after its first try a model call is tried again.
pub(crate) const RETRY_TOTAL: Duration = Duration::from_mins(3);
/// Requests of all sandboxes together that are kept to be sent again, in bytes; one that does not fit has one try.
pub(crate) const RETRY_COPIES_BYTES: usize = 256 * 1024 * 1024;
/// What is read of the model API's refusal for its words, in bytes.
pub(crate) const WORDS_BYTES: usize = 16 * 1024;
/// How long those words are waited for.
pub(crate) const WORDS: Duration = Duration::from_secs(5);
/// What the agent is told to wait for when its calls are given up, in seconds: long enough that it ends instead (measured
/// with Claude Code 2.1.330).
pub(crate) const GIVE_UP_S: u32 = 3600;
/// Bytes of text that are estimated at one token.
pub(crate) const BYTES_PER_TOKEN: usize = 4;
/// Name of a model as it is kept, in bytes.
pub(crate) const MODEL_NAME_BYTES: usize = 128;
/// The same as it is read: a longer one is none. Secrets are looked for in it before it is cut.
pub(crate) const MODEL_NAME_READ_BYTES: usize = 4096;

/// Bytes that the sandbox of one run may be given in answer to fetches (16 GiB), as its tools may receive from outside.
pub(crate) const FETCHED_BYTES: u64 = EGRESS_RECEIVED_BYTES;
/// Exchanges with git hosts that one sandbox may have under way; one is counted from when its body begins to arrive.
pub(crate) const GIT_EXCHANGES: usize = 8;
/// Git's own processes on the server for repositories that are directories, for all sandboxes together, beside the one
/// that each sandbox has for itself: what others hold open never keeps a sandbox from its repository.
pub(crate) const LOCAL_GIT: usize = 16;
/// Longest wait in all for a sandbox that reads an answer slower than it comes: this long, and as long as
/// [`SLOW_READER_BYTES`] a second take.
pub(crate) const SLOW_READER: Duration = Duration::from_mins(2);
/// See [`SLOW_READER`]; bytes a second.
pub(crate) const SLOW_READER_BYTES: u64 = 256 * 1024;
/// Pushes that one sandbox may have in quarantine.
pub(crate) const PUSHES: usize = 2;
/// Before a push is sent once more that a git host could not move to its place; so it is sent one time more than these.
pub(crate) const PUSH_PAUSES: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(1)];
/// How long a git host's answer to a push is read ahead, before it is passed on as it comes.
pub(crate) const PUSH_AHEAD: Duration = Duration::from_secs(10);
/// Pushes that are looked at at once, for all sandboxes together; further ones wait their turn.
pub(crate) const INSPECTIONS: usize = 4;
/// Largest piece of memory that git takes for a push on the server, in bytes. A commit of 1 GiB comes as 1 MiB, and without
/// this git 2.47 took twice its size for it.
pub(crate) const GIT_ALLOC_BYTES: u64 = 256 * 1024 * 1024;
/// Processor time of one of git's processes for a fetch from a repository that is a directory, in seconds.
pub(crate) const FETCH_CPU_S: u64 = 600;
/// Memory that one of them may fill, files that it reads left out, in bytes (2 GiB). Git keeps a list of all objects that it sends:
/// a history of ten million takes most of it.
pub(crate) const FETCH_MEMORY_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// Refusals of one run that become events one by one, and upstream faults. Beyond that the first of each kind is told, and how often
/// it came again.
pub(crate) const TOLD_EVENTS: u32 = 200;
/// Kinds that are told apart by names which the sandbox chooses, such as a ref.
pub(crate) const TOLD_KINDS: usize = 200;
/// Outcomes of one run before which what is untold is told: one counts, and further ones are for a store that did not take it.
pub(crate) const OUTCOME_TRIES: u64 = 10;
/// Warnings in the server's log that one sandbox journals entries of runs which are not in it; what is beyond is for debugging.
pub(crate) const FOREIGN_WARNINGS: u32 = 20;
/// Notes of one run that a live credential was in what its sandbox sent.
pub(crate) const TOLD_ALARMS: u32 = 100;
/// Ref commands of one push.
pub(crate) const COMMANDS: usize = 16;
/// The part of a push before its pack, in bytes.
pub(crate) const COMMAND_SECTION_BYTES: usize = 64 * 1024;
/// Name of a ref, in bytes.
pub(crate) const REF_BYTES: usize = 1024;
/// A whole push, in bytes (1 GiB).
pub(crate) const PUSH_BYTES: u64 = 1024 * 1024 * 1024;
/// How much of a refused push is read so that its client sees the answer, in bytes.
pub(crate) const DENIED_BYTES: u64 = 256 * 1024 * 1024;
/// A fetch request (wants and haves), decoded, in bytes.
pub(crate) const FETCH_REQUEST_BYTES: u64 = 16 * 1024 * 1024;
/// The git host's report on a push, in bytes.
pub(crate) const REPORT_BYTES: usize = 64 * 1024;
/// The git host's list of refs, read to learn what became of a push, in bytes.
pub(crate) const ADVERTISEMENT_BYTES: usize = 16 * 1024 * 1024;
/// How long one exchange with a git host may take in all.
pub(crate) const EXCHANGE: Duration = Duration::from_hours(1);
/// The end of git's standard error that is kept, in bytes.
pub(crate) const STDERR_BYTES: usize = 4 * 1024;
/// Subject of the deterministic commit message, in characters.
pub(crate) const SUBJECT_CHARS: usize = 60;

/// Connections to the outside that one run may have open at once; further ones are refused.
pub(crate) const EGRESS_CONNECTIONS: usize = 32;
/// Connections to the outside that one run may make in all; a plain HTTP request is one.
pub(crate) const EGRESS_TOTAL: u64 = 20_000;
/// Kinds of uses of one run: hosts, ports and methods. Each name that is looked up can carry a message, so that names end.
pub(crate) const EGRESS_TARGETS: usize = 500;
/// Kinds of denials of one run that are told one by one. Of what is denied beyond that, the first of each reason, way, and kind of
/// address that is not public.
pub(crate) const EGRESS_DENIALS: usize = 200;
/// Kinds of uses in one event.
pub(crate) const EGRESS_USED_ITEMS: usize = 100;
/// Bytes that the tools of one run may send (1 GiB).
pub(crate) const EGRESS_SENT_BYTES: u64 = 1024 * 1024 * 1024;
/// Bytes that the tools of one run may receive (16 GiB).
pub(crate) const EGRESS_RECEIVED_BYTES: u64 = 16 * 1024 * 1024 * 1024;
/// Longest silence of a connection to the outside, in both directions.
pub(crate) const EGRESS_IDLE: Duration = Duration::from_mins(5);
/// How long connecting to a host outside may take, all of its addresses together.
pub(crate) const EGRESS_CONNECT: Duration = Duration::from_secs(10);
/// How long a name may take to be resolved.
pub(crate) const EGRESS_RESOLVE: Duration = Duration::from_secs(5);
/// Names that are looked up at once, for all sandboxes together.
pub(crate) const EGRESS_LOOKUPS: usize = 32;
/// Addresses of one name that are tried.
pub(crate) const EGRESS_ADDRESSES: usize = 8;
/// How often it is looked whether a run with a way outside still runs.
pub(crate) const EGRESS_CHECK: Duration = Duration::from_secs(5);
/// First time after which it is told what tools moved; it doubles up to [`EGRESS_TOLD_MOST`].
pub(crate) const EGRESS_TOLD_FIRST: Duration = Duration::from_secs(10);
/// Longest time after which it is told what tools moved.
pub(crate) const EGRESS_TOLD_MOST: Duration = Duration::from_mins(5);
/// How long one call for a token may take.
pub(crate) const TOKEN_CALL: Duration = Duration::from_secs(30);
/// How long a server has the turn at refreshing a credential's access token: for [`TOKEN_CALL`], and for writing down what came of
/// it, for [`SETTLE_HOLD`] while the database is away: who took over before would send the token that is used up. Of one that died
/// in its turn the others wait for its end.
pub(crate) const RENEWAL_TURN: Duration = Duration::from_secs(100);
/// How long the turns of other servers are waited for: of one that died, and of one that took over from it.
pub(crate) const RENEWAL_WAIT: Duration = Duration::from_secs(210);
/// How often it is looked whether a turn of another server is over even if no hint came.
pub(crate) const RENEWAL_LOOK: Duration = Duration::from_millis(500);
/// Answer to such a call, in bytes.
pub(crate) const TOKEN_REPLY_BYTES: usize = 64 * 1024;
/// How long after a failed call for a token there is no other with the same credential.
pub(crate) const TOKEN_PAUSE: Duration = Duration::from_secs(5);
/// How long a refreshed access token is not refreshed again when the model API refuses it: another one would fare no better,
/// and an agent that goes on asking would have the endpoint asked as often.
pub(crate) const RENEWAL_PAUSE: Duration = Duration::from_mins(1);
/// Credentials whose tokens are looked after at once.
pub(crate) const FLIGHTS: usize = 1000;
/// Clients for model credentials that have a proxy or certificates of their own.
pub(crate) const MODEL_CLIENTS: usize = 100;
/// How long before its end an access token is refreshed, in milliseconds.
pub(crate) const OAUTH_SKEW_MS: i64 = 60_000;
/// Life of an access token whose endpoint names none, in milliseconds.
pub(crate) const OAUTH_LIFETIME_MS: i64 = 60 * 60 * 1000;
/// Longest life of an access token, in milliseconds (a year).
pub(crate) const OAUTH_LIFETIME_MS_MOST: i64 = 365 * 24 * 60 * 60 * 1000;
/// How long before its end an installation token is used no more, in milliseconds: a clone may take a while.
pub(crate) const INSTALLATION_TOKEN_SKEW_MS: i64 = 5 * 60 * 1000;
/// What a push may hold and what looking at it may take.
#[derive(Debug, Clone)]
pub(crate) struct PushBounds {
    /// Objects.
    pub(crate) objects: u32,
    /// Commits.
    pub(crate) commits: usize,
    /// All trees and commits together, in bytes.
    pub(crate) tree_bytes: u64,
    /// Longest chain of deltas: git makes none that is longer.
    pub(crate) delta_depth: usize,
    /// Directories below one another.
    pub(crate) path_depth: usize,
    /// Files that a checkout of one of its trees would make, those of directories that are used twice counted twice.
    pub(crate) paths: u64,
    /// Findings that are compared with what the branch had before.
    pub(crate) candidates: usize,
    /// Files of before that are read to see whether a secret was there; what lies beyond counts as new.
    pub(crate) old_files: usize,
    /// What is fetched of the repository to compare with, in bytes.
    pub(crate) base_bytes: u64,
    /// All versions of `.gitmodules` that are read, in bytes.
    pub(crate) gitmodules_bytes: u64,
    /// URLs that they name, those of each counted by themselves.
    pub(crate) gitmodules_urls: usize,
    /// Git's lists of how what is brought differs from all that it is compared with, in bytes.
    pub(crate) difference_bytes: u64,
    /// Processor time of one of git's processes, in seconds.
    pub(crate) cpu_s: u64,
    /// Memory that one of git's processes may fill, files that it reads left out, in bytes.
    pub(crate) memory_bytes: u64,
    /// How long looking at a push may take in all, the wait for its turn left out.
    pub(crate) time: Duration,
    /// Free disk space that receiving a push leaves, in bytes.
    pub(crate) free_bytes: u64,
}

impl Default for PushBounds {
    fn default() -> Self {
        Self {
            objects: 500_000,
            commits: 10_000,
            tree_bytes: 128 * 1024 * 1024,
            delta_depth: 4095,
            path_depth: 128,
            paths: 5_000_000,
            candidates: 1_000,
            old_files: 2_000,
            base_bytes: 256 * 1024 * 1024,
            gitmodules_bytes: 16 * 1024 * 1024,
            gitmodules_urls: 200_000,
            difference_bytes: 64 * 1024 * 1024,
            cpu_s: 60,
            memory_bytes: 1024 * 1024 * 1024,
            time: Duration::from_mins(5),
            free_bytes: 256 * 1024 * 1024,
        }
    }
}

/// Bounds that tests shorten.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// Whether the kernel is asked to refuse descriptors at doors. Always, but in tests of what is done where it cannot.
    pub(crate) refuse_descriptors: bool,
    /// How long `GET /next` and `GET /inputs` wait.
    pub(crate) long_poll: Duration,
    /// [`LOOK`].
    pub(crate) look: Duration,
    /// [`BODY_IDLE`].
    pub(crate) body_idle: Duration,
    /// [`HEADER_READ`].
    pub(crate) header_read: Duration,
    /// [`GRACE`].
    pub(crate) grace: Duration,
    /// [`STORE_HOLD`].
    pub(crate) store_hold: Duration,
    /// [`SETTLE_HOLD`].
    pub(crate) settle_hold: Duration,
    /// [`OUTCOME_HOLD`].
    pub(crate) outcome_hold: Duration,
    /// [`PUSH_LOOK`].
    pub(crate) push_look: Duration,
    /// [`END_HOLD`].
    pub(crate) end_hold: Duration,
    /// [`FIRST_BYTE`].
    pub(crate) first_byte: Duration,
    /// [`TOKEN_CALL`].
    pub(crate) token_call: Duration,
    /// [`RENEWAL_TURN`].
    pub(crate) renewal_turn: Duration,
    /// [`RENEWAL_WAIT`].
    pub(crate) renewal_wait: Duration,
    /// [`IDLE`].
    pub(crate) idle: Duration,
    /// [`DRAIN`].
    pub(crate) drain: Duration,
    /// [`DRAIN_BYTES`].
    pub(crate) drain_bytes: usize,
    /// [`BUDGET_HOLD`].
    pub(crate) budget_hold: Duration,
    /// [`NOTE_EVERY`].
    pub(crate) note_every: Duration,
    /// [`EXTEND_HOLD`].
    pub(crate) extend_hold: Duration,
    /// [`MODEL_TRIES`].
    pub(crate) model_tries: u32,
    /// [`RETRY_FIRST`].
    pub(crate) retry_first: Duration,
    /// [`RETRY_TOTAL`].
    pub(crate) retry_total: Duration,
    /// [`RETRY_COPIES_BYTES`].
    pub(crate) retry_copies_bytes: usize,
    /// [`caisson_domain::limits::RUN_ARTIFACT_BYTES`].
    pub(crate) run_artifact_bytes: u64,
    /// [`EXCHANGE`].
    pub(crate) exchange: Duration,
    /// [`LOCAL_GIT`].
    pub(crate) local_git: usize,
    /// [`INSPECTIONS`].
    pub(crate) inspections: usize,
    /// [`GIT_ALLOC_BYTES`].
    pub(crate) git_alloc_bytes: u64,
    /// [`FETCHED_BYTES`].
    pub(crate) fetched_bytes: u64,
    /// [`FETCH_CPU_S`].
    pub(crate) fetch_cpu_s: u64,
    /// [`FETCH_MEMORY_BYTES`].
    pub(crate) fetch_memory_bytes: u64,
    /// [`PUSH_BYTES`].
    pub(crate) push_bytes: u64,
    /// [`FETCH_REQUEST_BYTES`].
    pub(crate) fetch_request_bytes: u64,
    /// [`EGRESS_TOTAL`].
    pub(crate) egress_total: u64,
    /// [`EGRESS_SENT_BYTES`].
    pub(crate) egress_sent_bytes: u64,
    /// [`EGRESS_RECEIVED_BYTES`].
    pub(crate) egress_received_bytes: u64,
    /// [`EGRESS_IDLE`].
    pub(crate) egress_idle: Duration,
    /// [`EGRESS_CONNECT`].
    pub(crate) egress_connect: Duration,
    /// [`EGRESS_RESOLVE`].
    pub(crate) egress_resolve: Duration,
    /// [`EGRESS_CHECK`].
    pub(crate) egress_check: Duration,
    /// [`EGRESS_TOLD_FIRST`].
    pub(crate) egress_told_first: Duration,
    /// [`SLOW_READER`].
    pub(crate) slow_reader: Duration,
    /// Of the content of pushes.
    pub(crate) push: PushBounds,
    /// Of the way to MCP servers.
    pub(crate) mcp: McpBounds,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            refuse_descriptors: true,
            long_poll: Duration::from_millis(caisson_domain::limits::LONG_POLL_MS),
            look: LOOK,
            body_idle: BODY_IDLE,
            header_read: HEADER_READ,
            grace: GRACE,
            store_hold: STORE_HOLD,
            settle_hold: SETTLE_HOLD,
            outcome_hold: OUTCOME_HOLD,
            push_look: PUSH_LOOK,
            end_hold: END_HOLD,
            first_byte: FIRST_BYTE,
            token_call: TOKEN_CALL,
            renewal_turn: RENEWAL_TURN,
            renewal_wait: RENEWAL_WAIT,
            idle: IDLE,
            drain: DRAIN,
            drain_bytes: DRAIN_BYTES,
            budget_hold: BUDGET_HOLD,
            note_every: NOTE_EVERY,
            extend_hold: EXTEND_HOLD,
            model_tries: MODEL_TRIES,
            retry_first: RETRY_FIRST,
            retry_total: RETRY_TOTAL,
            retry_copies_bytes: RETRY_COPIES_BYTES,
            run_artifact_bytes: caisson_domain::limits::RUN_ARTIFACT_BYTES,
            exchange: EXCHANGE,
            local_git: LOCAL_GIT,
            inspections: INSPECTIONS,
            git_alloc_bytes: GIT_ALLOC_BYTES,
            fetched_bytes: FETCHED_BYTES,
            fetch_cpu_s: FETCH_CPU_S,
            fetch_memory_bytes: FETCH_MEMORY_BYTES,
            push_bytes: PUSH_BYTES,
            fetch_request_bytes: FETCH_REQUEST_BYTES,
            egress_total: EGRESS_TOTAL,
            egress_sent_bytes: EGRESS_SENT_BYTES,
            egress_received_bytes: EGRESS_RECEIVED_BYTES,
            egress_idle: EGRESS_IDLE,
            egress_connect: EGRESS_CONNECT,
            egress_resolve: EGRESS_RESOLVE,
            egress_check: EGRESS_CHECK,
            egress_told_first: EGRESS_TOLD_FIRST,
            slow_reader: SLOW_READER,
            push: PushBounds::default(),
            mcp: McpBounds::default(),
        }
    }
}
