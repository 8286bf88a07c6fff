-- What the Automagik-compatible API has beside the native one: the people whom its clients name, and the words with which
-- a client of it asked for a run.

create table automagik_user (
    id            text collate "C" not null,
    project_id    text collate "C" not null references project (id),
    email         text collate "C",
    phone_number  text collate "C",
    user_data     text collate "C" check (user_data is null or cast(user_data as json) is not null),
    created_at_ms bigint not null,
    updated_at_ms bigint not null,
    primary key (project_id, id)
);

create unique index automagik_user_by_email on automagik_user (project_id, email) where email is not null;
create unique index automagik_user_by_phone on automagik_user (project_id, phone_number) where phone_number is not null;

create table automagik_run (
    run_id        text collate "C" primary key not null references run (id),
    project_id    text collate "C" not null references project (id),
    session_id    text collate "C" not null references session (id),
    workflow_name text collate "C" not null, -- as it was asked for: an alias, perhaps
    session_name  text collate "C",
    user_id       text collate "C"        -- whatever the client says: no row need know it
);

create index automagik_run_of_session on automagik_run (session_id, run_id);
create index automagik_run_by_name on automagik_run (project_id, session_name, session_id) where session_name is not null;
