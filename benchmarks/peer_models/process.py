"""Runs a program and prints its seconds, its peak memory in bytes and its output as one object. POSIX.

python process.py PROGRAM ARGUMENTS...
"""

import json
import os
import subprocess
import sys
import time

began = time.perf_counter()
with subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE) as process:
    assert process.stdout is not None
    output = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"seconds": seconds, "peak": peak, "output": output}))
sys.exit(process.returncode)
