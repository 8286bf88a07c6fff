"""Ways to the network. TOKEN is what a listener outside of the sandbox waits for."""

import errno
import fcntl
import os
import socket
import struct

WAIT = 3


def send(family, kind, address, token):
    with socket.socket(family, kind) as out:
        out.settimeout(WAIT)
        out.connect(address)
        out.send(token.encode())
    return "sent"


def tcp(port, token):
    return send(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", int(port)), token)


def tcp_by_ipv6(port6, token):
    return send(socket.AF_INET6, socket.SOCK_STREAM, ("::1", int(port6)), token)


def udp(udp_port, token):
    return send(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", int(udp_port)), token)


def address_of_host(port, token, host):
    return send(socket.AF_INET, socket.SOCK_STREAM, (host, int(port)), token)


def dns_tunnel(udp_port, token):
    """The token as a label of a query, as a tunnel sends it."""
    label = token.encode()
    query = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + bytes([len(label)]) + label + b"\x07example\0" + struct.pack(">HH", 16, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.settimeout(WAIT)
        out.sendto(query, ("127.0.0.1", int(udp_port)))
    return "asked"


def abstract_socket(abstract, token):
    return send(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + abstract, token)


def raw_packets():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)).close()


def raw_ip():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


def add_device():
    """Makes a pair of devices, as the first half of a way out."""
    name = b"caisson0"

    def attribute(kind, value):
        length = 4 + len(value)
        return struct.pack("HH", length, kind) + value + b"\0" * (-length % 4)

    link = struct.pack("BxHiII", 0, 0, 0, 0, 0)
    link += attribute(3, name + b"\0") + attribute(18, attribute(1, b"dummy\0"))
    message = struct.pack("IHHII", 16 + len(link), 16, 0x605, 1, 0) + link
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as out:
        out.send(message)
        number = struct.unpack("i", out.recv(4096)[16:20])[0]
    if number:
        raise OSError(-number, os.strerror(-number))


def give_address():
    """Gives the loopback device another address, one that services trust."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton("169.254.169.254"))
        fcntl.ioctl(out, 0x8916, struct.pack("16s", b"lo") + address)


def vsock():
    """The way to a virtual machine's host, whatever the network namespace."""
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()


def socket_pairs():
    """Pairs of families whose sockets are refused: that the kernel's own code for one answers is enough."""
    vsock, alg, tipc, can, bluetooth, rds, rxrpc, kcm, smc = 40, 38, 30, 29, 31, 21, 33, 41, 43
    last = LookupError("no family was tried")
    for family in [vsock, alg, tipc, can, bluetooth, rds, rxrpc, kcm, smc]:
        try:
            for end in socket.socketpair(family, socket.SOCK_STREAM):
                end.close()
            return f"a pair of family {family}"
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ESOCKTNOSUPPORT, errno.EPROTONOSUPPORT):
                return f"family {family} itself answers {errno.errorcode[error.errno]}"
            last = error
    raise last


def devices():
    names = [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]]
    others = [name for name in names if name != "lo"]
    if not others:
        raise LookupError("only lo")
    return "sees " + others[0]


def host_connections():
    with open("/proc/net/unix") as file:
        found = [line.split()[-1] for line in file if "@caisson-adversary" in line]
    if not found:
        raise LookupError("none of the host's")
    return "sees " + found[0]
