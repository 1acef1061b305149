"""Threads blocked in every kind of frame. The program says of itself where they stand: one line of JSON, then stands."""

import _thread, ctypes, functools, gc, importlib.util, itertools, json, operator, os, re, sys, tempfile, threading

sys.setrecursionlimit(60_000)
gate = threading.Lock()
gate.acquire()
arrived = threading.Lock()
arrived.acquire()


def block(*_):
    # One line and no Python frame beneath: from the moment it says that it has arrived, where it stands is the same.
    arrived.release(), gate.acquire()


def generated(source, name, file="<string>"):
    space = {"block": block}
    exec(compile(source, file, "exec"), space)
    return space[name]


# Location tables beyond what fits a page, and beyond 64 KiB.
def long_function(lines):
    body = "".join(f"    x{n % 7} = {n} if {n} else (x0, {n})\n" for n in range(lines))
    function = generated(f"def long_function(x0=0, x1=0):\n{body}    block()\n    return x0\n", "long_function")
    assert len(function.__code__.co_linetable) > lines * 2
    return function


def several_lines():
    value = {
        "first": 1,
        "second": [
            each
            for each in (
                1,
                2,
            )
            if not block(
                each,
                f"""text {
                    each
                } over lines""",
            )
        ],
    }
    return value


def chained():
    return (
        "a,b"
        .split(",")
        .__class__(
            map(
                block,
                [
                    1,
                ],
            )
        )
    )


@functools.wraps(
    several_lines
)
def decorated(
    first=1,
    *,
    second=2,
):
    with (
        open(os.devnull) as one,
        open(os.devnull) as two,
    ):
        try:
            raise ValueError
        except (
            KeyError,
            ValueError,
        ):
            return block(
                one,
                two
            ) or (
                first
            )


class Größe:
    class Ünï:
        def 日本(self):
            𝔘𝔫𝔦 = lambda: block()
            return 𝔘𝔫𝔦()

    @property
    def naïve(self):
        return self.Ünï().日本()


def class_body():
    class Outer:
        first = 1

        class Inner:
            second = block()

    return Outer


def expressions():
    def inner():
        yield from (each for each in [block()])

    return [[*inner()] for _ in range(1)], {1: (lambda: 1)()}


def coroutine():
    class Awaits:
        def __await__(self):
            yield block()

    async def agen():
        await Awaits()
        yield 1

    async def outer():
        async for each in agen():
            return [each async for each in agen()]

    outer().send(None)


def across_c():
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

    def by_key(value):
        return re.sub("a", lambda match: functools.reduce(lambda a, b: deep_c(b), [1, 2]), "banana")

    def deep_c(value):
        numbers = (ctypes.c_int * 2)(2, 1)
        ctypes.CDLL(None).qsort(numbers, 2, ctypes.sizeof(ctypes.c_int), compare(called_back))

    def called_back(one, other):
        sum(map(operator.methodcaller("answer"), [Attribute()]))
        return 0

    class Attribute:
        def __getattr__(self, name):
            return functools.partial(functools.lru_cache(self.cached), 1)

        def cached(self, value):
            json.loads("{}", object_hook=hook)

    def hook(value):
        next(itertools.filterfalse(block, [1]))

    return sorted([2, 1], key=by_key)


class Finalized:
    def __del__(self):
        block()


def finalizer():
    it = Finalized()
    it = None


def in_except():
    class Refused(LookupError):
        pass

    def generator():
        try:
            raise KeyError("inner")
        except KeyError:
            yield 1

    held = generator()
    next(held)
    try:
        raise Refused("näht: " + "x" * 10)
    except Refused:
        for _ in map(str, [1]):
            block()


def in_finally():
    try:
        raise OSError(2, "no such thing")
    finally:
        block()


def in_generator_except():
    def generator():
        try:
            raise KeyError(("no", "text"))
        except KeyError:
            block()
        yield

    try:
        raise ValueError
    except ValueError:
        next(generator())


def after_except():
    try:
        raise ValueError
    except ValueError:
        pass
    block()


imports = tempfile.TemporaryDirectory()


def importing():
    with open(f"{imports.name}/blocks_on_import.py", "w") as file:
        file.write("import __main__\n\n\ndef first():\n    __main__.block()\n\n\nfirst()\n")
    sys.path.insert(0, imports.name)
    import blocks_on_import


def deep(n):
    if n == 0:
        return block()
    return deep(n - 1)


def without_lines():
    block()


without_lines.__code__ = without_lines.__code__.replace(co_linetable=b"")


def moved():
    block()


moved.__code__ = moved.__code__.replace(co_firstlineno=2**30)
long_name = "f" + "ü" * 3000
surrogate = "/tmp/b\udcffd " + "日" * 40 + "🐍.py"


def traced():
    def tracer(frame, event, arg):
        if event == "exception":
            block()
        return tracer

    def raises():
        raise RuntimeError("traced")

    sys.settrace(tracer)
    try:
        raises()
    except RuntimeError:
        pass


def collecting():
    def on_collection(phase, info):
        if phase == "start" and threading.current_thread().name == "collecting":
            block()

    gc.callbacks.append(on_collection)
    gc.collect()


scenes = {
    "long": long_function(3_000),
    "longer": long_function(40_000),
    "several lines": several_lines,
    "chained": chained,
    "decorated": decorated,
    "grö\u00dfer 日本 🐍 als fünfzehn Bytes": lambda: Größe().naïve,
    "class body": class_body,
    "expressions": expressions,
    "coroutine": coroutine,
    "across C": across_c,
    "finalizer": finalizer,
    "in except": in_except,
    "in finally": in_finally,
    "in generator's except": in_generator_except,
    "after except": after_except,
    "importing": importing,
    "deep": lambda: deep(30_000),
    "without lines": without_lines,
    "moved": moved,
    "long name": generated(f"def {long_name}():\n    block()\n", long_name),
    "odd file": generated("\n" * 70_000 + "def odd():\n\n    block()\n", "odd", surrogate),
    "eval": lambda: eval("[\n1,\nblock(), block\n()]"),
    "traced": traced,
    "n" * 2000: block,
}
if "COLLECT" in os.environ:
    scenes["collecting"] = collecting
for name, scene in scenes.items():
    threading.Thread(target=scene, name=name, daemon=True).start()
    arrived.acquire()
imports.cleanup()
main = threading.main_thread()
main.name = "the main thread, renamed"


def stack(frame):
    frames = []
    while frame:
        code = frame.f_code
        file = re.sub("[\ud800-\udfff]", "\ufffd", code.co_filename)
        frames.append([code.co_qualname, file, frame.f_lineno])
        frame = frame.f_back
    return frames[::-1]


def qualified(kind):
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def handled(error):
    if error is None:
        return None
    said = {"type": qualified(type(error))}
    if error.args and isinstance(error.args[0], str):
        said["message"] = error.args[0]
    return said


def report():
    _thread.start_new_thread(foreign, ())
    arrived.acquire()
    main_arrived.acquire()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    errors = sys._current_exceptions()
    said = {
        hex(ident): {"name": names[ident], "stack": stack(frame), "exception": handled(errors[ident])}
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    }
    print("ready", flush=True)
    print(json.dumps(said), flush=True)
    gate.acquire()


def foreign():
    threading.current_thread()
    block()


main_arrived = threading.Lock()
main_arrived.acquire()
threading.Thread(target=report, name="reporter", daemon=True).start()
main_arrived.release(), gate.acquire()
