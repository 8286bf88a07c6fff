"""What Schemathesis does not know of this API by itself: the key of the pass, and what a key that may only read must not do."""

import os

import schemathesis

PASS = os.environ["API_FUZZ_PASS"]
# Paths that a key with the scope runs:read does not open, whatever the method.
CLOSED = ("/v1/keys", "/v1/credentials", "/v1/audit")


@schemathesis.auth()
class Key:
    def get(self, case, context):
        return os.environ["API_FUZZ_KEY"]

    def set(self, case, data, context):
        case.headers = case.headers or {}
        case.headers["Authorization"] = f"Bearer {data}"


@schemathesis.check
def a_reader_changes_nothing(context, response, case):
    """With a key that may only read, nothing is written and nothing of the operators' is shown."""
    closed = case.operation.path.startswith(CLOSED) or case.method.upper() not in ("GET", "HEAD", "OPTIONS", "TRACE")
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
