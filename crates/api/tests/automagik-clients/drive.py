"""Drives a published Automagik client, as its users would, against a server; says what it saw, a line for each step.

    drive.py early|first|second|lost BASE_URL      the key comes by the environment, as AMK_KEY

A run whose task says "until it is killed" goes on until it is told to stop; others end by themselves.
"""

import asyncio
import json
import os
import sys

KEY = os.environ["AMK_KEY"]
LONG = "work until it is killed"


def tool(module, name):
    """A tool as it is called by its server."""
    found = getattr(module, name)
    return getattr(found, "fn", found)


def check(step, condition, seen):
    if not condition:
        sys.exit(f"{step}: {seen!r}")
    print(step)


async def until(read, good, step):
    for _ in range(100):
        seen = await read()
        if good(seen):
            check(step, True, seen)
            return seen
        await asyncio.sleep(0.1)
    sys.exit(f"{step}: {seen!r}")


class Watcher:
    """What a client tells the program that uses it."""

    def __init__(self):
        self.told = []

    async def report_progress(self, *args, **kwargs):
        self.told.append(kwargs.get("message") or (args[2] if len(args) > 2 else ""))

    async def elicit(self, *args, **kwargs):
        raise AssertionError("nothing should be asked")

    def info(self, text):
        self.told.append(text)

    warning = error = info


async def early(base):
    """0.3.10: the generic tool, with what it has for claude-code."""
    import automagik_tools.tools.automagik as module
    from automagik_tools.tools.automagik.config import AutomagikConfig

    module.create_server(AutomagikConfig(AUTOMAGIK_API_KEY=KEY, AUTOMAGIK_BASE_URL=base, AUTOMAGIK_ENABLE_MARKDOWN=False))

    async def call(name, *args, **kwargs):
        text = await tool(module, name)(*args, **kwargs)
        return json.loads(text.split("```json\n", 1)[1].split("\n```", 1)[0])

    seen = await call("get_service_info")
    check("service", seen["status"] == "online", seen)
    seen = await call("get_health_status")
    check("health", seen["status"] == "healthy", seen)
    seen = await call("list_agents")
    check("agents", [agent["name"] for agent in seen] == ["claude-code"], seen)
    seen = await call("get_claude_code_health")
    check("workflow health", seen["status"] == "healthy" and seen["workflows"]["bug-fixer"], seen)
    seen = await call("list_claude_code_workflows")
    check("workflows", "bug-fixer" in [workflow["name"] for workflow in seen], seen)
    run = await call("run_claude_code_workflow", "bug-fixer", data={"message": "early"})
    check("run", run["status"] == "pending" and run["session_id"], run)
    seen = await until(
        lambda: call("get_claude_code_run_status", run["run_id"]), lambda seen: seen["status"] == "completed", "follow"
    )
    check("result is a text", seen["result"] == "All done.", seen)
    seen = await call("run_agent", "claude_code", "say hello")
    check("agent", seen["success"] and seen["message"] == "All done.", seen)
    run = await call("run_agent_async", "claude_code", "say hello again")
    await until(lambda: call("get_run_status", run["run_id"]), lambda seen: seen["status"] == "completed", "agent run")
    seen = await call("list_sessions", page=1, page_size=2, sort_desc=True)
    check("sessions", len(seen["sessions"]) == 2 and seen["total"] == 3, seen)
    seen = await call("get_session_history", seen["sessions"][0]["session_id"])
    check("history", {message["role"] for message in seen["messages"]} == {"user", "assistant"}, seen)
    user = await call("create_user", data={"email": "a@example.com"})
    seen = await call("update_user", "a@example.com", data={"user_data": {"x": 1}})
    check("user", seen["id"] == user["id"] and seen["user_data"] == {"x": 1}, seen)
    seen = await call("list_users", page=1)
    check("users", len(seen["users"]) == 1, seen)
    seen = await call("delete_user", user["id"])
    check("user removed", seen["success"], seen)
    seen = await call("run_claude_code_workflow", "no-such", data={"message": "x"})
    check("unknown workflow", "404" in seen["error"], seen)


async def first(base):
    """0.9.1, the first generation of its workflow clients."""
    import automagik_tools.tools.automagik_workflows as module
    from automagik_tools.tools.automagik_workflows.config import AutomagikWorkflowsConfig

    module.create_server(AutomagikWorkflowsConfig(AUTOMAGIK_WORKFLOWS_API_KEY=KEY, AUTOMAGIK_WORKFLOWS_BASE_URL=base))
    seen = await tool(module, "list_workflows")()
    check("workflows", {"bug-fixer", "surgeon"} <= {workflow["name"] for workflow in seen}, seen)
    seen = await tool(module, "get_health_status")(ctx=Watcher())
    check("health", seen["status"] == "healthy", seen)
    run = await tool(module, "run_workflow")("surgeon", "first", session_name="epic", ctx=Watcher())
    check("run", run["status"] == "pending" and run["session_id"], run)
    status = tool(module, "get_workflow_status")
    watcher = Watcher()
    await until(lambda: status(run["run_id"], ctx=watcher), lambda seen: seen.get("status") == "completed", "follow")
    seen = await status(run["run_id"], ctx=watcher)
    check("status", seen["workflow_name"] == "surgeon" and seen["result"]["success"], seen)
    long = await tool(module, "run_workflow")("surgeon", LONG)
    await until(lambda: status(long["run_id"]), lambda seen: seen["status"] == "running", "running")
    seen = await tool(module, "kill_workflow")(long["run_id"], force=True, ctx=Watcher())
    check("kill", seen["status"] == "killed" and seen["cleanup_status"]["process_terminated"], seen)
    seen = await tool(module, "list_recent_runs")(page_size=1, detailed=True, ctx=Watcher())
    check("list", seen["pagination"]["has_next"] and seen["runs"][0]["status"] == "killed", seen)
    seen = await tool(module, "list_recent_runs")(status="completed", workflow_name="surgeon")
    check("filters", [one["run_id"] for one in seen["runs"]] == [run["run_id"]], seen)
    seen = await tool(module, "list_runs_by_status")("killed", ctx=Watcher())
    check("by status", [one["run_id"] for one in seen] == [long["run_id"]], seen)
    seen = await tool(module, "list_runs_by_workflow")("surgeon", ctx=Watcher())
    check("by workflow", len(seen) == 2, seen)
    seen = await tool(module, "list_runs_by_time_range")("2020-01-01T00:00:00Z", "2100-01-01T00:00:00Z", ctx=Watcher())
    check("by time", len(seen) == 2 and "error" not in seen[0], seen)
    seen = await tool(module, "run_workflow")("no-such", "x")
    check("unknown workflow", seen["status"] == "error" and "not found" in seen["error"], seen)


