#!/usr/bin/python3
"""Stands in for the agent where the time from its standard output to a reader is measured.

The agent stamps its lines when it makes them and prints them some time later. This prints lines of the same form, each
stamped right before it is written. The prompt says how many and how far apart: {"lines": 250, "pace_ms": 20}; and
how many pieces of live text come before each, and how far apart those are: {"deltas": 200, "delta_pace_ms": 20}.
"""
import json
import sys
import time

TEXT = "A line of about the length that an agent's lines have. " * 6


def say(line):
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def stamped(number, session):
    content = [{"type": "text", "text": TEXT}]
    message = {"id": f"msg_{number}", "type": "message", "role": "assistant", "content": content}
    line = {"type": "assistant", "message": message, "session_id": session, "uuid": f"line-{number}"}
    head = json.dumps(line)[:-1] + ', "stamp_ns": '
    sys.stdout.write(head + str(time.time_ns()) + "}\n")
    sys.stdout.flush()


def live(number, session):
    event = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f"word-{number} "}}
    say({"type": "stream_event", "event": event, "session_id": session, "parent_tool_use_id": None, "uuid": "d"})


def turn(prompt, session):
    wanted = json.loads(prompt["message"]["content"][0]["text"])
    uuid = prompt.get("uuid", "")
    say({"type": "command_lifecycle", "command_uuid": uuid, "state": "started", "session_id": session, "uuid": "a"})
    say({"type": "system", "subtype": "init", "session_id": session, "uuid": "b"})
    for number in range(wanted["lines"]):
        for piece in range(wanted.get("deltas", 0)):
            time.sleep(wanted["delta_pace_ms"] / 1000)
            live(piece, session)
        time.sleep(wanted["pace_ms"] / 1000)
        stamped(number, session)
    say({"type": "result", "subtype": "success", "is_error": False, "terminal_reason": "completed", "result": "Done.",
         "num_turns": 1, "result_index": 0, "queued_turn_count": 0, "user_message_uuids": [uuid],
         "session_id": session, "uuid": "c"})


def main():
    session = next((flag.split("=", 1)[1] for flag in sys.argv if flag.startswith("--session-id=")), "")
    for line in sys.stdin:
        message = json.loads(line)
        if message.get("type") == "user":
            turn(message, session)
        elif message.get("type") == "control_request":
            response = {"subtype": "success", "request_id": message["request_id"], "response": {}}
            say({"type": "control_response", "response": response})


main()
