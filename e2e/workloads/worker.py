"""A worker that takes jobs from a queue one at a time, as a child of whatever started it.

SIGTERM makes it exit with status 3.
"""

import os
import queue
import signal
import threading
import time

jobs = queue.Queue(maxsize=1)
done = 0


def produce():
    number = 0
    while True:
        jobs.put(number)
        number += 1
        time.sleep(0.2)


def work():
    global done
    while True:
        job = jobs.get()
        done += 1
        if job % 5 == 0:
            print("tick", job // 5, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(3))
    threading.Thread(target=produce, name="producer", daemon=True).start()
    print("ready", flush=True)
    work()
