"""Requests at the sandbox's door, by its socket or by the shim's listener, byte by byte where it matters."""

import json
import os
import socket

SOCKET = "/caisson/door/gateway.sock"
WAIT = 20
# Most of an answer that is read, in bytes.
ANSWER = 1024 * 1024


class Refusal(Exception):
    """A refusal in the door's own word."""

    def __init__(self, word, said):
        super().__init__(said)
        self.word = word


def own_grant():
    return os.environ["ANTHROPIC_AUTH_TOKEN"]


def door():
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(WAIT)
    connection.connect(SOCKET)
    return connection


def send(head, headers=(), body=b"", connection=None):
    """Sends a request as it is written, and reads the answer: its status and its body."""
    lines = [head, *(f"{name}: {value}" for name, value in headers), "Connection: close", "", ""]
    with connection or door() as out:
        out.sendall("\r\n".join(lines).encode() + body)
        return answer(out)


def answer(out):
    told = b""
    while len(told) < ANSWER:
        if b"\r\n\r\n" in told:
            head, _, rest = told.partition(b"\r\n\r\n")
            fields = dict(line.lower().split(": ", 1) for line in head.decode(errors="replace").split("\r\n")[1:] if ": " in line)
            status = int(head.split(b" ", 2)[1])
            if status < 200 or status == 204 or len(rest) >= int(fields.get("content-length", ANSWER)):
                return status, rest
        piece = out.recv(65536)
        if not piece:
            break
        told += piece
    if not told:
        raise Refusal("CLOSED", "the connection was closed without an answer")
    head, _, rest = told.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), rest


def passed(told):
    """What was told where it passed; a refusal else, by its code."""
    status, body = told
    if status < 400:
        return f"answered {status}"
    try:
        document = json.loads(body)
    except ValueError:
        raise Refusal(f"HTTP{status}", body[:200].decode(errors="replace")) from None
    error = document.get("error")
    word = error.get("type") if isinstance(error, dict) else document.get("code", f"HTTP{status}")
    raise Refusal(word, json.dumps(document)[:250])


def authority(grant):
    return [("Host", "caisson"), ("Authorization", f"Bearer {grant}")]
