-- Sessions that go on: the agent's conversation as the end of a run left it, forks, and files of sessions that were deleted.

-- Of a fork, the session that it comes from, which may be gone; null: it began by itself.
alter table session add column forked_from text collate "C";
-- Of a fork, what its first run goes on with: the specification of the other session's last run, with branches of its own.
alter table session add column fork_spec text collate "C" check (fork_spec is null or cast(fork_spec as json) is not null);
-- Of a fork, the commit that the other session had pushed last; null: none.
alter table session add column fork_commit text collate "C";

create table transcript (
    session_id    text collate "C" primary key not null references session (id),
    project_id    text collate "C" not null references project (id),
    run_id        text collate "C" not null, -- at whose end it was archived; of a fork, perhaps a run of the other session
    size_bytes    bigint not null check (size_bytes >= 0),
    sha256        text collate "C" not null,
    created_at_ms bigint not null
);

create table transcript_part (
    session_id text collate "C" not null references transcript (session_id),
    number     bigint not null, -- from 0; together they are the transcript
    project_id text collate "C" not null references project (id),
    content    text collate "C" not null,
    primary key (session_id, number)
);

-- Files of deleted sessions that a server has still to remove.
create table removal (
    server_id     text collate "C" not null references server (id),
    kind          text collate "C" not null check (kind in ('volume', 'artifacts')),
    name          text collate "C" not null, -- the session, or the run
    project_id    text collate "C" not null references project (id),
    created_at_ms bigint not null,
    primary key (server_id, kind, name)
);
