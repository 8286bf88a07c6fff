#!/usr/bin/python3
"""Fills a server's SQLite database with runs that have ended: copies of one that really ran, each in a session of its own.

usage: fill.py DATABASE RUN COUNT

Every column is taken over from the template but for ids, times and what lists filter by, so that nothing here has to know
the other columns. The copies are older than the template, one second apart. Of each thousand, 20 failed and one was
cancelled; one of ten follows another workflow, and one of a hundred has a repository of its own.
"""
import json
import sqlite3
import sys

SECOND_MS = 1000
CHUNK = 5000


def row(database, table, key):
    cursor = database.execute(f"select * from {table} where id = ?", (key,))
    return dict(zip([column[0] for column in cursor.description], cursor.fetchone()))


def named(prefix, at_ms, number):
    # A UUID of version 7, as the server makes them; the number takes the place of its random bits.
    return f"{prefix}{at_ms:012x}7000{0x8000:04x}{number:012x}"


def shifted(columns, by_ms):
    moved = {name: value - by_ms for name, value in columns.items() if name.endswith("_at_ms") and value is not None}
    return {**columns, **moved}


def copy(run, session, number):
    by_ms = (number + 1) * SECOND_MS
    at_ms = run["created_at_ms"] - by_ms
    new_session = shifted(session, by_ms) | {"id": named("ses_", at_ms, number)}
    new_run = shifted(run, by_ms) | {"id": named("run_", at_ms, number), "session_id": new_session["id"]}
    new_run["sandbox_id"] = None
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
    return new_run, new_session


def insert(database, table, rows):
    names = list(rows[0])
    marks = ", ".join("?" for _ in names)
    statement = f"insert into {table} ({', '.join(names)}) values ({marks})"
    database.executemany(statement, [[row[name] for name in names] for row in rows])


def main():
    path, key, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    database = sqlite3.connect(path)
    database.execute("pragma foreign_keys = on")
    # Before 3.42 SQLite called no value at all invalid JSON, and this Python's may be older than the server's.
    database.execute("pragma ignore_check_constraints = on")
    run = row(database, "run", key)
    session = row(database, "session", run["session_id"])
    for begin in range(0, count, CHUNK):
        copies = [copy(run, session, number) for number in range(begin, min(begin + CHUNK, count))]
        with database:
            insert(database, "session", [new_session for _, new_session in copies])
            insert(database, "run", [new_run for new_run, _ in copies])
    database.close()


main()
