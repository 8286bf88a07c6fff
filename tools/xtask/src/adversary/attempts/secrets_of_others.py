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
    return search(read("/proc/1/environ"))


def memory_of_first_process():
    with open("/proc/1/maps") as maps:
        areas = [line.split() for line in maps]
    with open("/proc/1/mem", "rb", 0) as memory:
        for area in areas:
            begin, end = (int(part, 16) for part in area[0].split("-"))
            if "r" not in area[1] or end - begin > FILE_BYTES:
                continue
            memory.seek(begin)
            try:
                return search(memory.read(end - begin))
            except (OSError, LookupError):
                continue
    raise LookupError("no credential in it")


def descriptors_of_first_process():
    names = os.listdir("/proc/1/fd")
    for name in names:
        os.close(os.open("/proc/1/fd/" + name, os.O_RDONLY | os.O_NONBLOCK))
        return "opened its descriptor " + name
    raise LookupError("it has none")


def trace_of_first_process():
    calls.trace(1)


def memory_by_call():
    return search(calls.read_memory(1))


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


def sockets_of_others(place="/caisson/door"):
    own = {os.path.realpath(path) for path in glob.glob("/caisson/door/*")}
    around = [os.path.realpath(path) for path in glob.glob(place + "/../**/*", recursive=True)]
    found = [path for path in around if path not in own and is_socket(path)]
    for path in found:
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(path)
        return "connected to " + path
    raise LookupError("there is none")


def is_socket(path):
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def engine_socket():
    def connect(path):
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect(path)
        return "connected to " + path

    return first(
        lambda path=path: connect(path)
        for path in ["/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock"]
    )


def home_of_root():
    names = os.listdir("/root")
    if not names:
        raise LookupError("it is empty")
    return "/root has " + names[0]


def password_hashes():
    for line in read("/etc/shadow").splitlines():
        if len(line.split(b":")) > 2:
            return "read /etc/shadow"
    raise LookupError("it is empty")
