"""Drives a published Automagik client against a server that does the work: a real sandbox, the agent and a git host.

    live.py early|first|second|lost BASE_URL REPOSITORY      the key comes by the environment, as AMK_KEY

A task that names the scenario `half-done` goes on until it is told to stop; others end by themselves.
"""

import asyncio
import json
import sys

from drive import KEY, Watcher, check, second_client, tool

TASK = "The test suite fails. Fix the bug."
LONG = "[[scn:half-done]] " + TASK


async def until(read, good, step):
    """Asks as its users' programs do, for as long as a run with a sandbox may take on a loaded machine."""
    for _ in range(600):
        seen = await read()
        if good(seen):
            check(step, True, seen)
            return seen
        await asyncio.sleep(0.2)
    sys.exit(f"{step}: {seen!r}")


async def early(base, repository):
    """0.3.10: the generic tool. It has no list of runs and cannot kill one, but it lists workflows and sessions."""
    import automagik_tools.tools.automagik as module
    from automagik_tools.tools.automagik.config import AutomagikConfig

    module.create_server(AutomagikConfig(AUTOMAGIK_API_KEY=KEY, AUTOMAGIK_BASE_URL=base, AUTOMAGIK_ENABLE_MARKDOWN=False))

    async def call(name, *args, **kwargs):
        text = await tool(module, name)(*args, **kwargs)
        return json.loads(text.split("```json\n", 1)[1].split("\n```", 1)[0])

    seen = await call("get_claude_code_health")
    check("health", seen["status"] == "healthy" and seen["workflows"]["bug-fixer"], seen)
    seen = await call("list_claude_code_workflows")
    check("workflows", {"bug-fixer", "code-task", "pr-reviewer"} <= {workflow["name"] for workflow in seen}, seen)
    data = {"message": TASK, "repository_url": repository, "git_branch": "main", "max_turns": 50}
    run = await call("run_claude_code_workflow", "bug-fixer", data=data)
    check("run", run["status"] == "pending" and run["session_id"], run)
    ended = ("completed", "failed")
    seen = await until(lambda: call("get_claude_code_run_status", run["run_id"]), lambda seen: seen["status"] in ended, "follow")
    check("completed", seen["status"] == "completed" and "All ten tests pass" in seen["result"], seen)
    check("commit", len(seen["git_commits"]) == 1 and seen["exit_code"] == 0, seen)
    seen = await call("list_sessions")
    check("sessions", [one["session_id"] for one in seen["sessions"]] == [run["session_id"]], seen)
    seen = await call("get_session_history", run["session_id"])
    check("history", any("All ten tests pass" in message["content"] for message in seen["messages"]), seen)


def first_client(base):
    import automagik_tools.tools.automagik_workflows as module
    from automagik_tools.tools.automagik_workflows.config import AutomagikWorkflowsConfig

    module.create_server(AutomagikWorkflowsConfig(AUTOMAGIK_WORKFLOWS_API_KEY=KEY, AUTOMAGIK_WORKFLOWS_BASE_URL=base))
    return module


async def first(base, repository):
    """0.9.1, the first generation of its workflow clients."""
    module = first_client(base)
    seen = await tool(module, "list_workflows")()
    check("workflows", {"bug-fixer", "surgeon", "pr-reviewer"} <= {workflow["name"] for workflow in seen}, seen)
    start, status = tool(module, "run_workflow"), tool(module, "get_workflow_status")
    where = {"repository_url": repository, "git_branch": "main"}
    run = await start("surgeon", TASK, session_name="epic", ctx=Watcher(), **where)
    check("run", run["status"] == "pending" and run["session_id"], run)
    watcher = Watcher()
    ended = ("completed", "failed")
    seen = await until(lambda: status(run["run_id"], ctx=watcher), lambda seen: seen["status"] in ended, "follow")
    check("completed", seen["status"] == "completed" and seen["result"]["success"], seen)
    check("commit", len(seen["result"]["git_commits"]) == 1 and seen["metrics"]["cost_usd"] > 0, seen)
    long = await start("surgeon", LONG, **where)
    # Its second model call is the one whose tool does not end.
    await until(lambda: status(long["run_id"]), lambda seen: seen["status"] == "running" and seen["turns"] >= 2, "running")
    seen = await tool(module, "kill_workflow")(long["run_id"], ctx=Watcher())
    check("kill", seen["status"] == "killed" and seen["cleanup_status"]["process_terminated"], seen)
    seen = await tool(module, "list_recent_runs")(page_size=10, detailed=True, ctx=Watcher())
    told = {one["run_id"]: one["status"] for one in seen["runs"]}
    check("list", told == {run["run_id"]: "completed", long["run_id"]: "killed"}, seen)
    seen = await tool(module, "list_runs_by_status")("killed", ctx=Watcher())
    check("by status", [one["run_id"] for one in seen] == [long["run_id"]], seen)


