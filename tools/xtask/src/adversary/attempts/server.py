"""Ways to the server, whose user a sandbox has where the server is not root."""

import os
import socket

import calls
from secrets_of_others import memory_of, search, seen


def signal(server_pid):
    os.kill(calls.outside(server_pid), 0)


def environment(server_pid):
    pid = calls.outside(server_pid)
    with open(f"/proc/{pid}/environ", "rb") as file:
        return search(file.read())


def memory(server_pid):
    return memory_of(calls.outside(server_pid))


def trace(server_pid):
    calls.trace(calls.outside(server_pid))


def files_by_its_root(server_pid):
    return f"sees {len(os.listdir(f'/proc/{calls.outside(server_pid)}/root'))} names"


def state(state_dir):
    return seen(state_dir)


def api(api_port):
    with socket.socket() as out:
        out.settimeout(3)
        out.connect(("127.0.0.1", int(api_port)))
    return "connected"
