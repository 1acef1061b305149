"""The main script has ended; the interpreter waits for a thread that is not a daemon."""

import os
import threading

import truth


def waits(main):
    while not truth.stands_at(main.ident, "_shutdown", "_thread_shutdown()"):
        os.sched_yield()
    truth.stand_still()


threading.Thread(target=waits, args=(threading.main_thread(),), name="keeps it alive").start()
