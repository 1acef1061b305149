"""The main script has ended; the interpreter waits for a thread that is not a daemon."""

import os
import threading


def waits():
    print("ready", flush=True)
    os.read(0, 1)


threading.Thread(target=waits, name="keeps it alive").start()
