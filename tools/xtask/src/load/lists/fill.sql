-- Fills a PostgreSQL database with copies of a run as fill.py does: see there.
set session_replication_role = replica;
create temporary table copy on commit drop as
    select numbers.number, case numbers.number when 0 then {long} else {events} end as events,
        to_jsonb(run) as run, to_jsonb(session) as session,
        (select to_jsonb(tried) from attempt as tried where tried.run_id = run.id limit 1) as attempt,
        (select to_jsonb(call) from usage as call where call.run_id = run.id limit 1) as usage,
        lpad(to_hex(run.created_at_ms - (numbers.number + 1) * 1000), 12, '0')
        || '70008000' || lpad(to_hex(numbers.number), 12, '0') as digits
    from (select generate_series(cast({first} as bigint), {last}) as number) as numbers, run
    join session on session.id = run.session_id where run.id = '{run}';

create function pg_temp.shifted(document jsonb, by_ms bigint) returns jsonb language sql as
    $$ select jsonb_object_agg(key, case when key like '%\_at\_ms' and value <> 'null'
       then to_jsonb(cast(value as bigint) - by_ms) else value end) from jsonb_each(document) $$;

insert into session select filled.* from copy, jsonb_populate_record(cast(null as session),
    pg_temp.shifted(copy.session, (number + 1) * 1000)
    || jsonb_build_object('id', 'ses_' || digits, 'number', 1000000 + number, 'last_seq', events)) as filled;

insert into run select filled.* from copy, jsonb_populate_record(cast(null as run),
    pg_temp.shifted(copy.run, (number + 1) * 1000)
    || jsonb_build_object('id', 'run_' || digits, 'session_id', 'ses_' || digits, 'sandbox_id', null,
           'event_items', events, 'event_bytes', cast(events as bigint) * 500)
    || case when number % 1000 < 20 then jsonb_build_object('status', 'failed', 'outcome', null, 'failure',
           '{"kind": "agent_error", "message": "The agent failed.", "evidence": null, "retry_can_help": true}')
       when number % 1000 = 501 then jsonb_build_object('status', 'cancelled') else '{}' end
    || case when number % 10 = 0 then jsonb_build_object('workflow', 'other') else '{}' end
    || case when number % 100 = 0
       then jsonb_build_object('repository', 'https://git.example.com/team/seldom.git') else '{}' end) as filled;

insert into attempt select filled.* from copy, jsonb_populate_record(cast(null as attempt),
    pg_temp.shifted(copy.attempt, (number + 1) * 1000)
    || jsonb_build_object('run_id', 'run_' || digits, 'session_id', 'ses_' || digits)) as filled;

insert into usage select filled.* from copy, jsonb_populate_record(cast(null as usage),
    pg_temp.shifted(copy.usage, (number + 1) * 1000) || jsonb_build_object(
        'id', 'use_' || digits, 'run_id', 'run_' || digits, 'session_id', 'ses_' || digits)) as filled;
