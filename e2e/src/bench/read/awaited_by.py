"""Times the C core beneath `python -m asyncio ps`, without the interpreter's start and without the output.

usage: awaited_by.py PID RUNS SECONDS

Prints one line of JSON; stops early once SECONDS have passed.
"""

import json
import sys
import time

from _remote_debugging import RemoteUnwinder

pid, runs, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
made, called, failures, tasks = [], [], [], 0
end = time.monotonic() + seconds
while len(made) < runs and (len(made) < 3 or time.monotonic() < end):
    begin = time.perf_counter_ns()
    unwinder = RemoteUnwinder(pid)
    made.append(time.perf_counter_ns() - begin)
    begin = time.perf_counter_ns()
    try:
        threads = unwinder.get_all_awaited_by()
    except Exception as error:
        failures.append(f"{type(error).__name__}: {error}")
    else:
        called.append(time.perf_counter_ns() - begin)
        tasks = sum(len(thread.awaited_by) for thread in threads)
print(
    json.dumps({"made": made, "called": called, "failures": failures, "tasks": tasks})
)
