# A part of the wrapper: the frames of a thread or of a task, as a debugger's user asks for them.
def thread_frame(thread=None, function=None):
    return picked(thread_frames(thread), function, f"thread {thread!r}")


def task_frame(task=None, function=None):
    return picked(task_frames(task), function, f"task {task!r}")


def picked(frames, function, whose):
    if not frames:
        raise LookupError(f"{whose} runs no Python code now")
    if function is None:
        return frames[-1]
    for frame in reversed(frames):
        if function in (frame.f_code.co_qualname, frame.f_code.co_name):
            return frame
    there = ", ".join(frame.f_code.co_qualname for frame in frames)
    raise LookupError(f"{whose} has no frame of {function!r}; it has {there}")


def thread_frames(which=None):
    return outward(frame_of_ident(thread if which is None else ident_of(which)))


def outward(frame):
    # Innermost last, as everywhere; without what this script is made of.
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    frames.reverse()
    return frames


def frame_of_ident(ident):
    if ident == thread and loop is None:
        return given["frame"]
    frame = inner = sys._current_frames().get(ident)
    while inner is not None and ident == thread:
        # Not what this script and its helpers are made of.
        if inner.f_globals is globals():
            frame = inner.f_back
        inner = inner.f_back
    return frame


def known_threads():
    # ident: (name, native id), as far as the application knows them.
    found = {ident: (None, None) for ident in sys._current_frames()}
    threading = sys.modules.get("threading")
    for one in list(getattr(threading, "_active", {}).values()):
        if one.ident in found:
            found[one.ident] = one.name, getattr(one, "native_id", None)
    main = _thread._get_main_thread_ident()
    if main in found and found[main] == (None, None):
        found[main] = "MainThread", pid
    here = found.get(thread, (None, None))
    found[thread] = here[0], _thread.get_native_id()
    return found


def ident_of(which):
    found = known_threads()
    ident = getattr(which, "ident", which)
    number = as_number(ident)
    hits = [number] if number in found else []
    hits = hits or [ident for ident, (_, native) in found.items() if native is not None and native == number]
    hits = hits or [ident for ident, (name, _) in found.items() if name == which]
    if len(hits) == 1:
        return hits[0]
    shown = [(f"{ident:#x}", name or "without a name", f"tid {native}" if native else "tid unknown")
             for ident, (name, native) in found.items() if not hits or ident in hits]
    problem = f"{len(hits)} threads are" if hits else "no thread is"
    raise LookupError(f"{problem} {which!r}: give a name, an ident or a tid of {listed(shown)}")


def as_number(which):
    if isinstance(which, int):
        return int(which)
    try:
        return int(which, 0)
    except (TypeError, ValueError):
        return None


def listed(rows):
    more = f" and {len(rows) - 20} more" if len(rows) > 20 else ""
    return "; ".join(" ".join(row) for row in rows[:20]) + more


def task_frames(which=None):
    task = task_of(which)
    chain = awaited(task.get_coro())
    frames = [frame for frame in map(frame_of_awaited, chain) if frame is not None]
    if chain and any(getattr(chain[0], name, False) for name in ("cr_running", "gi_running")):
        # It runs: its coroutine's frame is on some thread's stack, with what it calls.
        for ident in sys._current_frames():
            stack = outward(frame_of_ident(ident))
            if frames and frames[0] in stack:
                return stack[stack.index(frames[0]):]
    return frames


def frame_of_awaited(one):
    for name in ("cr_frame", "gi_frame", "ag_frame"):
        frame = getattr(one, name, None)
        if frame is not None:
            return frame
    return None


def awaited(one):
    # From the task's own coroutine to the innermost thing that it awaits.
    chain, collector = [], builtin("gc")
    while one is not None and len(chain) < 1000:
        chain.append(one)
        kind = type(one).__name__
        if kind in ("async_generator_asend", "async_generator_athrow", "coroutine_wrapper"):
            # What they wrap has no name in Python.
            inner = [other for other in collector.get_referents(one) if frame_of_awaited(other) is not None]
            one = inner[0] if inner else None
            continue
        for name in ("cr_await", "gi_yieldfrom", "ag_await"):
            inner = getattr(one, name, None)
            if inner is not None:
                break
        one = inner
    return chain


def task_kinds():
    kinds = [getattr(asyncio_c, "Task", None), getattr(sys.modules.get("asyncio.tasks"), "_PyTask", None)]
    return tuple(kind for kind in kinds if kind is not None)


def all_tasks(kinds):
    # Those of other threads' loops too, which no list of asyncio's has.
    found = [one for one in builtin("gc").get_objects() if kinds and issubclass(type(one), kinds)]
    return [task for task in found if not task.done() and not is_script(task.get_coro())]


def is_script(coroutine):
    code = getattr(coroutine, "cr_code", None)
    return code is not None and code.co_filename == OURS


def task_of(which):
    kinds = task_kinds()
    if which is None:
        # A script that awaits has interrupted none: it is one.
        running = running_loop() if loop is None else None
        which = asyncio_c.current_task(running) if running is not None and asyncio_c is not None else None
        problem = "no task was interrupted"
    else:
        problem = f"no task is {which!r}"
    if kinds and issubclass(type(which), kinds):
        return which
    tasks = all_tasks(kinds)
    number = as_number(which)
    hits = [task for task in tasks if id(task) == number]
    hits = hits or [task for task in tasks if task.get_name() == which]
    if len(hits) == 1:
        return hits[0]
    if hits:
        problem = f"{len(hits)} tasks are {which!r}"
    shown = [(f"{id(task):#x}", task.get_name(), f"({getattr(task.get_coro(), '__qualname__', '?')})")
             for task in hits or tasks]
    raise LookupError(f"{problem}: give a name or an id of {listed(shown) or 'none, there are no tasks'}")
