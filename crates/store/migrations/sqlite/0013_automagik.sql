-- What the Automagik-compatible API has beside the native one: the people whom its clients name, and the words with which
-- a client of it asked for a run.

create table automagik_user (
    id            text not null,
    project_id    text not null references project (id),
    email         text,
    phone_number  text,
    user_data     text check (user_data is null or json_valid(user_data)),
    created_at_ms integer not null,
    updated_at_ms integer not null,
    primary key (project_id, id)
) strict, without rowid;

create unique index automagik_user_by_email on automagik_user (project_id, email) where email is not null;
create unique index automagik_user_by_phone on automagik_user (project_id, phone_number) where phone_number is not null;

create table automagik_run (
    run_id        text primary key not null references run (id),
    project_id    text not null references project (id),
    session_id    text not null references session (id),
    workflow_name text not null, -- as it was asked for: an alias, perhaps
    session_name  text,
    user_id       text           -- whatever the client says: no row need know it
) strict, without rowid;

create index automagik_run_of_session on automagik_run (session_id, run_id);
create index automagik_run_by_name on automagik_run (project_id, session_name, session_id) where session_name is not null;
