-- Sessions that go on: what a fork begins with, requests whose runs or forks are gone, and one text for all that share it.

-- Of a fork, the branch that its commit was pushed to; null: it was pushed to none, or the fork is an older version's.
alter table session add column fork_branch text;
-- Of a fork, what of it was older than the other when it was made; null: neither.
alter table session add column fork_older text check (fork_older is null or fork_older in ('conversation', 'files'));

-- Forks that never had a run, of which a project may have so many: the first event of a session tells of its first run.
create index session_of_unused_forks on session (project_id) where forked_from is not null and last_seq = 0;

-- What a request made: a run, or a fork; neither: it was deleted, and the key is remembered all the same.
create table idempotency_kept (
    project_id     text not null references project (id),
    key            text not null,
    request_sha256 text not null,
    run_id         text references run (id),
    expires_at_ms  integer not null,
    session_id     text references session (id),
    primary key (project_id, key)
) strict, without rowid;

insert into idempotency_kept (project_id, key, request_sha256, run_id, expires_at_ms)
    select project_id, key, request_sha256, run_id, expires_at_ms from idempotency;

drop table idempotency;
alter table idempotency_kept rename to idempotency;

create index idempotency_expiry on idempotency (expires_at_ms);
create index idempotency_of_run on idempotency (run_id);
create index idempotency_of_session on idempotency (session_id);

-- A fork shares the text of the transcript that it has from the other session, until one of them archives another one: the
-- text belongs to the run at whose end it was archived, and stays as long as any session has it.
create table transcript_text (
    run_id     text not null,
    number     integer not null, -- from 0; together they are the transcript
    project_id text not null references project (id),
    content    text not null,
    primary key (run_id, number)
) strict;

insert into transcript_text (run_id, number, project_id, content)
    select transcript.run_id, transcript_part.number, transcript_part.project_id, transcript_part.content
    from transcript join transcript_part on transcript_part.session_id = transcript.session_id
    where transcript.session_id = (select min(same.session_id) from transcript as same where same.run_id = transcript.run_id);

drop table transcript_part;
alter table transcript_text rename to transcript_part;

create index transcript_of_run on transcript (run_id, session_id);