async def second(base, repository):
    """0.9.1, the second generation."""
    module = second_client(base)
    from automagik_tools.tools.automagik_workflows_v2.models import WorkflowMode, WorkflowName, WorkflowRequest

    where = {"repository_url": repository, "git_branch": "main"}
    wish = {"workflow_name": WorkflowName.SURGEON, "epic_name": "epic", "mode": WorkflowMode.CODE, "max_turns": 50}
    watcher = Watcher()
    run = await tool(module, "orchestrate_workflow")(watcher, TASK, **where, **wish)
    check("run and follow", run.get("final_status") == "completed" and run["completed_at"], run)
    check("progress", any(text.startswith("Turn ") for text in watcher.told), watcher.told)
    client = module.client
    long = await client.run_workflow(WorkflowRequest(message=LONG, workflow_name=WorkflowName.SURGEON, **where))

    def works(seen):
        return seen.status.value == "running" and seen.current_turn >= 2

    await until(lambda: client.get_workflow_status(long.run_id), works, "running")
    seen = await client.kill_workflow(long.run_id)
    check("kill", seen["success"] and seen["status"] == "cancelled", seen)
    seen = await client.list_workflow_runs()
    told = {one.run_id: one.status.value for one in seen.runs}
    check("list", told == {run["run_id"]: "completed", long.run_id: "cancelled"}, seen)


class Loses:
    """A connection that carries what is asked, and loses the first two answers to a POST: it closes, or says 502."""

    def __init__(self, base, instead):
        self.host, self.port = base.removeprefix("http://").split(":")
        self.instead = instead
        self.posts = []

    async def start(self):
        proxy = await asyncio.start_server(self.carry, "127.0.0.1", 0)
        return f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"

    async def carry(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        body = await reader.readexactly(int(length[0].split(b":")[1]) if length else 0)
        up_reader, up_writer = await asyncio.open_connection(self.host, int(self.port))
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        up_writer.write(b"\r\n".join(lines[:1] + [b"connection: close"] + lines[1:]) + body)
        answer = await up_reader.read(-1)
        up_writer.close()
        if head.startswith(b"POST"):
            self.posts.append((head.split(b" ")[1], body))
        lost = head.startswith(b"POST") and len(self.posts) <= 2
        writer.write(self.instead if lost else answer)
        writer.close()


async def lost(base, repository):
    """Both generations send again what they got no answer to, each in its own way, and each starts one run."""
    where = {"repository_url": repository, "git_branch": "main"}
    behind = Loses(base, b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    module = first_client(await behind.start())
    run = await tool(module, "run_workflow")("surgeon", TASK, **where)
    check("the first sent three times, the same", len(behind.posts) == 3 and len(set(behind.posts)) == 1, behind.posts)

    behind = Loses(base, b"")
    module = second_client(await behind.start())
    from automagik_tools.tools.automagik_workflows_v2.models import WorkflowName, WorkflowRequest

    other = await module.client.run_workflow(WorkflowRequest(message=TASK, workflow_name=WorkflowName.SURGEON, **where))
    check("the second sent three times, the same", len(behind.posts) == 3 and len(set(behind.posts)) == 1, behind.posts)
    ended = ("completed", "failed", "cancelled")
    for one in (run["run_id"], other.run_id):
        seen = await until(lambda: module.client.get_workflow_status(one), lambda seen: seen.status.value in ended, "follow")
        check("completed", seen.status.value == "completed", seen)
    seen = await module.client.list_workflow_runs()
    check("two runs", {one.run_id for one in seen.runs} == {run["run_id"], other.run_id} and seen.total == 2, seen)


if __name__ == "__main__":
    asyncio.run({"early": early, "first": first, "second": second, "lost": lost}[sys.argv[1]](*sys.argv[2:4]))
