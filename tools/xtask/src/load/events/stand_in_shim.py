#!/usr/bin/python3
"""Stands in for the shim where events come from the load driver: it leaves its control grant in the workspace, where the
driver finds it, and waits for its end. The sandbox around it is a real one.
"""
import os
import signal
import sys

signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
with open("/workspace/grant.new", "w", encoding="ascii") as file:
    file.write(os.environ["CAISSON_CONTROL_GRANT"])
os.rename("/workspace/grant.new", "/workspace/grant")
while True:
    signal.pause()
