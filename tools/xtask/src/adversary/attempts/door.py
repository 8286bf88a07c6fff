"""Ways through the sandbox's own door with a grant that is not for it."""

import json

from door_calls import authority, own_grant, passed, send

CALL = json.dumps({"model": "claude-sonnet-4-5", "max_tokens": 16, "messages": [{"role": "user", "content": "[[scn:stray]] Hello."}]}).encode()


def model_call(headers):
    return passed(send("POST /model/v1/messages HTTP/1.1", [*headers, ("Content-Type", "application/json"), ("Content-Length", len(CALL))], CALL))


def model_without_grant():
    return model_call([("Host", "caisson")])


def model_with_siblings_grant(sibling_grant):
    return model_call(authority(sibling_grant))


def model_with_made_up_grant():
    return model_call(authority("csa_" + "a" * 43))


def model_with_control_grant(own_control_grant):
    return model_call(authority(own_control_grant))


def repository_without_grant():
    return passed(send("GET /git/origin/info/refs?service=git-upload-pack HTTP/1.1", [("Host", "caisson")]))


def repository_with_siblings_grant(sibling_grant):
    return passed(send("GET /git/origin/info/refs?service=git-upload-pack HTTP/1.1", authority(sibling_grant)))


def outside_without_grant(web):
    return passed(send(f"GET http://{web}/ok HTTP/1.1", [("Host", web)]))


def journal_with_agents_grant():
    return passed(send("GET /journal HTTP/1.1", authority(own_grant())))


def journal_written_with_agents_grant():
    """An empty piece, where the journal ends: nothing is lost by it, and it is a write all the same."""
    headers = authority(own_grant())
    ends = send("GET /journal HTTP/1.1", headers)
    passed(ends)
    offset = json.loads(ends[1])["acknowledged"]
    return passed(send(f"POST /journal?offset={offset} HTTP/1.1", [*headers, ("Content-Length", 0)]))


def artifact_with_agents_grant(own_run):
    return passed(send(f"PUT /artifacts/{own_run}/forged HTTP/1.1", [*authority(own_grant()), ("Content-Length", 1)], b"x"))


def live_text_with_agents_grant(own_run):
    body = json.dumps({"run": own_run, "items": [{"kind": "text", "text": "forged"}]}).encode()
    return passed(send("POST /deltas HTTP/1.1", [*authority(own_grant()), ("Content-Length", len(body))], body))
