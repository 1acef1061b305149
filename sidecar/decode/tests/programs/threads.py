"""Threads in all that a thread can be in, with every kind of local variable."""

import os
import threading

import truth


def in_lock(lock):
    with lock:
        pass


def in_callback(event):
    # Python calls C, which calls Python again.
    return sorted([2, 1], key=lambda n: event.wait() or n)


def in_generator(event):
    def inner():
        yield 1
        event.wait()
        yield 2

    def outer():
        yield from inner()

    for _ in outer():
        pass


def deep(n, event):
    if n:
        deep(n - 1, event)
    else:
        event.wait()


class Klasse:
    attribute = 1

    def méthode(self, event):
        event.wait()


def with_locals(event, *args, keyword=1.5, **kwargs):
    small, negative, large = 7, -1, 2**97
    text, latin, wide, astral = "plain\n", "näme", "日本語", "🐍"
    password, long = "hunter2", "y" * 5000
    raw, nothing, yes, no = b"\x00raw", None, True, False
    items, pair, mapping, group = [1, 2, 3], (1, 2), {"a": 1}, {1, 2, 3, 4}
    kind, instance, big = Klasse, Klasse(), 10**2000
    tiny, whole = 1e-07, 3.0
    captured = "in a cell"

    def inner():
        return captured, later

    event.wait()
    later = 1
    return locals(), inner, unbound  # noqa: F821
    unbound = 1


def blocked(thread):
    """Whether it has come to where it blocks: at the lock, or in the last line of a wait."""
    at_lock = truth.stands_at(thread.ident, "in_lock", "with lock:")
    return at_lock or truth.stands_at(thread.ident, "Condition.wait", "waiter.acquire()")


def wait_in_callback():
    truth.stand_still()


event, lock = threading.Event(), threading.Lock()
lock.acquire()
threads = [
    threading.Thread(target=in_lock, args=(lock,), name="waits for a lock"),
    threading.Thread(target=in_callback, args=(event,), name="in a callback"),
    threading.Thread(target=in_generator, args=(event,), name="in a generator"),
    threading.Thread(target=deep, args=(200, event), name="deep"),
    threading.Thread(target=Klasse().méthode, args=(event,), name="Fädchen 日本 with a very long name"),
    threading.Thread(target=with_locals, args=(event, 1, 2), kwargs={"other": "x"}, name="locals"),
]
for thread in threads:
    thread.daemon = True
    thread.start()
while not all(blocked(thread) for thread in threads):
    os.sched_yield()
for answer in map(lambda _: wait_in_callback(), [1]):
    module_level = answer
