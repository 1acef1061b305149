"""Four threads that compute, the main one among them, and one that collects garbage without end.

Scripts count themselves in `runs`. For each line on stdin the program prints how much the threads have done, when, and how
many scripts have run: `work COUNT NANOSECONDS RUNS`.
"""

import gc
import sys
import threading
import time

THREADS = 4
work = [0] * THREADS
runs = 0


def compute(number):
    while True:
        junk = [[index] for index in range(20)]
        work[number] += len(junk)


def collect():
    while True:
        gc.collect()


def answer():
    for _ in sys.stdin:
        print("work", sum(work), time.monotonic_ns(), runs, flush=True)


for number in range(1, THREADS):
    threading.Thread(target=compute, args=(number,), daemon=True).start()
threading.Thread(target=collect, daemon=True).start()
threading.Thread(target=answer, daemon=True).start()
print("ready", flush=True)
compute(0)
