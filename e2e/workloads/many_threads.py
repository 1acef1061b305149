"""A given number of threads, the main one included, each ten calls deep.

usage: many_threads.py THREADS [busy|handover]

They all wait for what never comes. With `busy` they all compute and pass the GIL round every five milliseconds; with
`handover` each computes for a moment and sleeps for a moment, so the GIL is let go and taken many times a millisecond.
"""

import sys
import threading
import time


def wait():
    threading.Event().wait()


def compute(count=-1):
    total = 0
    while count:
        total = (total * 31 + count) % 1_000_003
        count -= 1
    return total


def hand_over():
    while True:
        compute(500)
        time.sleep(0.001)


def descend(depth, leaf, arrived, begin):
    if depth:
        descend(depth - 1, leaf, arrived, begin)
    else:
        arrived.release()
        # Threads that compute from the start would let the next ones start more and more slowly.
        begin.wait()
        leaf()


def main(count, leaf):
    arrived, begin = threading.Semaphore(0), threading.Event()
    arguments = (9, leaf, arrived, begin)
    for number in range(count - 1):
        threading.Thread(
            target=descend, args=arguments, name=f"worker-{number}", daemon=True
        ).start()
    for _ in range(count - 1):
        arrived.acquire()
    begin.set()
    print("ready", flush=True)
    descend(*arguments)


if __name__ == "__main__":
    leaves = {"idle": wait, "busy": compute, "handover": hand_over}
    main(int(sys.argv[1]), leaves[(sys.argv[2:] or ["idle"])[0]])
