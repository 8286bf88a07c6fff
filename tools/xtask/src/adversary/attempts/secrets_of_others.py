"""Ways to a credential. What is looked for is a word that every credential of the test has in it."""

import glob
import os
import re
import socket
import stat
import subprocess

import calls

# In two parts, so that this file is no find.
SECRET = re.compile(rb"(sk-ant-|ghp_)" + b"can" + rb"ary[0-9A-Za-z-]{8,}")
# Most of a file that is searched, in bytes, and most files.
FILE_BYTES, FILES = 8 * 1024 * 1024, 50_000


def search(text):
    found = SECRET.search(text)
    if not found:
        raise LookupError("no credential in it")
    return found.group().decode()


def first(attempts):
    """What the first attempt brings that brings something."""
    last = LookupError("nothing to look at")
    for attempt in attempts:
        try:
            return attempt()
        except (OSError, LookupError) as error:
            last = error
    raise last


def read(path):
    with open(path, "rb") as file:
        return file.read(FILE_BYTES)


def environment():
    return search("\n".join(os.environ.values()).encode())


def environment_of_others():
    return first(lambda path=path: search(read(path)) for path in glob.glob("/proc/[0-9]*/environ"))


def command_lines():
    return first(lambda path=path: search(read(path)) for path in glob.glob("/proc/[0-9]*/cmdline"))


def environment_of_first_process():
    return f"read {len(read('/proc/1/environ'))} bytes"


def memory_of_first_process():
    return memory_of(1)


def memory_of(pid):
    """A piece of a process's memory, by its files."""
    with open(f"/proc/{pid}/maps") as maps:
        areas = [line.split() for line in maps]
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for area in areas:
            if "r" in area[1]:
                memory.seek(int(area[0].split("-")[0], 16))
                return f"read {len(memory.read(64))} bytes"
    raise LookupError("it has none that can be read")


def descriptors_of_first_process():
    return f"sees {len(os.listdir('/proc/1/fd'))} descriptors"


def trace_of_first_process():
    calls.trace(1)


def memory_by_call():
    return calls.read_memory(1)


def files():
    places = ["/home", "/workspace", "/caisson", "/etc", "/run", "/tmp", "/var", "/root", "/opt", "/srv", "/mnt", "/dev/shm"]
    left = FILES

    def every():
        nonlocal left
        for place in places:
            for directory, _, names in os.walk(place):
                for name in names:
                    path = os.path.join(directory, name)
                    left -= 1
                    if left < 0:
                        return
                    yield path

    def look(path):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise LookupError("no file")
        return path + ": " + search(read(path))

    return first(lambda path=path: look(path) for path in every())


def git_configuration():
    told = subprocess.run(["git", "config", "--list", "--show-origin"], capture_output=True, check=False)
    return search(told.stdout)


def git_credential_helper():
    asked = b"protocol=http\nhost=git.example.com\n\n"
    told = subprocess.run(
        ["git", "credential", "fill"], input=asked, capture_output=True, check=False, timeout=20,
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
    )
    return search(told.stdout)


def sockets_of_others(door="/caisson/door"):
    own = {os.path.realpath(path) for path in glob.glob(door + "/*")}
    around = [os.path.realpath(path) for path in glob.glob(door + "/../**/*", recursive=True)]
    for path in around:
        if path not in own and stat.S_ISSOCK(os.lstat(path).st_mode):
            return "sees " + path
    raise LookupError("there is none")


def engine_socket(docker, containerd):
    """That one of them can be seen is enough."""
    return first(lambda path=path: seen(path) for path in [docker, "/var/run/docker.sock", containerd])


def connection_to_engine(stand_in):
    """A socket as the engine's, to which anybody may connect."""
    with socket.socket(socket.AF_UNIX) as engine:
        engine.connect(stand_in)
    return "connected to " + stand_in


def home_of_root(same):
    return the_same("/root", same)


def password_hashes(same):
    return the_same("/etc/shadow", same)


def seen(path):
    os.lstat(path)
    return "sees " + path


def the_same(path, same):
    """Whether a path shows what it shows outside, and not something of the image's: that it can be seen is enough."""
    found = os.lstat(path)
    if f"{found.st_dev}:{found.st_ino}" != same:
        raise LookupError("it is another one")
    return "sees " + path
