-- What a claim looks at of each run that waits, all of it in the index: there may be thousands that wait for one branch, and whoever
-- claims keeps everybody else waiting.
drop index run_waiting;
create index run_waiting on run (status, project_id, queue_rank_ms, id, not_before_ms, session_id, repository_key, branch)
    where status = 'queued';
