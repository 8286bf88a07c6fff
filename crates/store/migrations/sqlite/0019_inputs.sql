-- Inputs that people send to a live run are kept and tell how far they are; and what agents ask before they use a tool.

alter table input add column kind text; -- null: the server's own, which goes when the run ends
alter table input add column state text not null default 'accepted';
alter table input add column acknowledged_at_ms integer; -- when the shim told how far it is
alter table input add column created_by text; -- the API key
alter table input add column idempotency_key text;

create unique index input_by_idempotency_key on input (run_id, idempotency_key) where idempotency_key is not null;

create table approval (
    id               text primary key not null,
    project_id       text not null references project (id),
    session_id       text not null references session (id),
    run_id           text not null references run (id),
    request          text not null, -- the agent's own name for it
    tool             text not null,
    description      text,
    input            text not null, -- JSON, or the beginning of it
    cut_bytes        integer not null,
    default_answer   text not null,
    state            text not null,
    requested_at_ms  integer not null,
    expires_at_ms    integer not null,
    decided_at_ms    integer,
    decided_by       text, -- the API key; null: nobody
    answer           text check (answer is null or json_valid(answer))
) strict, without rowid;

create index approval_of_run on approval (run_id, requested_at_ms, id);
create index approval_of_session on approval (session_id);
