# A part of the wrapper that comes with a second request, for a script that is not to run any longer. Nothing of it is
# turned on before, so nothing is slower before. It runs nested in the script, or, when that awaits, wherever its thread
# is. Its functions become the script's wrapper's own.
STOPPED = "stopped by sidewinder: it was not to run any longer"
# Seconds that a script has to undo things (finally, with) after it was first told.
GRACE = 0.25
# The wrapper's functions that call the script's code.
RUNNING = "execute", "report_value", "_sidewinder", "error_message", "forget"
guard, told, handled, own_codes, watched = None, {}, None, set(), []


def stop(interrupted, _, times):
    global release
    if over or posix.getpid() != pid:
        return
    release = undo
    put(b"x", bytes([min(times, 255)]))
    nested = script_frame(interrupted) is not None
    if loop is not None:
        if not nested:
            told.setdefault(thread, time.monotonic())
        cancel()
    handle()
    watch(interrupted if nested else None, times)


def script_frame(frame):
    # The wrapper's innermost frame among a frame's callers.
    while frame is not None and frame.f_globals is not globals():
        frame = frame.f_back
    return frame


def end_of_script():
    if loop is not None and _thread.get_ident() == thread:
        # A task's way to end. SystemExit would go through the application's loop, should a task of the script not
        # catch it.
        return sys.modules["asyncio.exceptions"].CancelledError(STOPPED)
    # No subclass: only SystemExit itself is silent where a thread ends by it.
    return SystemExit(STOPPED)


def cancel():
    # With the tasks that the script has made: they carry its context. Nothing in here looks up a name of the wrapper,
    # which may have ended when it runs.
    all_tasks, mark, mine = sys.modules["asyncio.tasks"].all_tasks, variable, sinks

    def cancel_tasks(loop=loop, message=STOPPED):
        for task in all_tasks(loop):
            if task.get_context().get(mark) is mine:
                task.cancel(message)

    loop.call_soon_threadsafe(cancel_tasks)


def watch(frame, times):
    # Local events on the code that is to end: first the script's own, then what it called in libraries as well. Code that
    # is on the stack now is enough, since a loop that does not end does not leave it.
    global guard
    monitoring = sys.monitoring
    events = monitoring.events
    # LINE alone misses a loop in one line; JUMP alone misses recursion and callbacks from C.
    wanted = (events.LINE, events.JUMP, events.BRANCH_LEFT, events.BRANCH_RIGHT, events.PY_START, events.PY_RESUME)
    if guard is None:
        # 0 is the debuggers', 1 coverage's, 2 the profilers', 5 the optimizer's.
        tool = next((tool for tool in (4, 3, 5, 2, 1, 0) if monitoring.get_tool(tool) is None), None)
        if tool is None:
            return
        monitoring.use_tool_id(tool, "sidewinder")
        guard = tool
        for event in wanted:
            monitoring.register_callback(tool, event, end)
    todo = list(codes)
    while frame is not None and frame.f_globals is not globals():
        code, frame = frame.f_code, frame.f_back
        # Code that the script made with exec or eval, at once.
        made = code.co_filename.startswith("<") and not code.co_filename.startswith("<frozen ")
        if made and code.co_filename != OURS:
            todo.append(code)
        elif times > 1 and code.co_filename != OURS and id(code) not in own_codes:
            watched.append(code)
            monitoring.set_local_events(guard, code, sum(wanted))
    while todo:
        code = todo.pop()
        if id(code) not in own_codes:
            own_codes.add(id(code))
            watched.append(code)
            monitoring.set_local_events(guard, code, sum(wanted))
            todo += [inner for inner in code.co_consts if type(inner) is type(code)]


def end(code, *_):
    try:
        if guard is None or not concerned(code):
            return
        # What undoes things in the script gets its turn, and what swallows the first does not last.
        now, here = time.monotonic(), _thread.get_ident()
        if now - told.setdefault(here, now) < GRACE and told[here] != now:
            return
        error = end_of_script()
    except NameError:
        # Another thread's script ended meanwhile, and the wrapper's names with it.
        return
    raise error


def concerned(code):
    own = id(code) in own_codes
    if variable.get(None) is not sinks:
        # The application's threads and tasks run on, also in functions that the script gave them.
        return own and _thread.get_ident() != thread and started_by_script(sys._getframe(2))
    if own:
        return True
    # Not in the midst of what Python itself calls at any time.
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals is not globals() and id(frame.f_code) not in own_codes:
        if frame.f_code.co_name == "__del__":
            return False
        frame = frame.f_back
    return True


def started_by_script(frame):
    # The outermost function that is not the library's own is the script's.
    outermost = None
    while frame is not None:
        if frame.f_globals.get("__name__") not in ("threading", "concurrent.futures.thread"):
            outermost = frame.f_code
        frame = frame.f_back
    return id(outermost) in own_codes


def own_threads():
    return [ident for ident, frame in sys._current_frames().items() if ident != thread and started_by_script(frame)]


def handle():
    # For a script that is blocked in a call: no signal is sent, but the flag of one that nobody uses is set from outside.
    # Its default action is to do nothing, should it come from elsewhere.
    global handled
    if handled is not None or _signal is None or not in_main or _thread.get_ident() != thread:
        return
    for number in (_signal.SIGURG, _signal.SIGWINCH):
        if _signal.getsignal(number) == _signal.SIG_DFL:
            _signal.signal(number, tripped)
            handled = int(number)
            put(b"h", bytes([handled]))
            return


def tripped(_, frame):
    # Not in the midst of the wrapper's own work or of another request to end, and not in the application's part of the
    # thread: only where the first frame of ours among the callers is one that runs the script.
    while frame is not None and frame.f_code.co_filename != OURS and "ROUND" not in frame.f_code.co_names:
        frame = frame.f_back
    if frame is not None and frame.f_globals is globals() and frame.f_code.co_name in RUNNING:
        raise end_of_script()


def undo():
    global guard, handled
    if handled is not None:
        # First the word: who sees it, with the thread stopped, does not trip a handler that is gone a moment later.
        number, handled = handled, None
        put(b"g")
        if _signal.getsignal(number) is tripped:
            _signal.signal(number, _signal.SIG_DFL)
    # The threads that the script has started end where they run its code, which they come to when they get a turn.
    limit = time.monotonic() + 4 * GRACE
    while guard is not None and time.monotonic() < limit and own_threads():
        time.sleep(0.002)
    if guard is not None:
        # It takes the events and the callbacks with it.
        tool, guard = guard, None
        sys.monitoring.free_tool_id(tool)
