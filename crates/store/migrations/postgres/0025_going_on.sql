-- Sessions that go on: what a fork begins with, requests whose runs or forks are gone, and one text for all that share it.

-- Of a fork, the branch that its commit was pushed to; null: it was pushed to none, or the fork is an older version's.
alter table session add column fork_branch text collate "C";
-- Of a fork, what of it was older than the other when it was made; null: neither.
alter table session add column fork_older text collate "C" check (fork_older is null or fork_older in ('conversation', 'files'));

-- Forks that never had a run, of which a project may have so many: the first event of a session tells of its first run.
create index session_of_unused_forks on session (project_id) where forked_from is not null and last_seq = 0;

-- What a request made: a run, or a fork; neither: it was deleted, and the key is remembered all the same.
alter table idempotency alter column run_id drop not null;
alter table idempotency add column session_id text collate "C" references session (id);

create index idempotency_of_session on idempotency (session_id);

-- A fork shares the text of the transcript that it has from the other session, until one of them archives another one: the
-- text belongs to the run at whose end it was archived, and stays as long as any session has it.
create table transcript_text (
    run_id     text collate "C" not null,
    number     bigint not null, -- from 0; together they are the transcript
    project_id text collate "C" not null references project (id),
    content    text collate "C" not null,
    primary key (run_id, number)
);

insert into transcript_text (run_id, number, project_id, content)
    select transcript.run_id, transcript_part.number, transcript_part.project_id, transcript_part.content
    from transcript join transcript_part on transcript_part.session_id = transcript.session_id
    where transcript.session_id = (select min(same.session_id) from transcript as same where same.run_id = transcript.run_id);

drop table transcript_part;
alter table transcript_text rename to transcript_part;
alter table transcript_part rename constraint transcript_text_pkey to transcript_part_pkey;

create index transcript_of_run on transcript (run_id, session_id);
