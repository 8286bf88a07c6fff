-- Sessions that go on: the agent's conversation as the end of a run left it, forks, and files of sessions that were deleted.

-- Of a fork, the session that it comes from, which may be gone; null: it began by itself.
alter table session add column forked_from text;
-- Of a fork, what its first run goes on with: the specification of the other session's last run, with branches of its own.
alter table session add column fork_spec text check (fork_spec is null or json_valid(fork_spec));
-- Of a fork, the commit that the other session had pushed last; null: none.
alter table session add column fork_commit text;

create table transcript (
    session_id    text primary key not null references session (id),
    project_id    text not null references project (id),
    run_id        text not null, -- at whose end it was archived; of a fork, perhaps a run of the other session
    size_bytes    integer not null check (size_bytes >= 0),
    sha256        text not null,
    created_at_ms integer not null
) strict, without rowid;

create table transcript_part (
    session_id text not null references transcript (session_id),
    number     integer not null, -- from 0; together they are the transcript
    project_id text not null references project (id),
    content    text not null,
    primary key (session_id, number)
) strict;

-- Files of deleted sessions that a server has still to remove.
create table removal (
    server_id     text not null references server (id),
    kind          text not null check (kind in ('volume', 'artifacts')),
    name          text not null, -- the session, or the run
    project_id    text not null references project (id),
    created_at_ms integer not null,
    primary key (server_id, kind, name)
) strict, without rowid;
