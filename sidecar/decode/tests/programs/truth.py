"""What a program knows of itself, for a reader of its memory to be compared with.

A program brings its threads and tasks to rest and calls `stand_still`, which prints one document and does not return.
Nothing here asks the reader's sources: frames come from `sys._current_frames`, threads from `threading`, tasks from the
garbage collector and from `asyncio.all_tasks`, awaits from the coroutines' own attributes.
"""

import _interpreters
import gc
import inspect
import json
import linecache
import os
import re
import sys
import threading

# Whatever this imports is imported now: a thread at rest may hold the lock of imports.
linecache.getlines(__file__)
# Nobody writes to it.
PARKING = os.pipe()[0]
# Documents of other interpreters, and the idents of their threads, which sys._current_frames() shows as well.
OTHER_INTERPRETERS = []
OTHER_THREADS = set()
# Types, not classes, whose objects hand on to the one they await, which only the garbage collector can look into.
WRAPPERS = {"async_generator_asend", "async_generator_athrow", "anext_awaitable", "coroutine_wrapper"}
HEAP_TYPE = 1 << 9
# Loops that asyncio did not make, with the native id of the thread that runs them.
LOOPS = {}
# Tasks that were not made by the thread that runs their loop, with the native id of the one that made them, which is
# `None` once it has ended.
MADE_BY = {}


def park():
    """Blocks for good: whatever is said of the thread from now on stays true."""
    os.read(PARKING, 1)


def stand_still():
    """Says everything and blocks. In one line: what is said of this frame stays true."""
    sys.stdout.write(f"ready\n{said(sys._getframe())}\n"), sys.stdout.flush(), os.read(PARKING, 1)


def said(frame):
    """The document; `frame` is where the thread that calls will stand."""
    mine = {
        "id": _interpreters.get_current()[0],
        "threads": threads_said(frame),
        **(asyncio_said(frame) if "asyncio" in sys.modules else {"loops": [], "tasks": {}, "cycles": []}),
    }
    others = [other for document in OTHER_INTERPRETERS for other in json.loads(document)["interpreters"]]
    return json.dumps({"interpreters": [mine, *others]})


def text(of):
    """No document can carry a lone surrogate."""
    return re.sub("[\ud800-\udfff]", "\ufffd", of)


def place(frame):
    return [text(frame.f_code.co_qualname), text(frame.f_code.co_filename), frame.f_lineno]


def stack(frame):
    """Innermost last."""
    places = []
    while frame is not None:
        places.append(place(frame))
        frame = frame.f_back
    return places[::-1]


def stands_at(ident, function, line):
    """Whether a thread's innermost frame is in this function, at a line of this text. A thread may lose the GIL as soon
    as it has entered a function, so that its name alone does not say that it has come to where it blocks."""
    frame = sys._current_frames().get(ident)
    if frame is None or frame.f_code.co_qualname != function:
        return False
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip() == line


def parked(*threads):
    """Waits until each of these threads stands in park()."""
    for thread in threads:
        while not stands_at(thread.ident, "park", "os.read(PARKING, 1)"):
            os.sched_yield()


def waits(loop):
    """Whether nothing is left to do for a loop but to wait for what does not come."""
    soon = loop._scheduled and loop._scheduled[0].when() < loop.time() + 60
    line = "fd_event_list = self._selector.poll(timeout, max_ev)"
    return stands_at(loop._thread_id, "EpollSelector.select", line) and not loop._ready and not soon


def threads_said(frame):
    frames = {ident: found for ident, found in sys._current_frames().items() if ident not in OTHER_THREADS}
    frames[threading.get_ident()] = frame
    known = {thread.ident: thread for thread in threading.enumerate()}
    # In other interpreters `threading` names the process's main thread; the one that runs their `__main__` calls this.
    main = threading.get_ident() if _interpreters.get_current()[0] else threading.main_thread().ident
    return {
        f"{ident:#x}": {
            "name": text(known[ident].name) if ident in known else None,
            "tid": known[ident].native_id if ident in known else None,
            "main": ident == main,
            "frames": stack(frames[ident]),
        }
        for ident in frames
    }


def frame_of(coroutine):
    for attribute in ("cr_frame", "gi_frame", "ag_frame"):
        if hasattr(coroutine, attribute):
            return getattr(coroutine, attribute)
    return None


def awaited_by_it(coroutine):
    for attribute in ("cr_await", "gi_yieldfrom", "ag_await"):
        if hasattr(coroutine, attribute):
            return getattr(coroutine, attribute)
    return None


def is_running(coroutine):
    return any(getattr(coroutine, attribute, False) for attribute in ("cr_running", "gi_running"))


