"""The states in which a thread can be blocked, and how each is described.

One state is one generator function in a file of this folder, decorated with `state`. That is all there is to add:

    @state("futex", LOCK)
    def lock():
        '''`Lock.acquire()`'''        # how the table names it
        lock = threading.Lock()
        lock.acquire()                # what has to be so before: in the main thread
        yield lock.acquire            # the wait: called by the thread that has to be blocked
        lock.release()                # what ends the wait: by another thread, when the test says so
        yield True                    # what the wait must have returned, or the class of what it must have raised
        ...                           # what has to be cleared away, if anything

A file of states that is put beside these is found by its name.
"""

import threading

# Where the test's folder is, which is empty but for these programs and what run.py describes.
FOLDER = "/mnt"
# How long the timed waits take. The script runs when a third of it is over.
SECONDS = 3

# What is expected, in the main thread and in another one: the `wake` of the answer, or its `reason` when it did not run.
# Several words are alternatives: the first is what the table shows, the others come where a machine is busy.
LOCK = ("PendingCall", "InPlace")
OWN = ("ForcedReturn", "ForcedReturn")
EPOLL = ("Interrupt InPlace None", "Interrupt InPlace None")
# The stop ends the call with what was done by then.
PARTLY = ("Interrupt ForcedReturn", "Interrupt ForcedReturn")
FOREIGN = ("InPlace", "InPlace")
NONE = ("None", "None")
BLOCKED = ("TargetBlocked", "TargetBlocked")
ELSEWHERE = ("OtherThread", "OtherThread")
ENDING = ("InPlace None Interrupt ForcedReturn",) * 2
ANYTHING = ("", "")

# Every state by its name.
STATES = {}


class State:
    def __init__(self, function, calls, expected, **options):
        self.function = function
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        self.title = function.__doc__
        self.calls = calls.split()
        self.expected = dict(zip(("main", "thread"), expected))
        self.options = options

    def described(self):
        """What the test is told of it."""
        kinds = self.options.get("kinds", ["main", "thread"])
        return {
            "name": self.name,
            "title": self.title,
            "calls": self.calls,
            "expected": {kind: self.expected[kind] for kind in kinds},
            "seconds": SECONDS if self.options.get("timed") else None,
            "again": self.options.get("again", False),
            "ends": self.options.get("ends", False),
            "elsewhere": self.options.get("elsewhere", False),
            "alone": self.options.get("alone", False),
            "arguments": self.options.get("arguments", []),
            "note": self.options.get("note"),
        }


def state(calls, expected=ANYTHING, **options):
    """Makes a state of a function.

    `calls`: the system calls it may be in, with blanks between; none when it computes.
    `expected`: for the main thread and another one; see above. A dict gives it by version.
    kinds: in which threads it can be, when not in both.
    timed: the wait ends by itself after `SECONDS`; nothing is released.
    again: a timed wait that may begin again when it is disturbed, so it may take longer by what was over.
    ends: a wait that every stop ends, as signal(7) lists them; what it then returns is what is expected.
    alone: it cannot be released from inside the process, or ends when it has computed enough.
    announces: the function calls `announce()` itself, in the thread that has to be blocked, right before.
    elsewhere: with `--thread auto`, when it is not this thread that answers.
    at_exit: the wait happens in an exit handler.
    arguments: of the sidecar.
    note: for the table.
    """

    def decorate(function):
        found = State(function, calls, expected, **options)
        STATES[found.name] = found
        return found

    return decorate


# Set by run.py: says which thread is about to be blocked.
announce = None
# Python's id of the thread that waits; set by run.py.
waiting = []
# In place of a wait: the main script ends, and Python waits for the thread that releases.
END = object()


def background(function, *args):
    """A thread of threading's, which does not keep the process."""
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


def held(lock):
    """A lock that another thread has until what is returned is called."""
    taken, given_back = threading.Event(), threading.Event()

    def hold():
        with lock:
            taken.set()
            given_back.wait()

    thread = background(hold)
    taken.wait()

    def give_back():
        given_back.set()
        thread.join()

    return give_back
