"""Threads that handle exceptions, and one that collects garbage. The program says which."""

import _thread
import gc
import json
import sys
import threading

gate, arrived = _thread.allocate_lock(), _thread.allocate_lock()
gate.acquire()
arrived.acquire()


def block(*_):
    arrived.release(), gate.acquire()


class Shop:
    class Closed(LookupError):
        pass


def of_a_class():
    try:
        raise Shop.Closed("Ladenschluß 🔒")
    except LookupError:
        block()


def long_message():
    try:
        raise ValueError("ü" * 500)
    finally:
        block()


def without_text():
    try:
        raise KeyError(("no", "text"))
    except KeyError:
        block()


def of_c():
    try:
        json.loads("{")
    except ValueError:
        block()


def in_a_generator():
    def generator():
        try:
            raise StopAsyncIteration("inner")
        except StopAsyncIteration:
            yield block()

    try:
        raise OSError(2, "no such file")
    except OSError:
        next(generator())


def outside_of_a_generator():
    def generator():
        yield block()

    try:
        raise EOFError("outer")
    except EOFError:
        next(generator())


def not_any_more():
    try:
        raise ValueError
    except ValueError:
        pass
    block()


def collects():
    gc.callbacks.append(lambda phase, _: block() if phase == "start" else None)
    gc.collect()


scenes = [of_a_class, long_message, without_text, of_c, in_a_generator, outside_of_a_generator, not_any_more, collects]
for scene in scenes:
    threading.Thread(target=scene, name=scene.__name__, daemon=True).start()
    arrived.acquire()


def said(error):
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    text = error.args[0] if error.args and isinstance(error.args[0], str) else None
    return {"type": name, "message": text}


errors = sys._current_exceptions()
names = {thread.ident: thread.name for thread in threading.enumerate()}
print("ready", flush=True)
print(json.dumps({names[ident]: error and said(error) for ident, error in errors.items()}), flush=True)
gate.acquire()
