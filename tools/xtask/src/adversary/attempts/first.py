"""The first process of a control: can be looked into if told "open", hides as the shim does if told "hidden". Does an attempt as its child."""

import ctypes
import subprocess
import sys

SET_DUMPABLE, SET_PTRACER, ANYBODY = 4, 0x59616D61, ctypes.c_ulong(-1)

libc = ctypes.CDLL(None)
if sys.argv[1] == "hidden":
    assert libc.prctl(SET_DUMPABLE, 0, 0, 0, 0) == 0
else:
    # Where Yama lets only parents look, this one lets everybody; where there is none, it refuses, and nothing is lost.
    libc.prctl(SET_PTRACER, ANYBODY, 0, 0, 0)
sys.exit(subprocess.run([sys.executable, *sys.argv[2:]], check=False).returncode)
