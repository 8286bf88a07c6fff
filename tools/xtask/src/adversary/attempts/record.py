"""Ways to change what was done, what it cost, or what others did: with the shim's own grant, as if it had been stolen."""

import json
from urllib.parse import quote

from door_calls import Refusal, authority, own_grant, passed, send
from egress import ask, tunnel
from pushes import line, received


def journal(grant):
    """Where the journal ends. Whoever is not told so has not come to the attempt, which is no refusal of it."""
    told = send("GET /journal HTTP/1.1", authority(grant))
    try:
        passed(told)
    except Refusal as refusal:
        raise Refusal("UNPREPARED", str(refusal)) from None
    return json.loads(told[1])["acknowledged"]


def append(grant, offset, **record):
    body = json.dumps(record).encode() + b"\n"
    return passed(send(f"POST /journal?offset={offset} HTTP/1.1", [*authority(grant), ("Content-Length", len(body))], body))


def append_at_the_end(grant, **record):
    """The same where the journal ends, and again where the shim was faster."""
    for _ in range(20):
        try:
            return append(grant, journal(grant), **record)
        except Refusal as refusal:
            if refusal.word != "HTTP409":
                raise
            last = refusal
    raise last


def rewrite_what_is_acknowledged(own_control_grant, own_run, token):
    return append(own_control_grant, 0, run=own_run, attempt=1, kind="note", data={"level": "info", "message": token})


def entry_of_another_run(own_control_grant, sibling_run, token):
    data = {"level": "info", "message": token}
    return append_at_the_end(own_control_grant, run=sibling_run, attempt=1, kind="note", data=data)


def claim_of_a_push(own_control_grant, own_run):
    outcome = {"ending": {"kind": "completed"}, "result": "Done.", "head": "5" * 40, "pushed": True}
    return append_at_the_end(own_control_grant, run=own_run, attempt=1, kind="finished", data=outcome)


def false_usage(own_control_grant, own_run, cost, tokens):
    """The agent's own last word of what it has cost, as if the shim had sent it."""
    usage = {"input_tokens": 1, "output_tokens": int(tokens)}
    line = {"type": "result", "subtype": "success", "is_error": False, "total_cost_usd": int(cost), "usage": usage, "result": "Done."}
    return append_at_the_end(own_control_grant, run=own_run, attempt=1, kind="line", data={"line": json.dumps(line)})


def audit_log(own_control_grant, own_run, denied, behind, token):
    """Whatever could change what is recorded: requests by odd and by very long names before and behind one that has to be recorded,
    more of them than are told by name before another one that has to be, entries that are called as records are, and a note."""
    told = []

    def tried(what, call, *arguments, **fields):
        try:
            told.append(f"{what}: {call(*arguments, **fields)}")
        except (Refusal, OSError, ValueError) as error:
            told.append(f"{what}: {getattr(error, 'word', error)}")

    odd = ["\0", "\r\nX-A: b", "\n", "\t", "\x1b[2J", "%00", "%0a", "\u202e", "'; drop table audit; --", "a" * 300, "a" * 60_000]
    for name in odd:
        tried("tunnel", tunnel, f"{token}{name}.example:443", token)
        tried("request", ask, "GET", f"http://{token}{name}.example/{name}", denied)
    tried("denied", ask, "GET", f"http://{denied}/{token}", denied)
    for number in range(300):
        tried("many", ask, "GET", f"http://n{number}.example/", f"n{number}.example")
        tried("many", tunnel, f"n{number}.example:443", token)
    tried("behind", tunnel, behind, token)
    for name in odd:
        ref = f"refs/heads/{token}{name}".encode()
        body = line(b"0" * 40 + b" " + b"1" * 40 + b" " + ref + b"\0 report-status\n") if len(ref) < 60_000 else b"ffff" + ref
        tried("push", received, body + b"0000")
    for name in odd:
        tried("server", send, f"POST /mcp/{quote(token + name)} HTTP/1.1", [*authority(own_grant()), ("Content-Length", 0)])
    for kind in ["audit", "audit.record", "key.revoke", "credential.use", "git.push", "gateway.denied"]:
        record = {"action": kind, "subject": token, "actor": "operator", "number": 1, "seq": 1, "prev_hash": "0" * 64}
        tried(kind, lambda: append_at_the_end(own_control_grant, run=own_run, attempt=1, kind=kind, data=record))
    data = {"level": "info", "message": token}
    tried("note", lambda: append_at_the_end(own_control_grant, run=own_run, attempt=1, kind="note", data=data))
    return " ".join("; ".join(told[-12:]).split())


def keep(grant, run, name):
    return passed(send(f"PUT /artifacts/{run}/{name} HTTP/1.1", [*authority(grant), ("Content-Length", 1)], b"x"))


def artifact_of_another_run(own_control_grant, sibling_run, token):
    return keep(own_control_grant, sibling_run, token)


def artifact_that_leaves_its_place(own_control_grant, own_run, token):
    return keep(own_control_grant, own_run, f"..%2f..%2f{token}")
