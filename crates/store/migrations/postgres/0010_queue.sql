-- The queue: turns of projects by weight, rank of a run within its project, caps, and drained servers.

alter table project add column weight bigint not null default 1 check (weight between 1 and 1000);
alter table project add column turn bigint not null default 0; -- how far it has got: each start adds to it, the less the more weight
alter table project add column max_running bigint check (max_running >= 0); -- null: the settings' value
alter table project add column max_queued bigint check (max_queued >= 0);   -- null: the settings' value

-- When a run began to wait, less its head start by priority; the least comes first. It never changes, since waiting counts
-- the same for all.
alter table run add column queue_rank_ms bigint not null default 0;
-- The model credential that the project had when the run was claimed; empty: the one of the settings.
alter table run add column model_credential_id text collate "C" not null default '';

update run set queue_rank_ms = created_at_ms;

drop index if exists run_queued;
create index run_waiting on run (project_id, queue_rank_ms, id, not_before_ms) where status = 'queued';
create index run_running on run (project_id, model_credential_id) where status = 'running';
create index run_ended on run (finished_at_ms, started_at_ms) where finished_at_ms is not null and started_at_ms is not null;

alter table server add column drained_at_ms bigint; -- since when it claims nothing; null: it claims

create table queue_state (
    slot          bigint primary key not null check (slot = 1), -- there is one
    drained_at_ms bigint -- since when no server claims anything; null: they do
);

insert into queue_state (slot) values (1);
