# What runs inside a target: executes one script and writes what became of it into a file that is not the target's.
#
# It runs at a safe point of some thread, in the middle of somebody's program. So it imports nothing that is not built
# in and takes no lock (docs/scripts.md: a parked lock wait resumes in the script's place), keeps no descriptor open
# while the script runs, and leaves nothing behind. What it needs only at times is in parts, compiled when needed: half
# of the time from a request to its first statement is the compiler's. All of them are one module, whose names are
# cleared at the end, so that no circle is left to a garbage collector that may be off.
#
# The result is a row of records: one letter, the length of the payload as 8 bytes little-endian, the payload.
#   A accepted: a script that awaits is queued at its loop      S started, unless a W stands before it
#   W withdrawn: written from outside, nothing may start after  N not started after all, since a W came before the S
#   o e  a piece of stdout, stderr                              O E  total size in 8 bytes, then the last bytes
#   v  repr of the last expression's value                      j  the same as JSON
#   t m b  the exception: type, message, traceback              c  a letter and the full size of a record that was cut
#   i  modules imported, one per line                           s  signals consumed, a byte for each number
#   d  duration, nanoseconds in 8 bytes                         x  told to end, a byte: for which time
#   h  a signal's number: tripping it ends a blocked script     g  not any longer
#   F  finished; always the last, with which it is all over
OURS, NAME = "<sidewinder wrapper>", "<sidewinder>"
# Of each stream and text this many bytes from its beginning and from its end.
HEAD, TAIL = limits
# Code that awaits has this bit in co_flags (CO_COROUTINE).
COROUTINE = 0x80


def builtin(name):
    # Not through sys.modules: the application's list of modules stays as it is.
    module = sys.modules.get(name)
    if module is None and importlib["_imp"].is_builtin(name):
        spec = importlib["ModuleSpec"](name, None)
        module = importlib["_imp"].create_builtin(spec)
        importlib["_imp"].exec_builtin(module)
    return module


_imp, _thread = importlib["_imp"], importlib["_thread"]
posix, time, _io = builtin("posix"), builtin("time"), builtin("_io")
# Never made anew: that would take the handlers of all signals away.
_signal = sys.modules.get("_signal")
asyncio_c, asyncio_events = sys.modules.get("_asyncio"), sys.modules.get("asyncio.events")
pid, thread = posix.getpid(), _thread.get_ident()
# Where signal handlers run.
in_main = thread == _thread._get_main_thread_ident() and _thread._is_main_interpreter()
written, started, declined, ended, over = 0, False, False, False, False
failure, signals, codes, loop, release, contextvars, context = None, [], (), None, None, None, None
sinks, raws, proxies, absent, namespace, reserve, end_fd = [], [], {}, [], {}, None, None


def part(name):
    text = parts.pop(name, None)
    if text is not None:
        exec(compile(text, OURS, "exec", 0, True), globals())


def put(kind, payload=b""):
    # Opened anew each time: a script that closes or reuses descriptors harms neither itself nor the application. Gives
    # the result's size, None if it could not be written.
    global written
    if posix.getpid() != pid:
        return None
    record = kind + len(payload).to_bytes(8, "little") + payload
    try:
        fd = open_result()
    except OSError:
        return None
    before, whole = written, posix.fstat(fd).st_size
    try:
        view = memoryview(record)
        while view:
            count = posix.write(fd, view)
            written += count
            view = view[count:]
        return posix.fstat(fd).st_size
    except OSError:
        # There is no room left: half a record would swallow those that follow. Nothing else has come behind it: then it
        # is the end of what is ours.
        if written > before and posix.fstat(fd).st_size == whole + written - before:
            posix.ftruncate(fd, whole)
        written = before
        return None
    finally:
        posix.close(fd)


def open_result():
    low = []
    try:
        while True:
            fd = posix.open(result, posix.O_WRONLY | posix.O_APPEND | posix.O_CLOEXEC)
            if fd > 2:
                return fd
            # An application that closed these may still write to them.
            low.append(fd)
    finally:
        for number in low:
            posix.close(number)


def put_text(kind, text):
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > HEAD + TAIL:
        put(b"c", kind + len(data).to_bytes(8, "little"))
        gap = f"\n… {len(data) - HEAD - TAIL} bytes left out …\n".encode()
        data = data[:HEAD] + gap + data[-TAIL:]
    put(kind, data)


def streams():
    # The classes of an earlier script, where a garbage collector that is off has not taken them away.
    text = parts["streams"]
    for kind in type.__subclasses__(_io._BufferedIOBase):
        if type(kind) is type and type.__getattribute__(kind, "__dict__").get("source") == text:
            return kind
    names = {"__builtins__": __builtins__, "__name__": "_sidewinder", "Base": _io._BufferedIOBase, "source": text}
    exec(compile(text, OURS, "exec", 0, True), names)
    return names.pop("Sink")


def compiled():
    # PyCF_ONLY_AST, PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree = compile(script, NAME, "exec", 0x2400, True)
    last = tree.body.pop() if tree.body and type(tree.body[-1]).__name__ == "Expr" else None
    code = compile(tree, NAME, "exec", 0x2000, True)
    if last is None:
        return (code,)
    expression = compile("0", NAME, "eval", 0x400, True)
    expression.body = last.value
    # The __future__ statements of the rest count for it too.
    return code, compile(expression, NAME, "eval", 0x2000 | code.co_flags & 0x1FE0000, True)


