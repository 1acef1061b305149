"""What the standard library's own reader says of a process, with frames innermost last; run by the same Python."""

import json
import sys

import _remote_debugging


def text(of):
    # No document can carry half of a surrogate pair.
    return of.encode(errors="replace").decode()


def line(frame):
    # 3.15 has a location where 3.14 has a line.
    return frame.lineno if hasattr(frame, "lineno") else frame.location and frame.location.lineno


def places(frames):
    return [[text(frame.funcname), text(frame.filename), line(frame)] for frame in reversed(frames)]


def threads(reader):
    found = reader.get_stack_trace()
    if found and hasattr(found[0], "interpreter_id"):
        return [[info.interpreter_id, thread.thread_id, places(thread.frame_info)] for info in found for thread in info.threads]
    return [[0, thread.thread_id, places(thread.frame_info)] for thread in found]


def tasks(reader):
    return {
        f"{task.task_id:#x}": {
            "tid": awaited.thread_id,
            "name": text(task.task_name),
            "coroutine": [place for part in task.coroutine_stack for place in places(part.call_stack)],
            "awaitedBy": sorted(f"{waiter.task_name:#x}" for waiter in task.awaited_by),
        }
        for awaited in reader.get_all_awaited_by()
        for task in awaited.awaited_by
    }


def answer(ask, reader):
    try:
        return {"found": ask(reader)}
    except Exception as error:
        # The first cause says what was wrong.
        while error.__cause__ or error.__context__:
            error = error.__cause__ or error.__context__
        return {"error": f"{type(error).__name__}: {error}"}


reader = _remote_debugging.RemoteUnwinder(int(sys.argv[1]), all_threads=True)
print(json.dumps({"threads": answer(threads, reader), "tasks": answer(tasks, reader)}))
