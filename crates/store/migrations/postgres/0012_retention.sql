-- Retention: how many days things are kept after the last run of their session has ended. Null: what the server's settings
-- say; 0: for ever.

alter table project add column keep_events_days bigint check (keep_events_days >= 0);
alter table project add column keep_artifacts_days bigint check (keep_artifacts_days >= 0);
alter table project add column keep_volumes_days bigint check (keep_volumes_days >= 0);
alter table project add column keep_sessions_days bigint check (keep_sessions_days >= 0);

-- Events up to this one are gone, but for those that tell of runs' beginnings, ends and pushes.
alter table session add column events_deleted_seq bigint not null default 0;
alter table session add column volume_deleted_at_ms bigint;

create index session_of_age on session (project_id, updated_at_ms, id);
