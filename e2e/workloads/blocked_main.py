"""The main thread waits for a lock that nobody releases; another thread ticks."""

import threading
import time

gate = threading.Lock()


def tick():
    number = 0
    while True:
        print("tick", number, flush=True)
        number += 1
        time.sleep(1)


def wait_for_gate():
    gate.acquire()  # waits for ever


if __name__ == "__main__":
    gate.acquire()
    print("ready", flush=True)
    threading.Thread(target=tick, name="tick", daemon=True).start()
    wait_for_gate()
    print("the gate is open", flush=True)
    threading.Event().wait()
