-- Where the agent of a session has worked last is asked for each run that waits, at each claim: the last entry of an index, and
-- not every attempt that the session ever had.
drop index attempt_with_agent;
create index attempt_with_agent on attempt (session_id, agent_started_at_ms) where agent_started_at_ms is not null;
