"""Threads in all that a thread can be in, with every kind of local variable; says on stdout what it knows of itself."""

import json
import sys
import threading

import concurrent.interpreters


def frames():
    """Every thread's stack, innermost last, as the interpreter sees it."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = {}
    for ident, frame in sys._current_frames().items():
        stack = []
        while frame is not None:
            stack.append([frame.f_code.co_qualname, frame.f_code.co_filename, frame.f_lineno])
            frame = frame.f_back
        stacks[f"{ident:#x}"] = {"name": names.get(ident), "stack": stack[::-1]}
    return stacks


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


def ready(*conditions):
    """Waits until every thread has come to where it blocks: its innermost frame is in a wait or at the lock."""
    while not all(condition() for condition in conditions):
        pass


def innermost(thread):
    frame = sys._current_frames().get(thread.ident)
    return frame.f_code.co_name if frame else None


def wait_in_callback():
    frames_then = frames()
    print(json.dumps({"threads": frames_then}), flush=True)
    sys.stdin.readline()
    return frames_then


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
ready(*(lambda t=t: innermost(t) in ("wait", "in_lock") for t in threads))

interpreter = concurrent.interpreters.create()
idle = concurrent.interpreters.create()
sub = threading.Thread(
    target=interpreter.exec, args=("import sys\ndef below():\n  sys.stdout.flush()\n  r()\nimport os\nr = lambda: os.read(0, 1)\nimport threading\nbelow()",), daemon=True, name="in a subinterpreter"
)
if len(sys.argv) > 1:
    sub.start()
for answer in map(lambda _: wait_in_callback(), [1]):
    module_level = answer
