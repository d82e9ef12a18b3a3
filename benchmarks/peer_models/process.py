"""Runs a program and prints its output, time and memory as one object. POSIX.

    python process.py PROGRAM ARGUMENTS...

`seconds` of wall time, `peak` bytes of memory, `others`: the number of CPUs used by other processes meanwhile, by
Linux's count of busy time (null elsewhere). Figures with a value of 0.1 or more are not reliable.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def busy_seconds():
    """CPU seconds that this machine has been busy, those that its host took away included; None where nobody counts."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    user, nice, system, _idle, _wait, interrupts, soft, stolen = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


before, began = busy_seconds(), time.perf_counter()
with subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE) as process:
    assert process.stdout is not None
    output = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    seconds, after = time.perf_counter() - began, busy_seconds()
    process.returncode = os.waitstatus_to_exitcode(status)
others = None if before is None else max(0.0, after - before - usage.ru_utime - usage.ru_stime) / seconds
peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"seconds": seconds, "peak": peak, "others": others, "output": output}))
sys.exit(process.returncode)
