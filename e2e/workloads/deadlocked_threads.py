"""Two transfers between the same two accounts, in opposite directions: each thread holds one lock and waits for the other.

usage: deadlocked_threads.py [join]

The main thread ticks; with `join` it waits for the transfers instead and a thread of its own ticks.
"""

import sys
import threading
import time


class Account:
    def __init__(self, owner):
        self.owner = owner
        self.lock = threading.Lock()


def transfer(source, target, both_hold_one):
    with source.lock:
        both_hold_one.wait()
        with target.lock:
            print("transferred", source.owner, target.owner, flush=True)


def tick():
    number = 0
    while True:
        print("tick", number, flush=True)
        number += 1
        time.sleep(1)


def main(join):
    alice, bob = Account("alice"), Account("bob")
    both_hold_one = threading.Barrier(3)
    transfers = [
        threading.Thread(
            target=transfer,
            args=(source, target, both_hold_one),
            name=f"transfer-{source.owner}-{target.owner}",
            daemon=True,
        )
        for source, target in [(alice, bob), (bob, alice)]
    ]
    for thread in transfers:
        thread.start()
    both_hold_one.wait()
    print("ready", flush=True)
    if join:
        threading.Thread(target=tick, name="tick", daemon=True).start()
        for thread in transfers:
            thread.join()
    else:
        tick()


if __name__ == "__main__":
    main(sys.argv[1:] == ["join"])
