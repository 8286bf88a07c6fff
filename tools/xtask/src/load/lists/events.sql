-- The events with the numbers from {first} to {last} of the runs from {oldest} to {newest}, as fill.py makes them.
set session_replication_role = replica;
set work_mem = '512MB';
insert into event (session_id, seq, project_id, run_id, at_ms, kind, data)
    select run.session_id, numbers.seq, run.project_id, run.id, run.created_at_ms + numbers.seq, 'agent.line',
        '{"type":"line","text":"' || lpad(cast(numbers.seq as text), 475, '0') || '"}'
    from run cross join generate_series({first}, {last}) as numbers (seq)
    where run.id between '{oldest}' and '{newest}' order by run.id, numbers.seq;
