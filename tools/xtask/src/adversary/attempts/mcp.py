"""Ways to MCP servers that are not for this run. TOKEN is what a listener outside waits for."""

import json

from door_calls import authority, own_grant, passed, send


def post_text(path, text, headers=None):
    fields = headers if headers is not None else authority(own_grant())
    return passed(send(f"POST {path} HTTP/1.1", [*fields, ("Content-Length", len(text))], text.encode()))


def call_of_tool(name, token):
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": {"word": token}}}
    return json.dumps(message)


def post(path, token, headers=None):
    return post_text(path, call_of_tool("list", token), headers)


def denied_tool(token):
    return post_text("/mcp/notes", call_of_tool("delete", token))


def denied_tool_by_a_second_name(token):
    twice = call_of_tool("list", token).replace('"name": "list"', '"name": "list", "Name": "delete"')
    return post_text("/mcp/notes", twice)


def another_workflows_server(token):
    return post("/mcp/secret", token)


def denied_host(token):
    return post("/mcp/denied", token)


def private_address_by_name(token):
    return post("/mcp/private", token)


def below_its_url(token):
    return post("/mcp/notes/admin", token)


def path_that_leaves(token):
    return post("/mcp/notes/../secret", token)


def with_a_query(token):
    return post("/mcp/notes?to=secret", token)


def without_grant(token):
    return post("/mcp/notes", token, [("Host", "caisson")])


def with_siblings_grant(token, sibling_grant):
    return post("/mcp/notes", token, authority(sibling_grant))
