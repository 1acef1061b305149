"""The main thread waits in a constructor, called often enough before that the interpreter has specialized the call."""

import threading


class Parked:
    def __init__(self, gate):
        if gate is not None:
            print("ready", flush=True)
            gate.acquire()


def build(gate):
    return Parked(gate)


for _ in range(100):
    build(None)
gate = threading.Lock()
gate.acquire()
build(gate)
