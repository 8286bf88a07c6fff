-- The first schema. Times are Unix ms, money is micro-USD, documents are JSON text. Wherever a row belongs to a
-- tenant its project_id says to which; small columns stand before documents, so that filters need not read past them.

create table project (
    id            text primary key not null,
    created_at_ms integer not null,
    checks        integer not null default 0 -- counted up by the readiness check, to prove that writing works
) strict, without rowid;

insert into project (id, created_at_ms) values ('default', 0);

create table api_key (
    id              text primary key not null,
    project_id      text not null references project (id),
    name            text not null,
    scopes          text not null check (json_valid(scopes)),
    secret_hash     text not null unique,
    created_at_ms   integer not null,
    revoked_at_ms   integer,
    last_used_at_ms integer
) strict, without rowid;

create index api_key_of_project on api_key (project_id, id);

create table server (
    id         text primary key not null,
    project_id text references project (id), -- null: it serves every project
    seen_at_ms integer not null,
    problems   text not null check (json_valid(problems))
) strict, without rowid;

create table session (
    -- Never used twice, also when sessions are deleted: files of an old session may carry its uid.
    number                integer primary key autoincrement,
    id                    text not null unique,
    project_id            text not null references project (id),
    workflow              text not null,
    repository            text,
    branch                text,
    conversation          text not null,
    last_seq              integer not null default 0,
    last_input_seq        integer not null default 0,
    calls                 integer not null default 0,
    estimated_calls       integer not null default 0,
    input_tokens          integer not null default 0,
    output_tokens         integer not null default 0,
    cache_read_tokens     integer not null default 0,
    cache_write_5m_tokens integer not null default 0,
    cache_write_1h_tokens integer not null default 0,
    cost_micro_usd        integer not null default 0,
    created_at_ms         integer not null,
    updated_at_ms         integer not null
) strict;

create index session_of_project on session (project_id, id);

create table sandbox (
    id             text primary key not null,
    project_id     text not null references project (id),
    session_id     text not null references session (id),
    server_id      text not null references server (id),
    engine         text not null,
    image          text not null,
    uid            integer not null,
    state          text not null check (state in ('creating', 'running', 'stopping', 'destroyed')),
    journal_offset integer not null default 0 check (journal_offset >= 0),
    created_at_ms  integer not null,
    changed_at_ms  integer not null,
    unique (id, session_id)
) strict, without rowid;

create index sandbox_alive on sandbox (server_id, id) where state <> 'destroyed';

create table sandbox_grant (
    sandbox_id    text not null references sandbox (id),
    kind          text not null check (kind in ('control', 'agent')),
    project_id    text not null references project (id),
    hash          text not null,
    revoked_at_ms integer,
    primary key (sandbox_id, kind)
) strict, without rowid;

