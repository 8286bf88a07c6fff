"""Another sandbox's agent: holds a credential in its environment, its memory and its files, and tells it to whoever connects.

python3 sibling.py PORT NAME KEY PLACE SECONDS, with the credential as HELD. Prints "ready" into PLACE/sibling-ready.
"""

import ctypes
import os
import selectors
import signal
import socket
import sys
import time

import calls

# In two parts, so that this file is no find. Where nobody gives it one, it holds its own.
OWN = "ghp_" + "canarySibling1a2b3c4d"
# Where Yama lets only parents look, this process lets everybody; where there is none, it refuses, and nothing is lost.
SET_PTRACER, ANYBODY = 0x59616D61, ctypes.c_ulong(-1)


def listen(family, address):
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen()
    return listener


def main():
    port, name, key, place, seconds = sys.argv[1:6]
    if "HELD" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "HELD": OWN})
    ctypes.CDLL(None).prctl(SET_PTRACER, ANYBODY, 0, 0, 0)
    held = os.environ["HELD"]
    for directory in [place, "/tmp", "/dev/shm"] if place == "/workspace" else [place]:
        with open(directory + "/sibling-secret", "w") as file:
            file.write(held)
    socket_place = "/tmp" if place == "/workspace" else place
    listeners = [
        listen(socket.AF_INET, ("127.0.0.1", int(port))),
        listen(socket.AF_UNIX, "\0" + name),
        listen(socket.AF_UNIX, socket_place + "/sibling.sock"),
    ]
    # What ends it lets it take its segment away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    segment = calls.shared_memory(int(key), calls.IPC_CREAT)
    with open(place + "/sibling-ready", "w") as file:
        file.write("ready")
    try:
        tell(listeners, held.encode(), time.monotonic() + float(seconds))
    finally:
        calls.remove_shared_memory(segment)


def tell(listeners, word, end):
    with selectors.DefaultSelector() as selector:
        for listener in listeners:
            selector.register(listener, selectors.EVENT_READ)
        while time.monotonic() < end:
            for ready, _ in selector.select(timeout=1):
                stream, _ = ready.fileobj.accept()
                with stream:
                    stream.sendall(word)


main()
