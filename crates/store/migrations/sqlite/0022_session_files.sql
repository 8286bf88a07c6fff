-- On which servers files of a session lie. A row is written before the first of them is made, and goes when the last of
-- them is gone there; until then the session's own row stays.
create table session_files (
    session_id          text not null references session (id),
    server_id           text not null references server (id),
    kind                text not null check (kind in ('artifacts', 'volumes')),
    project_id          text not null references project (id),
    removal_begun_at_ms integer not null default 0, -- when it was last tried; 0: they are kept
    primary key (session_id, server_id, kind)
) strict, without rowid;

-- A server looks for what has expired among its own files alone; what could not be removed is tried again last.
create index session_files_of_server on session_files (server_id, project_id, kind, removal_begun_at_ms, session_id);

-- Whoever has claimed a run of it may have made directories, and whoever had a sandbox of it certainly has. What was
-- said to be removed may be there all the same, and is looked at once more.
insert into session_files (session_id, server_id, kind, project_id, removal_begun_at_ms)
    select session.id, had.server_id, 'volumes', session.project_id, coalesce(session.volume_deleted_at_ms, 0)
    from (select session_id, server_id from sandbox union select session_id, server_id from attempt) as had
    join session on session.id = had.session_id;

insert into session_files (session_id, server_id, kind, project_id)
    select session_id, server_id, 'artifacts', project_id from session_files;

-- The server that has the file; null: nobody knows.
alter table artifact add column server_id text references server (id);

update artifact set server_id = (select home_server_id from run where run.id = artifact.run_id);

-- What refers to a session, or to its runs, is found when they are removed, also by the database itself, which looks
-- whether anything refers to what goes.
create index usage_of_session on usage (session_id);
create index attempt_of_session on attempt (session_id);
create index sandbox_of_session on sandbox (session_id);
create index idempotency_of_run on idempotency (run_id);
