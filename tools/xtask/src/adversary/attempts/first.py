"""The first process of a control: like any other program, it can be looked into. Does an attempt as its child."""

import subprocess
import sys

sys.exit(subprocess.run([sys.executable, *sys.argv[1:]], env={"PATH": "/usr/bin:/bin"}, check=False).returncode)
