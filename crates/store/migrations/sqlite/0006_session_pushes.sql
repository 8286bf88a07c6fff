-- Whether a run may take commits away from its branch is told by its session's pushes, which are few among many events.
create index event_of_push on event (session_id, seq) where kind = 'git.push';
