# What runs inside a target: executes one script and writes what became of it into a file that is not the target's.
#
# Two names are put in front of this text: SCRIPT, the source as bytes, and RESULT, the path to append to.
# It runs at a safe point of some thread, in the middle of somebody's program. So it imports nothing that is not built
# in and takes no lock (docs: a parked lock wait resumes in the script's place), keeps no descriptor open while the
# script runs, and leaves nothing behind.
#
# The result is a row of records: one letter, the length of the payload as 8 bytes little-endian, the payload.
#   S started                 o e  a piece of stdout, stderr       O E  total size in 8 bytes, then the last bytes
#   v repr of the last expression's value    j  the same as JSON   t m b  the exception: type, message, traceback
#   i modules imported, one per line         s  signals consumed   d  duration, nanoseconds in 8 bytes
#   c a letter and the full size of a record that was cut          F  finished; always the last
#   x stopped: at the deadline a second request, nested in the script, calls stop
def _sidewinder(script, result, interrupted):
    import sys

    import builtins
    import posix
    import time
    import _imp
    import _io
    import _thread

    HEAD, TAIL = 12 << 20, 4 << 20
    NAME = "<sidewinder>"
    STOPPED = "stopped by sidewinder: it was not to run any longer"
    # Seconds.
    GRACE = 0.25
    pid = posix.getpid()

    def builtin(name):
        # Not through sys.modules: the application's list of modules stays as it is.
        module = sys.modules.get(name)
        if module is None:
            spec = sys.modules["_frozen_importlib"].ModuleSpec(name, None)
            module = _imp.create_builtin(spec)
            _imp.exec_builtin(module)
        return module

    def put(kind, payload=b""):
        # Opened anew each time: a script that closes or reuses descriptors harms neither itself nor the application.
        if posix.getpid() != pid:
            return
        record = kind + len(payload).to_bytes(8, "little") + payload
        try:
            fd = posix.open(result, posix.O_WRONLY | posix.O_APPEND | posix.O_CLOEXEC)
        except OSError:
            return
        try:
            view = memoryview(record)
            while view:
                view = view[posix.write(fd, view):]
        except OSError:
            pass
        finally:
            posix.close(fd)

    def put_text(kind, text):
        data = text.encode("utf-8", "backslashreplace")
        if len(data) > HEAD + TAIL:
            put(b"c", kind + len(data).to_bytes(8, "little"))
            gap = f"\n… {len(data) - HEAD - TAIL} bytes left out …\n".encode()
            data = data[:HEAD] + gap + data[-TAIL:]
        put(kind, data)

    class Sink(_io._BufferedIOBase):
        def __init__(self, kind):
            self.kind, self.room, self.total = kind, HEAD, 0
            self.pending, self.tail = bytearray(), bytearray()
            self.flushes, self.flushed = 0, 0.0

        def writable(self):
            return True

        def write(self, data):
            data = bytes(data)
            self.total += len(data)
            if self.room:
                first, data_left = data[:self.room], data[self.room:]
                self.room -= len(first)
                self.pending += first
                # The first lines at once, so that a script that never ends has shown them; later ones in bunches.
                if len(self.pending) >= 1 << 16 or b"\n" in first and (
                    self.flushes < 256 or time.monotonic() - self.flushed > 0.01
                ):
                    self.emit()
            else:
                data_left = data
            if data_left:
                self.tail += data_left
                if len(self.tail) > 2 * TAIL:
                    del self.tail[:-TAIL]
            return len(data)

        def emit(self):
            if self.pending:
                data, self.pending = bytes(self.pending), bytearray()
                self.flushes += 1
                self.flushed = time.monotonic()
                put(self.kind, data)

        def end(self):
            self.emit()
            if self.total > HEAD:
                put(self.kind.upper(), self.total.to_bytes(8, "little") + bytes(self.tail[-TAIL:]))

    class Proxy:
        # Only what runs in the script's context goes to its sink; everybody else goes through, also for ever after,
        # should somebody have kept it.
        def __init__(self, original, variable, index):
            object.__setattr__(self, "_sidewinder", (original, variable, index))

        def write(self, text):
            original, variable, index = object.__getattribute__(self, "_sidewinder")
            sinks = variable.get(None)
            if sinks:
                return sinks[index].write(text)
            return original.write(text) if original is not None else len(text)

        def __getattr__(self, name):
            original, variable, index = object.__getattribute__(self, "_sidewinder")
            sinks = variable.get(None)
            return getattr(sinks[index] if sinks else original, name)

        def __setattr__(self, name, value):
            original, variable, index = object.__getattribute__(self, "_sidewinder")
            setattr(original, name, value)

        def __iter__(self):
            return iter(object.__getattribute__(self, "_sidewinder")[0])

        def __repr__(self):
            return repr(object.__getattribute__(self, "_sidewinder")[0])

    escapes = {i: f"\\u{i:04x}" for i in range(32)}
    escapes |= {34: '\\"', 92: "\\\\", 10: "\\n", 13: "\\r", 9: "\\t", 127: "\\u007f"}

    class NotJSON(Exception):
        pass

    def json(value):
        parts, budget = [], [HEAD]

        def emit(part):
            budget[0] -= len(part)
            if budget[0] < 0:
                raise NotJSON
            parts.append(part)

        def string(text):
            text = str.translate(text, escapes)
            if not str.isascii(text) and any("\ud800" <= c <= "\udfff" for c in text):
                text = "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text)
            emit(f'"{text}"')

        def walk(value, depth):
            kind = type(value)
            if value is None:
                emit("null")
            elif kind is bool:
                emit("true" if value else "false")
            elif kind is int:
                emit(int.__repr__(value))
            elif kind is float:
                if value != value or value in (float("inf"), float("-inf")):
                    raise NotJSON
                emit(float.__repr__(value))
            elif kind is str:
                string(value)
            elif depth > 50:
                raise NotJSON
            elif kind is list or kind is tuple:
                emit("[")
                for index, item in enumerate(value):
                    if index:
                        emit(", ")
                    walk(item, depth + 1)
                emit("]")
            elif kind is dict:
                emit("{")
                for index, (key, item) in enumerate(value.items()):
                    if type(key) is not str:
                        raise NotJSON
                    if index:
                        emit(", ")
                    string(key)
                    emit(": ")
                    walk(item, depth + 1)
                emit("}")
            else:
                raise NotJSON

        walk(value, 0)
        return "".join(parts)

    def qualified(kind):
        module = type.__getattribute__(kind, "__module__")
        name = type.__getattribute__(kind, "__qualname__")
        return name if module == "builtins" or not isinstance(module, str) else f"{module}.{name}"

    def message(error):
        try:
            return str(error)
        except BaseException as failure:
            return f"<str() raised {qualified(type(failure))}>"

    lines = script.decode("utf-8", "replace").splitlines()

    def source(filename, number, files):
        if filename == NAME:
            text = lines
        elif filename.startswith("<"):
            return ""
        else:
            text = files.get(filename)
            if text is None:
                text = []
                try:
                    with _io.open(filename, "rb", buffering=0) as file:
                        text = file.read(4 << 20).decode("utf-8", "replace").splitlines()
                except (OSError, ValueError):
                    pass
                files[filename] = text
        return text[number - 1].strip() if number and 0 < number <= len(text) else ""

    own = _sidewinder.__code__

    def ours(code):
        return code.co_filename == own.co_filename and code.co_qualname.startswith("_sidewinder")

    def trace(error, files, seen, depth):
        out = []
        if error is None or id(error) in seen or depth > 20:
            return out
        seen.add(id(error))
        cause, context = error.__cause__, error.__context__
        if cause is not None:
            out += trace(cause, files, seen, depth + 1)
            out.append("\nThe above exception was the direct cause of the following exception:\n\n")
        elif context is not None and not error.__suppress_context__ and not isinstance(context, NotJSON):
            before = trace(context, files, seen, depth + 1)
            if before:
                out += before
                out.append("\nDuring handling of the above exception, another exception occurred:\n\n")
        entries = []
        step = error.__traceback__
        while step is not None:
            code = step.tb_frame.f_code
            if not ours(code):
                entries.append((code, step.tb_lineno))
            step = step.tb_next
        if entries:
            out.append("Traceback (most recent call last):\n")
            if len(entries) > 200:
                left = len(entries) - 200
                entries[100:-100] = [(None, left)]
            for code, number in entries:
                if code is None:
                    out.append(f"  [{number} frames left out]\n")
                    continue
                out.append(f'  File "{code.co_filename}", line {number}, in {code.co_qualname}\n')
                line = source(code.co_filename, number, files)
                if line:
                    out.append(f"    {line[:400]}\n")
        text = message(error)
        if isinstance(error, SyntaxError) and isinstance(error.lineno, int) and error.filename:
            out.append(f'  File "{error.filename}", line {error.lineno}\n')
            line = error.text if isinstance(error.text, str) else source(error.filename, error.lineno, files)
            line = (line or "").rstrip("\n")
            bare = line.lstrip()
            if bare:
                out.append(f"    {bare[:400]}\n")
                if isinstance(error.offset, int) and error.offset > 0:
                    column = max(error.offset - 1 - (len(line) - len(bare)), 0)
                    if column <= len(bare) < 400:
                        end = error.end_offset if error.end_lineno == error.lineno else None
                        width = max((end or 0) - error.offset, 1)
                        out.append(f"    {' ' * column}{'^' * min(width, 400)}\n")
            text = str(error.msg)
        kind = qualified(type(error))
        out.append(f"{kind}: {text}\n" if text else f"{kind}\n")
        for note in getattr(error, "__notes__", None) or ():
            out.append(f"{note}\n")
        if isinstance(error, BaseExceptionGroup):
            for index, inner in enumerate(error.exceptions[:15], 1):
                out.append(f"  +---------------- {index} ----------------\n")
                inside = "".join(trace(inner, files, seen, depth + 1))
                out += [f"  | {line}\n" for line in inside.splitlines()]
        return out

    def from_signal(error):
        # default_int_handler raises without a frame of its own, so the instruction it hit is no raise statement.
        if type(error) is not KeyboardInterrupt or _thread.get_ident() != _thread._get_main_thread_ident():
            return False
        signal = builtin("_signal")
        if signal.getsignal(2) is not signal.default_int_handler:
            return False
        step = error.__traceback__
        while step is not None and step.tb_next is not None:
            step = step.tb_next
        if step is None:
            return True
        code = step.tb_frame.f_code
        position = next((p for i, p in enumerate(code.co_positions()) if i * 2 == step.tb_lasti), None)
        line = source(code.co_filename, position[0] if position else 0, {})
        return "raise" not in line

    codes, guard = [], []

    def release():
        codes.clear()
        while guard:
            # It takes the events and the callbacks with it.
            sys.monitoring.free_tool_id(guard.pop())

    def stop(interrupted):
        # Called by a request that runs nested in the script. Nothing is turned on before, so nothing is slower before.
        if not codes or guard or posix.getpid() != pid:
            return
        monitoring, thread, first = sys.monitoring, _thread.get_ident(), []
        events = monitoring.events
        # LINE alone misses a loop in one line; JUMP alone misses recursion and callbacks from C.
        wanted = (events.LINE, events.JUMP, events.BRANCH_LEFT, events.BRANCH_RIGHT, events.PY_START, events.PY_RESUME)
        # 0 is the debuggers', 1 coverage's, 2 the profilers', 5 the optimizer's.
        tool = next((tool for tool in (4, 3, 5, 2, 1, 0) if monitoring.get_tool(tool) is None), None)
        if tool is None:
            return

        def end(*_):
            if not guard or _thread.get_ident() != thread:
                return
            # What undoes things in the script (finally, with) gets its turn, and what swallows the first does not last.
            now = time.monotonic()
            if not first:
                first.append(now)
            elif now - first[0] < GRACE:
                return
            # No subclass: only SystemExit itself is silent where an application's thread ends by it.
            raise SystemExit(STOPPED)

        monitoring.use_tool_id(tool, "sidewinder")
        guard.append(tool)
        put(b"x")
        for event in wanted:
            monitoring.register_callback(tool, event, end)
        todo = list(codes)
        while interrupted is not None and interrupted.f_code is not own:
            # Code that the script made with exec or eval; a library's frames are left to end by themselves.
            code, interrupted = interrupted.f_code, interrupted.f_back
            if code.co_filename.startswith("<") and not code.co_filename.startswith("<frozen ") and not ours(code):
                todo.append(code)
        while todo:
            code = todo.pop()
            monitoring.set_local_events(tool, code, sum(wanted))
            todo += [inner for inner in code.co_consts if type(inner) is type(code)]

    def run(namespace):
        # PyCF_ONLY_AST
        tree = compile(script, NAME, "exec", 0x400, True)
        last = tree.body.pop() if tree.body and type(tree.body[-1]).__name__ == "Expr" else None
        code = compile(tree, NAME, "exec", 0, True)
        expression = None
        if last is not None:
            expression = compile("0", NAME, "eval", 0x400, True)
            expression.body = last.value
            # The __future__ statements of the rest count for it too.
            expression = compile(expression, NAME, "eval", code.co_flags & 0x1FE0000, True)
        codes.append(code)
        if expression is not None:
            codes.append(expression)
        exec(code, namespace)
        if expression is None:
            return
        value = eval(expression, namespace)
        try:
            text = repr(value)
        except Exception as failure:
            text = f"<{qualified(type(value))} object whose repr() raised {qualified(type(failure))}>"
        put_text(b"v", text)
        try:
            put(b"j", json(value).encode("utf-8"))
        except Exception:
            # No JSON for it: another type, a cycle, a number with too many digits.
            pass

    put(b"S")
    signals = []
    began = time.monotonic_ns()
    modules = set(sys.modules)
    variable = builtin("_contextvars").ContextVar("sidewinder")
    raw = Sink(b"o"), Sink(b"e")
    sinks = [_io.TextIOWrapper(sink, "utf-8", "backslashreplace", "", False, True) for sink in raw]
    originals = sys.stdout, sys.stderr
    proxies = [Proxy(original, variable, index) for index, original in enumerate(originals)]
    namespace = {"__name__": "__main__", "__builtins__": builtins, "__doc__": None, "frame": interrupted}

    def inside():
        variable.set(sinks)
        run(namespace)

    failure = None
    try:
        sys.stdout, sys.stderr = proxies
        builtin("_contextvars").copy_context().run(inside)
    except BaseException as error:
        failure = error
    if posix.getpid() != pid:
        # The script forked: its copy must not go on as a second application.
        posix._exit(0)

    def restore():
        if sys.stdout is proxies[0]:
            sys.stdout = originals[0]
        if sys.stderr is proxies[1]:
            sys.stderr = originals[1]

    def flush():
        for text, sink in zip(sinks, raw):
            text.flush()
            sink.end()
        # Closed for whoever still holds the context: what comes now goes to the application's own stream.
        sinks.clear()

    def explain():
        if failure is not None:
            if from_signal(failure):
                signals.append("SIGINT")
            put_text(b"b", "".join(trace(failure, {}, set(), 0)))
            put_text(b"m", message(failure))
            put_text(b"t", qualified(type(failure)))

    def wake():
        # A loop that sleeps does not see what the script scheduled.
        module = sys.modules.get("_asyncio")
        loop = module._get_running_loop() if module is not None else None
        if loop is not None:
            loop.call_soon_threadsafe(int)

    def report():
        put(b"d", (time.monotonic_ns() - began).to_bytes(8, "little"))
        new = [name for name in list(sys.modules) if name not in modules and isinstance(name, str)]
        if new:
            put_text(b"i", "\n".join(sorted(new)[:4096]))
        if signals:
            put_text(b"s", "\n".join(signals))

    # A signal that arrives in here would otherwise be lost to the application as well.
    for step in restore, flush, explain, wake, report, release, lambda: put(b"F"):
        for _ in range(3):
            try:
                step()
                break
            except KeyboardInterrupt:
                if "SIGINT" not in signals:
                    signals.append("SIGINT")
            except BaseException:
                break


try:
    _sidewinder(SCRIPT, RESULT, __import__("sys")._getframe().f_back)
except BaseException:
    # Whatever leaves this text is printed on the application's stderr.
    pass
