"""Ways out of a sandbox, one a call: prints "through", or "refused" with what the system said."""

import ctypes
import fcntl
import os
import pty
import socket
import struct
import sys
import termios

LIBC = ctypes.CDLL(None, use_errno=True)
# x86-64 numbers.
ADD_KEY, CLONE, CLONE3, IO_SETUP, IO_URING_SETUP = 248, 56, 435, 206, 425
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SO_ATTACH_FILTER = 22, 38, 26
PTRACE_ATTACH, PTRACE_DETACH, CLONE_NEWUSER, MKNOD_CHAR, AF_VSOCK = 16, 17, 0x10000000, 0o020000, 40


def checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def read_only_mount():
    # Where the agent's program is, in the sandbox and in the control.
    write("/caisson/agent/probe" if os.path.isdir("/caisson") else "/mnt/probe", "")


def root_directory():
    write("/probe", "")


def kernel_settings():
    path = "/proc/sys/vm/swappiness"
    with open(path) as file:
        same = file.read()
    write(path, same)


def control_groups():
    roots = ["/sys/fs/cgroup/memory/cgroup.procs", "/sys/fs/cgroup/cgroup.procs"]
    path = next((root for root in roots if os.path.exists(root)), roots[0])
    write(path, str(os.getpid()))


def host_devices():
    os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))


def own_devices():
    os.mknod("/tmp/probe-device", MKNOD_CHAR | 0o600, os.makedev(1, 3))
    os.unlink("/tmp/probe-device")


def trace_outside():
    target = int(os.environ["PROBE_PID"])
    checked(LIBC.ptrace(PTRACE_ATTACH, target, None, None))
    os.waitpid(target, 0)
    LIBC.ptrace(PTRACE_DETACH, target, None, None)


def signal_outside():
    os.kill(int(os.environ["PROBE_PID"]), 0)


def terminal_input():
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            fcntl.ioctl(0, termios.TIOCSTI, b"x")
            os._exit(0)
        except OSError as error:
            os._exit(error.errno)
    number = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    if number:
        raise OSError(number, os.strerror(number))


def keyring():
    checked(LIBC.syscall(ADD_KEY, b"user", b"caisson-probe", b"x", 1, -2))


def user_namespace():
    checked(LIBC.unshare(CLONE_NEWUSER))


def cloned_namespace():
    pid = checked(LIBC.syscall(CLONE, CLONE_NEWUSER | 17, 0, 0, 0, 0))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def foreign_socket():
    checked(LIBC.socket(AF_VSOCK, 1, 0))


def foreign_pair():
    checked(LIBC.socketpair(AF_VSOCK, 1, 0, ctypes.byref((ctypes.c_int * 2)())))


def renewed_clone():
    # What programs fall back to `clone` from.
    checked(LIBC.syscall(CLONE3, None, 0))


def one_instruction():
    # BPF_RET|BPF_K: take all of a packet, or let a call through.
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]

    instructions = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    return Program(1, ctypes.addressof(instructions)), instructions


def socket_filter():
    program, kept = one_instruction()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        checked(LIBC.setsockopt(end.fileno(), socket.SOL_SOCKET, SO_ATTACH_FILTER, ctypes.byref(program), ctypes.sizeof(program)))


def call_filter():
    program, kept = one_instruction()
    checked(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    checked(LIBC.prctl(PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0))


def kernel_events():
    checked(LIBC.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15))


def huge_pages():
    LIBC.mmap.restype = ctypes.c_long
    checked(LIBC.mmap(None, ctypes.c_size_t(1 << 21), 3, 0x40022, -1, ctypes.c_long(0)))


def asynchronous_disk():
    checked(LIBC.syscall(IO_SETUP, 1, ctypes.byref(ctypes.c_ulong(0))))


def asynchronous_calls():
    checked(LIBC.syscall(IO_URING_SETUP, 1, None))


def host_network():
    names = os.listdir("/sys/class/net") if os.path.isdir("/sys/class/net") else []
    with open("/proc/net/dev") as file:
        names += [line.split(":")[0].strip() for line in file.readlines()[2:]]
    if set(names) <= {"lo"}:
        raise OSError(99, "only lo")


def host_home():
    if not os.listdir("/root"):
        raise OSError(2, "empty")


try:
    globals()[sys.argv[1]]()
    print("through")
except OSError as error:
    print("refused", error.errno, error.strerror)
