"""Ways to more of the machine than a sandbox may have. Each takes a little more than its bound, and stops by itself."""

import errno
import os
import signal
import time

from door_calls import Refusal

# How much more than its bound an attempt takes.
MORE = 8
MORE_MIB = 64


def processes(bound):
    """Children that sleep, more than there may be processes."""
    children = []
    try:
        for _ in range(int(bound) + MORE):
            child = os.fork()
            if child == 0:
                time.sleep(120)
                os._exit(0)
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return f"{len(children)} processes"


def memory(bound_mib):
    """A child that fills more memory than there may be."""
    child = os.fork()
    if child == 0:
        try:
            # The first to be ended where memory runs out, so that it can be told of.
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("1000")
        except OSError:
            pass
        held = []
        try:
            for _ in range((int(bound_mib) + MORE_MIB) // 16):
                held.append(os.urandom(16) * (1024 * 1024))
        except MemoryError:
            os._exit(errno.ENOMEM)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise Refusal("KILLED", f"by signal {os.WTERMSIG(status)}")
    if os.WEXITSTATUS(status) == errno.ENOMEM:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    if os.WEXITSTATUS(status):
        raise Refusal("FAILED", f"exit code {os.WEXITSTATUS(status)}")
    return f"filled {int(bound_mib) + MORE_MIB} MiB"


def descriptors(bound):
    held = []
    try:
        for _ in range(int(bound) + MORE):
            held.append(os.open("/dev/null", os.O_RDONLY))
    finally:
        for descriptor in held:
            os.close(descriptor)
    return f"{len(held)} descriptors"


def temporary_files(bound_mib):
    path = f"/tmp/filled-{os.getpid()}"
    piece = os.urandom(1024 * 1024)
    try:
        with open(path, "wb", 0) as file:
            for _ in range(int(bound_mib) + MORE_MIB):
                if file.write(piece) != len(piece):
                    raise OSError(errno.ENOSPC, "a short write")
    finally:
        os.unlink(path)
    return f"wrote {int(bound_mib) + MORE_MIB} MiB"
