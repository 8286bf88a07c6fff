-- Inputs that people send to a live run are kept and tell how far they are; and what agents ask before they use a tool.

alter table input add column kind text collate "C"; -- null: the server's own, which goes when the run ends
alter table input add column state text collate "C" not null default 'accepted';
alter table input add column acknowledged_at_ms bigint; -- when the shim told how far it is
alter table input add column created_by text collate "C"; -- the API key
alter table input add column idempotency_key text collate "C";

create unique index input_by_idempotency_key on input (run_id, idempotency_key) where idempotency_key is not null;

create table approval (
    id               text collate "C" primary key not null,
    project_id       text collate "C" not null references project (id),
    session_id       text collate "C" not null references session (id),
    run_id           text collate "C" not null references run (id),
    request          text collate "C" not null, -- the agent's own name for it
    tool             text collate "C" not null,
    description      text collate "C",
    input            text collate "C" not null, -- JSON, or the beginning of it
    cut_bytes        bigint not null,
    default_answer   text collate "C" not null,
    state            text collate "C" not null,
    requested_at_ms  bigint not null,
    expires_at_ms    bigint not null,
    decided_at_ms    bigint,
    decided_by       text collate "C", -- the API key; null: nobody
    answer           text collate "C" check (answer is null or cast(answer as json) is not null)
);

create index approval_of_run on approval (run_id, requested_at_ms, id);
create index approval_of_session on approval (session_id);
