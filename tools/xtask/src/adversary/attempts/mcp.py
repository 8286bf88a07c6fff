"""Ways to MCP servers that are not for this run. TOKEN is what a listener outside waits for."""

from door_calls import authority, own_grant, passed, send


def post(path, token, headers=None):
    fields = headers if headers is not None else authority(own_grant())
    return passed(send(f"POST {path} HTTP/1.1", [*fields, ("Content-Length", len(token))], token.encode()))


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
