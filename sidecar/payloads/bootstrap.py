# The last part of every text that a target compiles. It compiles the rest under a name of its own, so that frames of it
# are known for what they are, and calls it.
#
# In front of it stand RESULT, the path to append to; TEXT, what to compile; ROUND, 0 for a script, otherwise how often
# the script was told to end; for a script SCRIPT, its source, and PARTS, what the wrapper compiles when it needs it.
def room(calls):
    if calls:
        room(calls - 1)


try:
    importlib = __builtins__["__spec__"].loader.create_module.__globals__
    sys, limit, names = importlib["sys"], 0, None
    try:
        # Nobody's stack is that deep but in a recursion that runs away, which is a good reason to have a look.
        room(150)
    except RecursionError:
        # When this fails nothing can be called any more, so nothing was changed that could not be undone.
        room(0)
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(limit + 500)
    try:
        if ROUND:
            names = importlib["_imp"].__dict__.get("_sidewinder " + RESULT)
        else:
            names = {"__builtins__": __builtins__, "__name__": "_sidewinder", "importlib": importlib, "sys": sys}
            names |= {"script": SCRIPT, "result": RESULT, "parts": PARTS}
        if names is not None:
            if "stop" not in names:
                exec(compile(TEXT, "<sidewinder wrapper>", "exec", 0, True), names)
            names["stop" if ROUND else "_sidewinder"](sys._getframe().f_back, RESULT, ROUND)
    finally:
        if limit and sys.getrecursionlimit() == limit + 500:
            sys.setrecursionlimit(limit)
except BaseException as error:
    # Whatever leaves this text is printed on the application's stderr. Nothing is called here that needs a frame.
    try:
        if not ROUND and (names is None or not names.get("started")):
            posix = importlib["sys"].modules["posix"]
            kind, text = type(error).__name__.encode(), b"sidewinder could not start the script here"
            fd = posix.open(RESULT, posix.O_WRONLY | posix.O_APPEND | posix.O_CLOEXEC)
            try:
                record = b"S" + bytes(8) + b"t" + len(kind).to_bytes(8, "little") + kind
                record += b"m" + len(text).to_bytes(8, "little") + text + b"F" + bytes(8)
                posix.write(fd, record)
            finally:
                posix.close(fd)
    except BaseException:
        pass
# Nothing is left to the garbage collector, which may be off.
globals().clear()
