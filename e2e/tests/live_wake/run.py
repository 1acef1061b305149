"""Brings one thread into one blocked state, and says what became of its wait.

    run.py list                       the states, as JSON
    run.py MODULE.STATE main|thread   that state, in the main thread or in another one

The folder of this program holds besides: `release`, a FIFO in which a byte ends the wait; `byte`, another one in which
a byte appears at the same time; `gate`, a FIFO that nobody has open until then; `word`, a file whose first byte becomes 1 then; `stderr`, written here; `tls.pem`.
The output: `ready` and what the blocked thread is, then what came of its wait. Nothing of this file is touched by a
library that replaces functions of others.
"""

import atexit
import json
import os
import pkgutil
import sys
import traceback
from _thread import get_ident, get_native_id, start_new_thread
from importlib import import_module
from os import pipe, read, write
from time import monotonic

import states

OUTPUT = 1


def say(*lines):
    write(OUTPUT, "".join(f"{line}\n" for line in lines).encode())


def listed():
    for module in pkgutil.iter_modules(states.__path__):
        import_module(f"states.{module.name}")
    return [state.described() for state in states.STATES.values()]


class Run:
    def __init__(self, name):
        import_module(f"states.{name.partition('.')[0]}")
        self.state = states.STATES[name]
        self.steps = self.state.function()
        self.release = os.open(f"{states.FOLDER}/release", os.O_RDWR)
        # For a thread whose wait a stop ends: it stays to answer.
        self.told = pipe()
        # Bytes come when the wait is over (two, for two threads), and when what was expected of it is known.
        self.over, self.known = pipe(), pipe()
        self.released = self.expected = None
        states.announce = self.announce

    def announce(self, thread=None):
        """Says that this thread, or another one, is about to be blocked."""
        states.waiting.append(thread.ident if thread else get_ident())
        self.began = monotonic()
        say("ready", json.dumps({"tid": thread.native_id if thread else get_native_id()}))

    def waits(self, call):
        """The frame that stacks have to show."""
        if not self.state.options.get("announces"):
            self.announce()
        try:
            self.got = call()
        except BaseException as error:
            self.got = type(error)
            self.traceback = traceback.format_exc()
        self.ended = monotonic()
        if self.state.options.get("ends"):
            read(self.told[0], 1)
        write(self.over[1], b"xx")

    def releases(self):
        """Waits for the test's word."""
        if not self.state.options.get("timed"):
            read(self.release, 1)
            write(self.told[1], b"x")
        else:
            read(self.over[0], 1)
        self.released = monotonic()
        try:
            self.expected = next(self.steps)
        except BaseException:
            traceback.print_exc()
        write(self.known[1], b"x")

    def reports(self):
        read(self.over[0], 1)
        read(self.known[0], 1)
        # What is left to be done.
        next(self.steps, None)
        same = self.got == self.expected
        if not same and isinstance(self.got, type):
            print(self.traceback, file=sys.stderr)
        say(
            json.dumps(
                {
                    "same": same,
                    "got": repr(self.got),
                    "expected": repr(self.expected),
                    "took": self.ended - self.began,
                    "afterRelease": self.ended - self.released,
                }
            )
        )

    def in_main(self, call):
        start_new_thread(self.releases, ())
        self.waits(call)
        self.reports()

    def in_thread(self, call):
        start_new_thread(self.waits, (call,))
        if self.state.options.get("timed"):
            start_new_thread(self.releases, ())
        else:
            self.releases()
        self.reports()

    def at_the_end(self):
        """The main script ends and Python waits for a thread."""
        import threading

        def released():
            self.releases()
            self.got, self.ended = None, monotonic()
            write(self.over[1], b"x")
            self.reports()

        threading.Thread(target=released).start()
        self.announce()


def main():
    if sys.argv[1:] == ["list"]:
        say("ready", json.dumps(listed()))
        return
    os.dup2(os.open(f"{states.FOLDER}/stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    name, kind = sys.argv[1:]
    run = Run(name)
    call = next(run.steps)
    go = run.in_main if kind == "main" else run.in_thread
    if call is states.END:
        run.at_the_end()
    elif run.state.options.get("at_exit"):
        atexit.register(go, call)
    else:
        go(call)


main()