def chain(awaited):
    """The coroutines that await each other, innermost last."""
    places = []
    while awaited is not None:
        if type(awaited).__name__ in WRAPPERS and not type(awaited).__flags__ & HEAP_TYPE:
            awaited = gc.get_referents(awaited)[0]
            continue
        frame = frame_of(awaited)
        if frame is None:
            break
        places.append(place(frame))
        awaited = awaited_by_it(awaited)
    return places


def chain_of_running(coroutine, frames):
    """From the coroutine's frame inwards, on the stack of the thread that executes it."""
    for innermost_frame in frames:
        places, frame = [], innermost_frame
        while frame is not None:
            places.append(place(frame))
            if frame is coroutine.cr_frame:
                return places[::-1]
            frame = frame.f_back
    raise AssertionError(f"no thread executes {coroutine}")


def state(task):
    coroutine = task.get_coro()
    if is_running(coroutine):
        return "Running"
    if inspect.iscoroutine(coroutine) and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
        return "Created"
    waiter = task._fut_waiter
    return "Ready" if waiter is None or waiter.done() else "Waiting"


def loops():
    """Every loop that asyncio made and that is open, by the garbage collector."""
    import asyncio

    return {found for found in gc.get_objects() if isinstance(found, asyncio.BaseEventLoop) and not found.is_closed()}


def all_tasks():
    """Every task that is not done, by the garbage collector, which must agree with asyncio."""
    import asyncio

    tasks = [found for found in gc.get_objects() if isinstance(found, asyncio.Task) and not found.done()]
    loops = {task.get_loop() for task in tasks}
    known = {id(task) for loop in loops for task in asyncio.all_tasks(loop) if isinstance(task, asyncio.Task)}
    assert known == {id(task) for task in tasks}, "asyncio and the garbage collector disagree"
    return tasks


def cycles(edges):
    """The groups of more than one that can reach each other."""
    reach = {}
    for start in edges:
        seen, left = set(), list(edges[start])
        while left:
            at = left.pop()
            if at not in seen:
                seen.add(at)
                left += edges[at]
        reach[start] = seen
    groups = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in edges if a in reach[a]}
    return sorted(groups)


def asyncio_said(frame):
    import asyncio

    tasks = all_tasks()
    running = loops() | set(LOOPS)
    frames = {**sys._current_frames(), threading.get_ident(): frame}
    native = {thread.ident: thread.native_id for thread in threading.enumerate()}
    # Shown are loops that run, or that have a task.
    shown = {loop for loop in running if loop.is_running()} | {task.get_loop() for task in tasks}
    runs_in = {
        loop: LOOPS.get(loop) or native[loop._thread_id] if loop.is_running() else None for loop in shown
    }
    live = {id(task): task for task in tasks}
    documents, edges = {}, {task: [] for task in live}
    for task in tasks:
        coroutine = task.get_coro()
        waiters = [waiter for waiter in task._asyncio_awaited_by or () if id(waiter) in live]
        waits_for = task._fut_waiter
        documents[f"{id(task):#x}"] = {
            "name": text(task.get_name()),
            "loop": f"{id(task.get_loop()):#x}",
            "tid": MADE_BY[task] if task in MADE_BY else runs_in[task.get_loop()],
            "state": state(task),
            "coroutine": chain_of_running(coroutine, frames.values()) if is_running(coroutine) else chain(coroutine),
            "awaitedBy": sorted(f"{id(waiter):#x}" for waiter in waiters),
            "waitingFor": f"{id(waits_for):#x}" if waits_for is not None else None,
        }
        for waiter in waiters:
            edges[id(waiter)].append(id(task))
        if id(waits_for) in live:
            edges[id(task)].append(id(waits_for))
    circles = cycles(edges)
    if not circles and len(tasks) < 200:
        for task in tasks:
            agree_with_call_graph(task, documents)
    return {
        "loops": [
            {"id": f"{id(loop):#x}", "tid": runs_in[loop], "running": loop.is_running()} for loop in shown
        ],
        "tasks": documents,
        "cycles": [[f"{member:#x}" for member in circle] for circle in circles],
    }


def agree_with_call_graph(task, documents):
    """asyncio's own walk must find the same, as far as it can see. It recurses without end where tasks wait for each
    other in a circle, stops at async generators and wrappers, and knows nothing of plain frames."""
    import asyncio

    document = documents[f"{id(task):#x}"]
    if document["state"] == "Running":
        return
    graph = asyncio.capture_call_graph(task)
    places = [place(entry.frame) for entry in graph.call_stack][::-1]
    assert places == document["coroutine"][: len(places)], (places, document)
    waiters = sorted(f"{id(waiter.future):#x}" for waiter in graph.awaited_by)
    assert [waiter for waiter in waiters if waiter in documents] == document["awaitedBy"], (waiters, document)
