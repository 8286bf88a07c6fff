"""System calls that Python does not offer; the numbers are those of x86-64."""

import ctypes
import errno
import os

LIBC = ctypes.CDLL(None, use_errno=True)
NUMBERS = {
    "ptrace": 101, "add_key": 248, "clone": 56, "io_uring_setup": 425, "bpf": 321, "perf_event_open": 298,
    "syslog": 103, "open_by_handle_at": 304, "process_vm_readv": 310,
    "pidfd_getfd": 438, "pidfd_open": 434, "userfaultfd": 323, "setns": 308, "mount": 165,
    "fsopen": 430, "unshare": 272,
}


def call(name, *arguments):
    """The call's result; an OSError if it has none."""
    ctypes.set_errno(0)
    result = LIBC.syscall(ctypes.c_long(NUMBERS[name]), *[pass_on(argument) for argument in arguments])
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def pass_on(argument):
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def outside(pid):
    """A process outside, by its number there; in a namespace of its own, the number may be somebody else's."""
    pid = int(pid)
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            known = b"sibling.py" in file.read() or os.path.basename(os.readlink(f"/proc/{pid}/exe")) == "caisson"
    except FileNotFoundError:
        return pid
    except PermissionError:
        return pid
    if not known:
        raise OSError(errno.ESRCH, "the number is another process's here")
    return pid


def trace(pid):
    attach, detach = 16, 17
    call("ptrace", attach, pid, 0, 0)
    os.waitpid(pid, 0)
    call("ptrace", detach, pid, 0, 0)


class Area(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def read_memory(pid):
    """A piece of another process's memory, without opening its files. The kernel asks for the right before it asks for the place."""
    buffer = ctypes.create_string_buffer(64)
    own, other = Area(ctypes.addressof(buffer), 64), Area(1 << 20, 64)
    try:
        call("process_vm_readv", pid, ctypes.byref(own), 1, ctypes.byref(other), 1, 0)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
    return "may read its memory"


IPC_CREAT = 0o1000


def shared_memory(key, flags=0):
    """The number of a segment of shared memory (System V)."""
    ctypes.set_errno(0)
    number = LIBC.shmget(ctypes.c_int(key), ctypes.c_size_t(64), ctypes.c_int(0o666 | flags))
    if number < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return number


def remove_shared_memory(number):
    LIBC.shmctl(ctypes.c_int(number), 0, None)


def add_key():
    return call("add_key", b"user", b"caisson-adversary", b"x", 1, -2)
