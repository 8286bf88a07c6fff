"""What Schemathesis does not know of this API by itself: the key of the pass, what a key that may only read must not do, and what
is there and would be accepted."""

import itertools
import os
from collections import defaultdict

import schemathesis
from schemathesis import GenerationMode

PASS = os.environ["API_FUZZ_PASS"]
RUN, SESSION = os.environ["API_FUZZ_RUN"], os.environ["API_FUZZ_SESSION"]
CREDENTIAL, MESSAGE = os.environ["API_FUZZ_CREDENTIAL"], os.environ["API_FUZZ_MESSAGE"]
REPOSITORY = os.environ["API_FUZZ_REPOSITORY"]
# Paths that a key with the scope runs:read does not open, whatever the method.
CLOSED = ("/v1/keys", "/v1/credentials", "/v1/audit")


@schemathesis.auth()
class Key:
    def get(self, case, context):
        return os.environ["API_FUZZ_KEY"]

    def set(self, case, data, context):
        case.headers = case.headers or {}
        case.headers["Authorization"] = f"Bearer {data}"


_names = map("fuzzed-{}".format, itertools.count())


def of_run(**path):
    return {"id": RUN, **path}, []


def start():
    return {"message": "hello", "session_name": next(_names)}


# What is there for an operation's path, and bodies that it accepts: no schema says which name is taken, or what a kind of
# credential wants. A body is made anew for each case.
KNOWN = {
    "create_run": ({}, [
        lambda: {"workflow": "bug-fixer", "prompt": "hello", "repository": None},
        lambda: {"workflow": "bug-fixer", "prompt": "hello", "repository": REPOSITORY, "max_turns": 3, "delay_s": 1},
    ]),
    "add_credential": ({}, [
        lambda: {"name": next(_names), "kind": "git_token", "settings": {"url_prefix": "https://git.example/"}, "secret": {"value": "a-token-of-the-fuzzer"}},
        lambda: {"name": next(_names), "kind": "registry_token", "settings": {"host": "https://npm.example"}, "secret": {"value": "a-token-of-the-fuzzer"}},
    ]),
    "rotate_credential": ({"id": CREDENTIAL}, [lambda: {"secret": {"value": "a-newer-token-of-the-fuzzer"}}]),
    "put_workflow": ({"name": "fuzzed"}, [
        lambda: {"text": "---\nname: fuzzed\ndescription: Says hello.\n---\nSay hello.\n"},
        lambda: {"text": "---\nname: fuzzed\ndescription: Says hello again.\nmodel: sonnet\n---\nSay it again.\n"},
    ]),
    "remove_workflow": ({"name": "fuzzed"}, []),
    "delete_session": ({"id": os.environ["API_FUZZ_SPARE_SESSION"]}, []),
    "fork_session": ({"id": SESSION}, [dict, lambda: {"branch": next(_names)}]),
    "list_approvals": of_run(),
    "get_attachment": of_run(number=0),
    "mcp": ({}, [
        lambda: {"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
        lambda: {"jsonrpc": "2.0", "id": "a", "method": "initialize", "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "f", "version": "1"}}},
        lambda: {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "submit", "arguments": {"workflow": "bug-fixer", "prompt": "hello"}}},
        lambda: {"jsonrpc": "2.0", "method": "notifications/initialized"},
    ]),
    "automagik_start_run": ({"id": "bug-fixer"}, [start]),
    "automagik_start_workflow": ({"id": "bug-fixer"}, [start]),
    "automagik_run_agent_async": ({"id": "claude_code"}, [lambda: {"message_content": "hello", "session_name": next(_names)}]),
    "automagik_get_agent": ({"id": "claude-code"}, []),
    "automagik_get_session": ({"id": SESSION}, []),
    "automagik_get_message": ({"id": MESSAGE}, []),
    **{
        f"automagik_{name}": of_run()
        for name in ("agent_run_status", "enhanced_status", "message_queue", "run_status", "kill_run", "clean_up")
    },
}
# What must stay, since others look at it: one of the same kind goes in its place.
SPARED = {
    "remove_credential": (CREDENTIAL, os.environ["API_FUZZ_SPARE_CREDENTIAL"]),
    "delete_session": (SESSION, os.environ["API_FUZZ_SPARE_SESSION"]),
}
_turns = defaultdict(itertools.count)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Turns two of three good cases of an operation to what is there, and half of them into ones that are accepted; what is generated
    alone would be refused before it is looked at."""
    operation = case.operation.definition.raw.get("operationId")
    if operation in SPARED and (case.path_parameters or {}).get("id") == SPARED[operation][0]:
        case.path_parameters["id"] = SPARED[operation][1]
    if operation not in KNOWN or case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    path, bodies = KNOWN[operation]
    turn = next(_turns[operation])
    if path and turn % 3 != 2:
        case.path_parameters.update(path)
    if turn % 2 == 0 and case.query:
        # Nobody can guess one.
        case.query.pop("cursor", None)
    if bodies and turn % 2 == 0:
        # Of the protocol's versions, which are in a pattern, the generator finds none.
        case.headers.pop("Mcp-Protocol-Version", None)
        case.body = bodies[turn // 2 % len(bodies)]()


def is_refused(answer):
    return "error" in answer or answer["result"].get("isError", False)


@schemathesis.check
def a_reader_changes_nothing(context, response, case):
    """With a key that may only read, nothing is written and nothing of the operators' is shown."""
    closed = case.operation.path.startswith(CLOSED) or case.method.upper() not in ("GET", "HEAD", "OPTIONS", "TRACE")
    if case.operation.path == "/mcp":
        # Every key may ask which tools there are; what a tool refuses, it says within an answer.
        is_call = isinstance(case.body, dict) and case.body.get("method") == "tools/call"
        closed = is_call and response.status_code == 200 and not is_refused(response.json())
    assert PASS != "reader" or not closed or response.status_code >= 400, (
        f"{case.method} {case.operation.path} answered {response.status_code} to a key that may only read"
    )


@schemathesis.check
def a_refusal_is_a_problem_document(context, response, case):
    """Whatever is refused says so by RFC 9457 with a code, and answers of the server name no cause but a request id.
    The Automagik-compatible API has what its clients read instead, with the same code and id."""
    if response.status_code < 400 or case.method.upper() == "HEAD":
        return
    kind = response.headers.get("content-type", [""])[0]
    if case.operation.path.startswith("/api/v1/"):
        assert kind == "application/json", f"{response.status_code} came as {kind!r}"
        refused = response.json()
        assert refused["detail"] and refused["code"] and refused["request_id"], refused
        return
    assert kind.startswith("application/problem+json"), f"{response.status_code} came as {kind!r}"
    problem = response.json()
    assert problem["status"] == response.status_code and problem["code"] and problem["request_id"], problem
