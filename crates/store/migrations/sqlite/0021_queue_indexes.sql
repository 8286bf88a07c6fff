-- What waits and what runs is found and counted by indexes that hold nothing else. They begin with the status although all
-- of their rows have the same one: else the database takes them for no better than an index over every run there ever was,
-- and reads that one from end to end.
drop index run_waiting;
create index run_waiting on run (status, project_id, queue_rank_ms, id, not_before_ms) where status = 'queued';
drop index run_running;
create index run_running on run (status, project_id, model_credential_id) where status = 'running';
