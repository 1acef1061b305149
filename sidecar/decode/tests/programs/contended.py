"""Threads that compete for the GIL, one of them deep in generators."""

import threading


def spin(n):
    while True:
        n += 1


def numbers():
    while True:
        yield from range(1000)


def consume():
    for _ in numbers():
        pass


for n in range(2):
    threading.Thread(target=spin, args=(n,), name=f"spins-{n}", daemon=True).start()
threading.Thread(target=consume, name="consumes", daemon=True).start()
print("ready", flush=True)
spin(0)
