#!/usr/bin/python3
"""Fills a server's SQLite database with runs that have ended: copies of one that really ran, each in a session of its own,
with an attempt and a model call.

usage: fill.py DATABASE RUN COUNT EVENTS LONG

Every column is taken over from the template but for ids, times and what lists filter by, so that nothing here has to know
the other columns. The copies are older than the template, one second apart. Of each thousand, 20 failed and one was
cancelled; one of ten follows another workflow, and one of a hundred has a repository of its own. Each has EVENTS events of
500 bytes, and the newest one LONG of them, which are written last.
"""
import json
import os
import sqlite3
import sys

SECOND_MS = 1000
CHUNK = 5000
# Events of one run that are written at once.
EVENTS_CHUNK = 250000
EVENT_BYTES = 500
API_KEYS = 1000

# By their ids and numbers, that is in the order in which a server would have written them.
EVENTS = """
    insert into event (session_id, seq, project_id, run_id, at_ms, kind, data)
    with recursive numbers (seq) as (select :first union all select seq + 1 from numbers where seq < :last)
    select run.session_id, numbers.seq, run.project_id, run.id, run.created_at_ms + numbers.seq, 'agent.line',
        printf('{"type":"line","text":"%0475d"}', numbers.seq)
    from run cross join numbers where run.id between :oldest and :newest order by run.id"""

# Keys that nobody has, as revoked ones are.
KEYS = """
    insert into api_key (id, project_id, name, scopes, secret_hash, created_at_ms, revoked_at_ms)
    with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < :count)
    select printf('key_%032x', n), 'default', 'key', '[]', printf('%064x', n), 0, 1 from numbers"""


def row(database, table, key, column="id"):
    cursor = database.execute(f"select * from {table} where {column} = ? limit 1", (key,))
    return dict(zip([column[0] for column in cursor.description], cursor.fetchone()))


def named(prefix, at_ms, number):
    # A UUID of version 7, as the server makes them; the number takes the place of its random bits.
    return f"{prefix}{at_ms:012x}7000{0x8000:04x}{number:012x}"


def shifted(columns, by_ms):
    moved = {name: value - by_ms for name, value in columns.items() if name.endswith("_at_ms") and value is not None}
    return {**columns, **moved}


def copy(templates, number, events):
    run, session, attempt, usage = templates
    by_ms = (number + 1) * SECOND_MS
    at_ms = run["created_at_ms"] - by_ms
    owner = {"session_id": named("ses_", at_ms, number), "run_id": named("run_", at_ms, number)}
    new_session = shifted(session, by_ms) | {"id": owner["session_id"], "last_seq": events}
    new_run = shifted(run, by_ms) | {"id": owner["run_id"], "session_id": owner["session_id"], "sandbox_id": None}
    new_run |= {"event_items": events, "event_bytes": events * EVENT_BYTES}
    if number % 1000 < 20:
        failure = {"kind": "agent_error", "message": "The agent failed.", "evidence": None, "retry_can_help": True}
        new_run |= {"status": "failed", "failure": json.dumps(failure), "outcome": None}
    elif number % 1000 == 501:
        new_run |= {"status": "cancelled"}
    if number % 10 == 0:
        new_run["workflow"] = "other"
    if number % 100 == 0:
        new_run["repository"] = "https://git.example.com/team/seldom.git"
    # The database numbers sessions itself.
    del new_session["number"]
    new_usage = shifted(usage, by_ms) | owner | {"id": named("use_", at_ms, number)}
    return {"session": new_session, "run": new_run, "attempt": shifted(attempt, by_ms) | owner, "usage": new_usage}


def insert(database, table, rows):
    names = list(rows[0])
    marks = ", ".join("?" for _ in names)
    statement = f"insert into {table} ({', '.join(names)}) values ({marks})"
    database.executemany(statement, [[row[name] for name in names] for row in rows])


def write_events(database, created_ms, count, events, long):
    def write(oldest, newest, first, last):
        names = {
            name: named("run_", created_ms - (number + 1) * SECOND_MS, number)
            for name, number in [("oldest", oldest), ("newest", newest)]
        }
        with database:
            database.execute(EVENTS, names | {"first": first, "last": last})

    for oldest in range(count - 1, 0, -CHUNK):
        write(oldest, max(oldest - CHUNK + 1, 1), 1, events)
    for first in range(1, long + 1, EVENTS_CHUNK):
        write(0, 0, first, min(first + EVENTS_CHUNK - 1, long))


def main():
    path, key = sys.argv[1:3]
    count, events, long = (int(number) for number in sys.argv[3:6])
    database = sqlite3.connect(path)
    # What was filled is on the disk at the end, and meanwhile nobody else has anything in it.
    for pragma in ["synchronous = off", "cache_size = -262144", "foreign_keys = on"]:
        database.execute(f"pragma {pragma}")
    # Before 3.42 SQLite called no value at all invalid JSON, and this Python's may be older than the server's.
    database.execute("pragma ignore_check_constraints = on")
    run = row(database, "run", key)
    of_run = [row(database, table, key, "run_id") for table in ["attempt", "usage"]]
    templates = [run, row(database, "session", run["session_id"]), *of_run]
    for begin in range(0, count, CHUNK):
        numbers = range(begin, min(begin + CHUNK, count))
        copies = [copy(templates, number, long if number == 0 else events) for number in numbers]
        with database:
            for table in ["session", "run", "attempt", "usage"]:
                insert(database, table, [one[table] for one in copies])
    with database:
        database.execute(KEYS, {"count": API_KEYS})
    # The runs and sessions of all events are there: looking each of them up again takes as long as writing.
    database.execute("pragma foreign_keys = off")
    write_events(database, run["created_at_ms"], count, events, long)
    database.execute("pragma wal_checkpoint(truncate)").fetchall()
    database.close()
    with open(path, "rb") as file:
        os.fsync(file)


main()
