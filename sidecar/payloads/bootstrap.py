# The last part of every text that a target compiles. It compiles the rest under a name of its own, so that frames of it
# are known for what they are, and calls it.
#
# In front of it stand RESULT, the path to append to; PID, the process that it is for; TEXT, what to compile; ROUND, 0 for
# a script, otherwise how often the script was told to end; for a script SCRIPT, its source, PARTS, what the wrapper
# compiles when it needs it, and LIMITS, how much of each stream and text is kept from its beginning and its end, in bytes.
def room(calls):
    if calls:
        room(calls - 1)


names, limit, ends = None, 0, None
for attempt in range(4):
    try:
        if attempt == 0:
            importlib = __builtins__["__spec__"].loader.create_module.__globals__
            sys = importlib["sys"]
            posix = sys.modules.get("posix")
            if posix is not None and posix.getpid() != PID:
                # A copy of that process, forked while the request waited: C code that forks need not tell Python.
                room = None
                break
            # An audit hook may refuse it, so before there is a wrapper that would take it for the script's end.
            interrupted = sys._getframe().f_back
            try:
                # Nobody's stack is that deep but in a recursion that runs away, which is a good reason to have a look.
                room(150)
            except RecursionError:
                # When this fails nothing can be called any more, so nothing was changed that could not be undone.
                room(0)
                limit = sys.getrecursionlimit()
                sys.setrecursionlimit(limit + 500)
            if ROUND:
                names = importlib["_imp"].__dict__.get("_sidewinder " + RESULT, {})
            else:
                names = {"__builtins__": __builtins__, "__name__": "_sidewinder", "importlib": importlib, "sys": sys}
                names |= {"script": SCRIPT, "result": RESULT, "parts": PARTS, "limits": LIMITS}
            if names:
                if "stop" not in names:
                    exec(compile(TEXT, "<sidewinder wrapper>", "exec", 0, True), names)
                names["stop" if ROUND else "_sidewinder"](interrupted, RESULT, ROUND)
        elif not ROUND:
            names["conclude"]()
        if not ROUND:
            ends = names["last"]()
    except BaseException as error:
        # Whatever leaves this text is printed on the application's stderr, and a signal that came is lost.
        try:
            if names and "consumed" in names:
                names["consumed"](error)
                if attempt < 3:
                    continue
            elif not ROUND:
                # Nothing is called here that needs a frame.
                posix = importlib["sys"].modules["posix"]
                kind, text = type(error).__name__.encode(), b"sidewinder could not start the script here"
                if error.args and type(error.args[0]) is str:
                    text += b": " + error.args[0].encode("utf-8", "backslashreplace")
                record = b"S" + bytes(8) + b"t" + len(kind).to_bytes(8, "little") + kind
                record += b"m" + len(text).to_bytes(8, "little") + text + b"F" + bytes(8)
                fd = posix.open(RESULT, posix.O_WRONLY | posix.O_APPEND | posix.O_CLOEXEC)
                ends = map(posix.write, (fd,), (record,)), map(posix.close, (fd,)), ()
        except BaseException:
            pass
    try:
        if limit and sys.getrecursionlimit() == limit + 500:
            sys.setrecursionlimit(limit)
        # Or the garbage collector, which may be off, had to come.
        room = None
        if ends:
            # The last record, the end of its descriptor, and of all that is the wrapper's. From here on no instruction
            # looks for signals, up to those of the application: whoever reads the record may send one.
            [*ends[0], *ends[1], *ends[2]]
        break
    except BaseException as error:
        try:
            names["consumed"](error)
        except BaseException:
            pass