def second_client(base, **more):
    from automagik_tools.tools.automagik_workflows_v2 import server as module
    from automagik_tools.tools.automagik_workflows_v2.config import AutomagikWorkflowsV2Config

    names = {"AUTOMAGIK_WORKFLOWS_V2_API_KEY": KEY, "AUTOMAGIK_WORKFLOWS_V2_USER_ID": "nobody"}
    module.create_server(AutomagikWorkflowsV2Config(api_base_url=base + "/automagik-v2", polling_interval=1, **names, **more))
    return module


async def second(base):
    """0.9.1, the second generation."""
    module = second_client(base)
    from automagik_tools.tools.automagik_workflows_v2.models import WorkflowMode, WorkflowName, WorkflowRequest

    watcher = Watcher()
    orchestrate = tool(module, "orchestrate_workflow")
    wish = {"workflow_name": WorkflowName.SURGEON, "epic_name": "epic", "mode": WorkflowMode.RESEARCH, "max_turns": 5}
    run = await orchestrate(watcher, "second", **wish)
    check("run and follow", run.get("final_status") == "completed" and run["completed_at"], run)
    check("progress", any(text.startswith("Turn ") for text in watcher.told), watcher.told)
    on = await orchestrate(Watcher(), "go on", session_id=run["session_id"], **wish)
    check("continue", on.get("final_status") == "completed" and on["session_id"] == run["session_id"], on)
    seen = await tool(module, "get_workflow_health")(Watcher())
    check("health", seen["status"] == "success" and seen["client_healthy"], seen)
    client = module.client
    request = WorkflowRequest(message=LONG, workflow_name=WorkflowName.SURGEON)
    long = await client.run_workflow(request)
    await until(lambda: client.get_workflow_status(long.run_id), lambda seen: seen.status.value == "running", "running")
    seen = await tool(module, "send_workflow_feedback")(Watcher(), long.run_id, "Mind the tests.")
    check("feedback", seen["status"] == "success" and seen["result"]["queue_stats"]["total_added"] == 1, seen)
    seen = await client.kill_workflow(long.run_id)
    check("kill", seen["success"] and seen["status"] == "cancelled", seen)
    seen = await client.get_workflow_status(long.run_id)
    check("killed", seen.status.value == "cancelled" and seen.completed_at is not None, seen)
    seen = await client.list_workflow_runs()
    check("list", seen.total == 3 and [one.status.value for one in seen.runs] == ["cancelled", "completed", "completed"], seen)
    seen = await tool(module, "get_session_info")(Watcher(), session_id=run["session_id"])
    check("session", seen["session"]["max_turns"] == 5 and "error" not in seen["session"], seen)
    seen = await tool(module, "get_session_info")(Watcher(), epic_name="epic")
    check("epic", seen["count"] >= 1, seen)
    seen = await tool(module, "clear_workflow_session")(Watcher(), long.run_id)
    check("clear", seen["status"] == "success", seen)


async def lost(base):
    """The second generation behind a connection that loses the first two answers: it sends again, and one run starts."""
    host, port = base.removeprefix("http://").split(":")
    posts = []

    async def carry(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        body = await reader.readexactly(int(length[0].split(b":")[1]) if length else 0)
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        up_writer.write(b"\r\n".join(lines[:1] + [b"connection: close"] + lines[1:]) + body)
        answer = await up_reader.read(-1)
        up_writer.close()
        post = head.startswith(b"POST")
        if post:
            posts.append(body)
        if not post or len(posts) > 2:
            writer.write(answer)
        writer.close()

    proxy = await asyncio.start_server(carry, "127.0.0.1", 0)
    through = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    module = second_client(through)
    from automagik_tools.tools.automagik_workflows_v2.models import WorkflowName, WorkflowRequest

    run = await module.client.run_workflow(WorkflowRequest(message="lost", workflow_name=WorkflowName.SURGEON))
    check("sent three times, the same", len(posts) == 3 and len(set(posts)) == 1, posts)
    seen = await module.client.list_workflow_runs()
    check("one run", [one.run_id for one in seen.runs] == [run.run_id], seen)


if __name__ == "__main__":
    asyncio.run({"early": early, "first": first, "second": second, "lost": lost}[sys.argv[1]](sys.argv[2]))