create table run (
    id                     text primary key not null,
    project_id             text not null references project (id),
    session_id             text not null references session (id),
    workflow               text not null,
    repository             text,
    repository_key         text, -- the same for all spellings of the repository
    branch                 text,
    status                 text not null
        check (status in ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    phase                  text check (phase in ('prepare', 'agent', 'publish')),
    waiting                text check (waiting in ('input', 'provider', 'approval')),
    lease_epoch            integer not null default 0,
    lease_expires_at_ms    integer,
    attempt                integer not null default 0,
    agent_started          integer not null default 0 check (agent_started in (0, 1)),
    cancel_requested_at_ms integer,
    stop_requested_at_ms   integer,
    home_server_id         text references server (id),
    sandbox_id             text,
    base_commit            text,
    pushed_commit          text,
    provider_status        integer,
    calls                  integer not null default 0,
    estimated_calls        integer not null default 0,
    input_tokens           integer not null default 0,
    output_tokens          integer not null default 0,
    cache_read_tokens      integer not null default 0,
    cache_write_5m_tokens  integer not null default 0,
    cache_write_1h_tokens  integer not null default 0,
    cost_micro_usd         integer not null default 0,
    event_items            integer not null default 0,
    event_bytes            integer not null default 0,
    events_full            integer not null default 0 check (events_full in (0, 1)), -- an event tells of it
    not_before_ms          integer not null,
    created_at_ms          integer not null,
    started_at_ms          integer,
    finished_at_ms         integer,
    created_by             text references api_key (id),
    failure                text check (json_valid(failure)),
    outcome                text check (json_valid(outcome)),
    pending_push           text check (json_valid(pending_push)),
    result                 text,
    spec                   text not null check (json_valid(spec)),
    foreign key (sandbox_id, session_id) references sandbox (id, session_id),
    check ((status in ('succeeded', 'failed', 'cancelled')) = (finished_at_ms is not null)),
    check (status = 'running' or lease_expires_at_ms is null),
    check (status = 'running' or pending_push is null),
    check (status <> 'running' or home_server_id is not null)
) strict;

create index run_of_project on run (project_id, id);
create index run_of_session on run (session_id, id);
create index run_queued on run (created_at_ms, id) where status = 'queued';
create index run_at_home on run (home_server_id) where status = 'running';
-- What may run at once is held by the database as well as by the claim: one run of a session, one on a branch, one in
-- a sandbox.
create unique index run_live_session on run (session_id) where status = 'running';
create unique index run_live_branch on run (repository_key, branch) where status = 'running';
create unique index run_live_sandbox on run (sandbox_id) where status = 'running';

create table attempt (
    run_id              text not null references run (id),
    number              integer not null,
    project_id          text not null references project (id),
    session_id          text not null references session (id),
    server_id           text not null references server (id),
    started_at_ms       integer not null,
    agent_started_at_ms integer,
    ended_at_ms         integer,
    primary key (run_id, number)
) strict, without rowid;

create index attempt_with_agent on attempt (session_id) where agent_started_at_ms is not null;

-- The kind has no check and the data none either: kinds are only added, by code, and the agent's own lines are kept as
-- they came, while json_valid refuses what is nested deeper than 1000 levels.
create table event (
    session_id text not null references session (id),
    seq        integer not null,
    project_id text not null references project (id),
    run_id     text not null references run (id),
    at_ms      integer not null,
    kind       text not null,
    data       text not null,
    primary key (session_id, seq)
) strict;

create index event_of_run on event (run_id, seq);
create index event_of_sandbox on event (run_id, kind) where kind in ('sandbox.started', 'sandbox.exited');

create table input (
    session_id    text not null references session (id),
    seq           integer not null,
    project_id    text not null references project (id),
    run_id        text not null references run (id),
    created_at_ms integer not null,
    body          text not null check (json_valid(body)),
    primary key (session_id, seq)
) strict, without rowid;

create index input_of_run on input (run_id, seq);

create table workflow (
    project_id    text not null references project (id),
    name          text not null,
    version       integer not null,
    updated_at_ms integer not null,
    definition    text not null check (json_valid(definition)),
    primary key (project_id, name)
) strict;

create table usage (
    id                    text primary key not null,
    project_id            text not null references project (id),
    session_id            text not null references session (id),
    run_id                text not null references run (id),
    server_id             text not null references server (id),
    state                 text not null check (state in ('pending', 'settled')),
    model                 text not null,
    status                integer,
    input_tokens          integer not null,
    output_tokens         integer not null,
    cache_read_tokens     integer not null,
    cache_write_5m_tokens integer not null,
    cache_write_1h_tokens integer not null,
    cost_micro_usd        integer not null,
    estimated             integer not null check (estimated in (0, 1)),
    first_byte_ms         integer,
    duration_ms           integer,
    begun_at_ms           integer not null,
    settled_at_ms         integer,
    check ((state = 'settled') = (settled_at_ms is not null))
) strict, without rowid;

create index usage_of_run on usage (run_id, id);
create index usage_pending on usage (server_id, id) where state = 'pending';
create index usage_open on usage (run_id, id) where state = 'pending';

create table artifact (
    id            text primary key not null,
    project_id    text not null references project (id),
    run_id        text not null references run (id),
    name          text not null,
    size_bytes    integer not null check (size_bytes >= 0),
    sha256        text not null,
    path          text not null,
    created_at_ms integer not null,
    unique (run_id, name)
) strict, without rowid;

create table audit (
    number     integer primary key autoincrement,
    project_id text not null references project (id),
    at_ms      integer not null,
    actor      text not null,
    action     text not null,
    subject    text not null
) strict;

create table idempotency (
    project_id     text not null references project (id),
    key            text not null,
    request_sha256 text not null,
    run_id         text not null references run (id),
    expires_at_ms  integer not null,
    primary key (project_id, key)
) strict, without rowid;

create index idempotency_expiry on idempotency (expires_at_ms);
