-- Credentials, sealed: what is secret is under a data key of its own, which is under the master key. The master key is
-- in a file beside the database; here is only its id. Sealed texts are base64.

create table master_key (
    slot   integer primary key not null check (slot = 1), -- there is one
    key_id text not null
) strict, without rowid;

create table credential (
    id              text primary key not null,
    project_id      text not null references project (id),
    name            text not null,
    kind            text not null,
    version         integer not null, -- raised by every change of the secret
    created_at_ms   integer not null,
    rotated_at_ms   integer,
    last_used_at_ms integer,
    key_id          text not null,    -- the master key that wraps the data key
    data_key        text not null,
    sealed          text not null,
    settings        text not null check (json_valid(settings)), -- sealed with these very bytes: text in every database
    unique (project_id, name)
) strict, without rowid;

create index credential_of_kind on credential (project_id, kind, id);

-- How often a run used a credential; it outlives the credential.
create table credential_use (
    credential_id    text not null,
    run_id           text not null references run (id) on delete cascade,
    project_id       text not null references project (id),
    uses             integer not null,
    first_used_at_ms integer not null,
    last_used_at_ms  integer not null,
    primary key (credential_id, run_id)
) strict, without rowid;

create index credential_use_of_run on credential_use (run_id);
