"""The standard library's way to run a script in another process, `sys.remote_exec`, again and again.

usage: stock_exec.py PID COUNT LIMIT

For each of COUNT scripts: the microseconds from the request to the script's first statement, or `never` when it has not
started within LIMIT seconds, which ends the program.
"""

import os
import sys
import tempfile
import time

pid, count, limit = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
with tempfile.TemporaryDirectory() as folder:
    script, answer = os.path.join(folder, "script.py"), os.path.join(folder, "answer")
    for _ in range(count):
        with open(script, "w") as file:
            file.write(
                "import os, time\nat = time.monotonic_ns()\n"
                f"with open({answer + '.new'!r}, 'w') as file: file.write(str(at))\n"
                f"os.rename({answer + '.new'!r}, {answer!r})\n"
            )
        began = time.monotonic_ns()
        sys.remote_exec(pid, script)
        while not os.path.exists(answer) and time.monotonic_ns() - began < limit * 1e9:
            time.sleep(0.0005)
        if not os.path.exists(answer):
            print("never", flush=True)
            break
        with open(answer) as file:
            print((int(file.read()) - began) // 1000, flush=True)
        os.unlink(answer)
