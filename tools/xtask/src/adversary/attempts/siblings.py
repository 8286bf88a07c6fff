"""Ways to another living sandbox, in which sibling.py holds a credential everywhere."""

import glob
import os
import socket

import calls
from secrets_of_others import first, memory_of, read, search, seen

WAIT = 3


def ask(family, address):
    """The sibling tells its credential to whoever connects."""
    with socket.socket(family, socket.SOCK_STREAM) as out:
        out.settimeout(WAIT)
        out.connect(address)
        return search(out.recv(256))


def processes():
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            if b"sibling.py" in read(path):
                return "sees " + path
        except OSError:
            continue
    raise LookupError("none is seen")


def signal(sibling_pid):
    os.kill(calls.outside(sibling_pid), 0)


def environment(sibling_pid):
    return search(read(f"/proc/{calls.outside(sibling_pid)}/environ"))


def memory(sibling_pid):
    return memory_of(calls.outside(sibling_pid))


def trace(sibling_pid):
    calls.trace(calls.outside(sibling_pid))


def files_by_its_root(sibling_pid):
    return f"sees {len(os.listdir(f'/proc/{calls.outside(sibling_pid)}/root'))} names"


def workspace(sibling_file):
    """By its name on the machine."""
    return seen(sibling_file)


def places_of_all():
    names = [place + "/sibling-secret" for place in ["/workspace", "/tmp", "/var/tmp", "/dev/shm"]]
    return first(lambda path=path: seen(path) for path in names)


def door(sibling_door):
    """By its name on the machine."""
    return seen(sibling_door)


def loopback(sibling_port):
    return ask(socket.AF_INET, ("127.0.0.1", int(sibling_port)))


def abstract_socket(sibling_name):
    return ask(socket.AF_UNIX, "\0" + sibling_name)


def path_socket():
    return ask(socket.AF_UNIX, "/tmp/sibling.sock")


def shared_memory(sibling_key):
    return f"has segment {calls.shared_memory(int(sibling_key))}"
