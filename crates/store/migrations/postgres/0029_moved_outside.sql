-- What a run has moved outside is read again by a server that takes it up after a restart: few events among many.
create index event_of_moved on event (run_id, kind) where kind in ('egress.used', 'mcp.used');
