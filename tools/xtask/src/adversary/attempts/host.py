"""Ways to the machine below."""

import fcntl
import glob
import os
import pty
import socket
import stat
import struct
import termios
import time

import calls

NEW_USER, NEW_NS, NEW_NET = 0x10000000, 0x00020000, 0x40000000


def write(path, text=""):
    with open(path, "w") as file:
        file.write(text)


def write_agent(place="/caisson/agent"):
    write(place + "/probe")


def replace_shim(shim="/caisson/shim"):
    # Here the kernel looks at the mount before it looks at the owner; for writing it is the other way round. Whoever may change
    # the mode may write a moment later.
    os.chmod(shim, stat.S_IMODE(os.stat(shim).st_mode))
    return "may change its mode"


def unlink_door(door="/caisson/door"):
    for name in os.listdir(door):
        os.rename(os.path.join(door, name), os.path.join(door, name))
    write(door + "/probe")


def root_directory():
    write("/probe")


def system_programs():
    write("/usr/bin/probe")


def kernel_settings():
    path = "/proc/sys/vm/swappiness"
    with open(path) as file:
        same = file.read()
    write(path, same)


def core_pattern():
    path = "/proc/sys/kernel/core_pattern"
    with open(path) as file:
        same = file.read()
    write(path, same)


def lingering_descriptor():
    """Has whoever reads from a socket wait, by a descriptor that they have no room for and whose close waits."""
    listener = socket.create_server(("127.0.0.1", 0))
    full = socket.create_connection(listener.getsockname())
    deaf = listener.accept()[0]
    full.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3))
    full.setblocking(False)
    try:
        while True:
            full.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    mine, theirs = socket.socketpair()
    socket.send_fds(mine, [b"GET"], [full.fileno()])
    full.close()
    begun = time.monotonic()
    theirs.recv(3)
    took = time.monotonic() - begun
    deaf.close()
    if took < 1:
        raise LookupError("the reader of a descriptor that lingers went on at once")
    return f"a reader waited for {took:.1f} s"


def host_name():
    with open("/proc/sys/kernel/hostname") as file:
        same = file.read()
    write("/proc/sys/kernel/hostname", same)


def magic_keys():
    os.close(os.open("/proc/sysrq-trigger", os.O_WRONLY))


def control_groups():
    for root in ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"]:
        if os.path.exists(root + "/cgroup.procs"):
            write(root + "/cgroup.procs", str(os.getpid()))
            return
    raise LookupError("no control groups are seen")


def limits_of_groups():
    """Writes the limits of a group of this machine."""
    for path in glob.glob("/sys/fs/cgroup/pids/*/pids.max") + glob.glob("/sys/fs/cgroup/*/pids.max"):
        with open(path) as file:
            same = file.read().strip()
        write(path, same)
        return "wrote " + path
    raise LookupError("no limits are seen")


def kernel_log():
    if os.lstat("/dev/kmsg").st_rdev != os.makedev(1, 11):
        raise LookupError("it is another device")
    return "sees /dev/kmsg"


def kernel_log_by_call():
    calls.call("syslog", 10, 0, 0)
    calls.call("syslog", 3, calls.ctypes.create_string_buffer(64), 64)


def physical_memory():
    if os.lstat("/dev/mem").st_rdev != os.makedev(1, 1):
        raise LookupError("it is another device")
    return "sees /dev/mem"


def kernel_memory():
    if not stat.S_ISREG(os.stat("/proc/kcore").st_mode):
        raise LookupError("something else is in its place")
    with open("/proc/kcore", "rb") as file:
        if len(file.read(64)) < 64:
            raise LookupError("it is empty")


def disks():
    for name in os.listdir("/dev"):
        if stat.S_ISBLK(os.lstat("/dev/" + name).st_mode):
            return "sees /dev/" + name
    raise LookupError("no disk is seen")


def own_devices():
    os.mknod("/tmp/probe-device", 0o020600, os.makedev(1, 3))
    os.unlink("/tmp/probe-device")


def mount():
    os.makedirs("/tmp/probe-mount", exist_ok=True)
    calls.call("mount", b"none", b"/tmp/probe-mount", b"tmpfs", 0, 0)


def remount_root():
    remount, bind = 32, 4096
    calls.call("mount", b"none", b"/", 0, remount | bind, 0)


def new_mount_calls():
    calls.call("fsopen", b"tmpfs", 0)


def user_namespace():
    calls.call("unshare", NEW_USER)


def cloned_namespace():
    pid = calls.call("clone", NEW_USER | 17, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def mount_namespace():
    calls.call("unshare", NEW_NS)


def namespace_of_first_process():
    return "sees " + os.readlink("/proc/1/ns/net")


def join_namespace():
    """Its own, so that only the right to join any is asked for."""
    calls.call("setns", os.open("/proc/self/ns/net", os.O_RDONLY), NEW_NET)


def trace_outside(pid):
    calls.trace(calls.outside(pid))


def signal_outside(pid):
    os.kill(calls.outside(pid), 0)


def descriptor_of_outside(pid):
    handle = calls.call("pidfd_open", calls.outside(pid), 0)
    calls.call("pidfd_getfd", handle, 0, 0)


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
    calls.add_key()


def asynchronous_calls():
    calls.call("io_uring_setup", 1, calls.ctypes.create_string_buffer(120))


def bpf():
    calls.call("bpf", 0, struct.pack("IIII", 1, 4, 4, 1) + b"\0" * 112, 128)


def performance_events():
    # A clock of software, without the kernel's own part: what any user may have by default.
    exclude_kernel_and_hypervisor = 1 << 5 | 1 << 6
    attributes = struct.pack("IIQQQQQ", 1, 112, 0, 0, 0, 0, exclude_kernel_and_hypervisor) + b"\0" * 64
    os.close(calls.call("perf_event_open", attributes, 0, -1, -1, 0))


def page_faults():
    user_mode_only = 1
    os.close(calls.call("userfaultfd", user_mode_only))


def become_root():
    os.setuid(0)


def become_somebody():
    os.setuid(os.getuid() + 1)


def open_by_handle(mount="/workspace"):
    """The way out of early containers: a file by its number, whatever is mounted."""
    root = os.open(mount, os.O_RDONLY)
    handle = struct.pack("Ii8s", 8, 1, b"\2\0\0\0\0\0\0\0")
    os.close(calls.call("open_by_handle_at", root, handle, os.O_RDONLY))