def begin():
    # Whoever does not want the script any longer appends a W; which of the two comes first decides.
    global started, declined, began, modules
    if started or declined:
        return started
    size = put(b"S")
    if size != written:
        declined = True
        if size is not None:
            put(b"N")
        return False
    # Where stop.py finds it, whose functions become some of these.
    _imp.__dict__["_sidewinder " + result] = globals()
    started, modules, began = True, set(sys.modules), time.monotonic_ns()
    return True


def capture():
    global variable, contextvars
    sink = streams()
    # Made once, where it has to be made: a module is a circle.
    contextvars = sink.contextvars = sys.modules.get("_contextvars") or sink.contextvars or builtin("_contextvars")
    if contextvars is not None:
        variable = contextvars.ContextVar("sidewinder")
    else:
        # An extension module that nobody has loaded; the type is there all the same.
        kinds = (kind for kind in type.__subclasses__(object) if type(kind) is type)
        variable = next(kind for kind in kinds if kind.__name__ == "ContextVar")("sidewinder")
    for index, name in enumerate(("stdout", "stderr")):
        original = getattr(sys, name, None)
        raw = sink(put, b"oe"[index:index + 1], original, HEAD, TAIL, time.monotonic)
        raws.append(raw)
        sinks.append(_io.TextIOWrapper(raw, "utf-8", "backslashreplace", "", False, True))
        proxies[name] = sink.proxy(original, variable, index)


def install():
    for name, proxy in proxies.items():
        if not hasattr(sys, name):
            absent.append(name)
        setattr(sys, name, proxy)


def running_loop():
    module = asyncio_c or asyncio_events
    return module._get_running_loop() if module is not None else None


def qualified(kind):
    module = type.__getattribute__(kind, "__module__")
    name = type.__getattribute__(kind, "__qualname__")
    return name if module == "builtins" or not isinstance(module, str) else f"{module}.{name}"


def execute():
    exec(codes[0], namespace)
    if len(codes) > 1:
        value = eval(codes[1], namespace)
        part("value")
        report_value(value)


def in_context(call):
    # Of the script: what is printed there is the script's, and its variables are not the application's.
    global context
    if loop is not None:
        # Its task runs there.
        call()
    elif contextvars is not None:
        if context is None:
            context = contextvars.copy_context()
            context.run(variable.set, sinks)
        context.run(call)
    else:
        token = variable.set(sinks)
        try:
            call()
        finally:
            variable.reset(token)


def helper(name):
    def call(*args, **kwargs):
        part("frames")
        return globals()[name](*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    return call


def conclude():
    # Whatever a signal cut short is gone on with, here and when this is called again. The signal would otherwise be lost
    # to the application as well. What found no memory is tried again when the script's is free.
    global ended, steps, tries, reserve
    reserve = None
    if posix.getpid() != pid:
        # The script forked: its copy must not go on as a second application.
        posix._exit(0)
    if not ended:
        part("end")
        steps, tries = ending(), 0
        ended = True
    while steps:
        tries += 1
        step = steps[0]
        try:
            step()
        except BaseException as error:
            if tries < 20 and consumed(error):
                continue
            if tries < 20 and isinstance(error, MemoryError):
                steps.append(step)
        del steps[0]


def consumed(error):
    # Notes the signals whose handlers raised this; whether there are any.
    if isinstance(error, MemoryError) or _signal is None or not in_main:
        return False
    try:
        part("signals")
        found = raised_by(error)
        signals.extend(number for number in found if number not in signals)
        return bool(found)
    except BaseException:
        return False


def last():
    # What is left to do when nothing may come in between any more; it is done by going through these. None while the
    # script waits.
    global end_fd
    if not ended:
        return None
    if not started:
        return (), (), map(dict.clear, (globals(),))
    words = b"F" + bytes(8)
    if signals:
        words = b"s" + len(signals).to_bytes(8, "little") + bytes(signals) + words
    if end_fd is None:
        end_fd = open_result()
    return map(posix.write, (end_fd,), (words,)), map(posix.close, (end_fd,)), map(dict.clear, (globals(),))


HELPERS = "frame", "thread_frame", "thread_frames", "task_frame", "task_frames"
given = {name: helper(name) for name in HELPERS[1:]}


def _sidewinder(interrupted, result, _):
    # While this function is on a thread's stack a script runs there.
    global failure, namespace, reserve, codes, loop, given
    try:
        capture()
        given["frame"] = interrupted
        namespace = {"__name__": "__main__", "__builtins__": sys.modules.get("builtins", __builtins__), "__doc__": None}
        namespace |= given
        # For the case that there is no memory at the end: of Python's own small pieces, and of the C library's.
        reserve = [bytes(480) for _ in range(1000)], bytearray(1 << 20)
        codes = compiled()
        if any(code.co_flags & COROUTINE for code in codes):
            part("await")
            later(running_loop())
            return
        if begin():
            install()
            in_context(execute)
    except BaseException as error:
        failure = error
    conclude()
