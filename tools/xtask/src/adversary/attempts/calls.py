"""System calls that Python does not offer; the numbers are those of x86-64."""

import ctypes
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


def trace(pid):
    attach, detach = 16, 17
    call("ptrace", attach, pid, 0, 0)
    os.waitpid(pid, 0)
    call("ptrace", detach, pid, 0, 0)


class Area(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def read_memory(pid):
    """Everything of another process that can be read without opening its files."""
    found = b""
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            area, rights = line.split()[:2]
            begin, end = (int(part, 16) for part in area.split("-"))
            length = min(end - begin, 1 << 20)
            if "r" not in rights:
                continue
            buffer = ctypes.create_string_buffer(length)
            own, other = Area(ctypes.addressof(buffer), length), Area(begin, length)
            try:
                read = call("process_vm_readv", pid, ctypes.byref(own), 1, ctypes.byref(other), 1, 0)
                found += buffer.raw[:read]
            except OSError as error:
                if not found:
                    last = error
    if not found:
        raise last
    return found


def add_key():
    return call("add_key", b"user", b"caisson-adversary", b"x", 1, -2)
