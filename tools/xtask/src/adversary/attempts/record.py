"""Ways to change what was done, what it cost, or what others did: with the shim's own grant, as if it had been stolen."""

import json

from door_calls import authority, passed, send


def journal(grant):
    told = send("GET /journal HTTP/1.1", authority(grant))
    passed(told)
    return json.loads(told[1])["acknowledged"]


def append(grant, offset, **record):
    body = json.dumps(record).encode() + b"\n"
    return passed(send(f"POST /journal?offset={offset} HTTP/1.1", [*authority(grant), ("Content-Length", len(body))], body))


def rewrite_what_is_acknowledged(own_control_grant, own_run, token):
    return append(own_control_grant, 0, run=own_run, attempt=1, kind="note", data={"level": "info", "message": token})


def entry_of_another_run(own_control_grant, sibling_run, token):
    data = {"level": "info", "message": token}
    return append(own_control_grant, journal(own_control_grant), run=sibling_run, attempt=1, kind="note", data=data)


def claim_of_a_push(own_control_grant, own_run):
    outcome = {"ending": {"kind": "completed"}, "result": "Done.", "head": "5" * 40, "pushed": True}
    return append(own_control_grant, journal(own_control_grant), run=own_run, attempt=1, kind="finished", data=outcome)


def artifact_of_another_run(own_control_grant, sibling_run):
    return passed(send(f"PUT /artifacts/{sibling_run}/forged HTTP/1.1", [*authority(own_control_grant), ("Content-Length", 1)], b"x"))


def artifact_that_leaves_its_place(own_control_grant, own_run):
    return passed(send(f"PUT /artifacts/{own_run}/..%2f..%2fforged HTTP/1.1", [*authority(own_control_grant), ("Content-Length", 1)], b"x"))
