"""Every kind of frame with every kind of variable. Says on stdout what each variable is: its type and its text.

Where `repr` of the value is the truth, it is asked. Where it is not (a value with a class's own `repr`, one that is
clipped, a secret), SAYS has the text, written by hand.
"""

import array
import asyncio
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import json
import os
import sys
import threading
import types
import typing

event = threading.Event()
SAYS = {}
# Where objects are that a test gives impossible sizes.
IDS = {}


def at(value):
    return f"{id(value):#x}"


def full_name(cls):
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def instance(value):
    return f"<{full_name(type(value))} at {at(value)}>"


def says(**texts):
    """What a value's text is where `repr` does not tell."""

    def of(function):
        SAYS[function.__qualname__] = texts
        return function

    return of


class Color(enum.Enum):
    RED = 1
    GREEN = "g"


class Level(enum.IntEnum):
    HIGH = 3


class Permission(enum.Flag):
    READ = 1
    WRITE = 2


class Plain:
    def __init__(self):
        self.id = 7
        self.state = "open"
        self.rows = [1, 2, 3]
        self.api_key = "hunter2"

    def méthode(self, argument):
        nested = self
        event.wait()
        return nested


class Slotted:
    __slots__ = ("first", "second", "_password")

    def __init__(self):
        self.first, self._password = 1, "hunter2"


class Child(Slotted):
    def __init__(self):
        super().__init__()
        self.third = 3.5


class Grown:
    """Its attributes no longer fit where its class expected them, so it has a dict."""

    def __init__(self):
        self.__dict__["first"] = "in a dict"
        self.__dict__ = dict(self.__dict__, second=2)


class Many:
    def __init__(self):
        for n in range(40):
            setattr(self, f"a{n}", n)


@dataclasses.dataclass
class Order:
    id: int
    customer: str
    password: str


@dataclasses.dataclass(slots=True)
class Item:
    name: str
    price: float


class Point(typing.NamedTuple):
    x: int
    token: str


class Numbers(list):
    pass


class Loud(str):
    def __repr__(self):
        return "LOUD"


class OwnError(ValueError):
    pass


class Itself(list):
    def __init__(self):
        super().__init__([self])


@says(
    # The last of 1024 bytes is the quote.
    long="'" + "y" * 1022 + "'… (len 5000)",
    wide_long="'" + "日" * 340 + "'… (len 3000)",
    raw_long="b'" + "\\x00" * 255 + "'… (len 3000)",
    large_int=str(10**2000)[:1024] + "… (2001 digits)",
    huge_int="<int of 33220 bits>",
    negative_huge_int="<negative int of 33220 bits>",
)
def scalars():
    small, negative, large, larger, zero = 7, -1, 2**97, -(10**300), 0
    edge, below = 2**30, -(2**60)
    large_int, huge_int, negative_huge_int = 10**2000, 10**10000, -(10**10000)
    text, latin, wide, astral, empty = "plain\n", "näme", "日本語", "🐍", ""
    quotes, both, surrogate, hidden = "it's", "it's \"it\"", "\udc80x", "\u202e\xad\u3000\ue000"
    long, wide_long = "y" * 5000, "日" * 3000
    raw, raw_empty, raw_long, mutable = b"\x00raw'", b"", b"\x00" * 3000, bytearray(b"abc")
    nothing, yes, no, dots, not_there = None, True, False, ..., NotImplemented
    tiny, whole, infinite, not_a_number = 1e-07, 3.0, float("-inf"), float("nan")
    complex_number, imaginary = 1 - 2.5j, 3j
    steps, plain_range, part = range(1, 10, 3), range(10**30), slice(1, None)
    IDS.update({name: at(value) for name, value in locals().items()})
    event.wait()


def repr_of_items():
    nested = {"rows": [1, 2], "empty": [], "none": None}
    return nested


@says(
    nested="{'rows': […] (len 2), 'empty': [], 'pair': (…) (len 2), 'more': {…} (len 1), 'set': {…} (len 1), 1: 2.5}",
    numbers="[" + ", ".join(map(str, range(16))) + ", …] (len 1200)",
    long_texts="['" + "x" * 94 + "'… (len 500)]",
    pairs="{" + ", ".join(f"{n}: {-n}" for n in range(16)) + ", …} (len 100)",
    emptied="{999: 999}",
    digits="deque([" + ", ".join(map(str, range(16))) + ", …]) (len 200)",
    bounded="deque([3, 4], maxlen=2)",
    mixed=lambda v: f"[1, 'a', {instance(v[2])}, {v[3]!r}, None, <__main__.Loud 'a'>, Point(…) (len 2), <unlocked _thread.lock object at {at(v[7])}>]",
    by_default="defaultdict(<class 'list'>, {'a': […] (len 1)})",
    counted="<collections.Counter {'a': 2, 'b': 1}>",
    itself="[[…] (len 1)]",
    proxy="mappingproxy({'a': 1})",
    numbers_class="[1, 2]",
    loud="<__main__.Loud 'a'>",
    values="dict_values([1, […] (len 1)])",
    items="dict_items([('a', 1), ('b', […] (len 1))])",
)
def containers():
    ints, single, none, words = [1, 2, 3], (1,), (), ("a", b"b")
    nested = {"rows": [1, 2], "empty": [], "pair": (1, 2), "more": {1: 2}, "set": {1}, 1: 2.5}
    numbers, long_texts = list(range(1200)), ["x" * 500]
    pairs = {n: -n for n in range(100)}
    emptied = {n: n for n in range(1000)}
    for n in range(999):
        del emptied[n]
    del n
    group, frozen, no_group, no_frozen = {1, 2, 3}, frozenset((4, 5)), set(), frozenset()
    digits, bounded, empty_deque = collections.deque(range(200)), collections.deque([1, 2, 3, 4], 2), collections.deque()
    rotated = collections.deque(range(5))
    rotated.rotate(2)
    ordered = collections.OrderedDict(a=1, b=2, c=3)
    ordered.move_to_end("a")
    by_default = collections.defaultdict(list, a=[1])
    counted = collections.Counter("aab")
    mixed = [1, "a", Plain(), Color.RED, None, Loud("a"), Point(1, "x"), threading.Lock()]
    itself = Itself()
    proxy, view, values = types.MappingProxyType({"a": 1}), {"a": 1}.keys(), {"a": 1, "b": [2]}.values()
    items = {"a": 1, "b": [2]}.items()
    numbers_class, loud = Numbers([1, 2]), Loud("a")
    IDS.update({name: at(value) for name, value in locals().items()})
    event.wait()


@says(
    plain="<__main__.Plain id=7 state='open' rows=[…] (len 3) api_key='***' (len 7)>",
    slotted="<__main__.Slotted _password='***' (len 7) first=1>",
    child="<__main__.Child _password='***' (len 7) first=1 third=3.5>",
    grown="<__main__.Grown first='in a dict' second=2>",
    many="<__main__.Many " + " ".join(f"a{n}={n}" for n in range(16)) + " …>",
    order="<__main__.Order id=7 customer='a' password='***' (len 7)>",
    item="<__main__.Item name='n' price=1.5>",
    point="Point(x=1, token='***' (len 7))",
    nothing=instance,
    local=lambda v: f"<__main__.instances.<locals>.Local inner={instance(v.inner)}>",
    read_write="<Permission.READ|WRITE: 3>",
    own_error="OwnError('a', 1)",
    os_error="FileNotFoundError(2, 'No such file or directory')",
    partial=instance,
    packed=instance,
    namespace="namespace(first=1, password='***' (len 7))",
    money=instance,
    module="<module 'json'>",
    method=lambda v: f"<bound method Plain.méthode of {instance(v.__self__)}>",
    append=lambda v: f"<built-in method append of list object at {at(v.__self__)}>",
    generator=lambda v: f"<generator object repr_of_generator at {at(v)}>",
    code=lambda v: f"<code object repr_of_items at {at(v)}>",
    lock=lambda v: f"<unlocked _thread.lock object at {at(v)}>",
    enum_class="<class '__main__.Color'>",
)
def instances():
    class Local:
        def __init__(self):
            self.inner = Plain()

    plain, slotted, child, grown, many = Plain(), Slotted(), Child(), Grown(), Many()
    order, item, point = Order(7, "a", "hunter2"), Item("n", 1.5), Point(1, "hunter2")
    nothing, local = object(), Local()
    red, green, high, read, read_write = Color.RED, Color.GREEN, Level.HIGH, Permission.READ, Permission(3)
    error, empty_error, key_error, own_error = ValueError("no such thing"), KeyError(), KeyError("a"), OwnError("a", 1)
    os_error = FileNotFoundError(2, "No such file or directory")
    partial, packed, money = functools.partial(print, 1), array.array("i", [1]), decimal.Decimal("1.5")
    namespace, plain_namespace = types.SimpleNamespace(first=1, password="hunter2"), types.SimpleNamespace(a=[])
    module, method, append, built_in, function = json, plain.méthode, [].append, len, repr_of_items
    generator, code = repr_of_generator(), repr_of_items.__code__
    kind, own_kind, enum_class = int, Local, Color
    lock, locked = threading.Lock(), threading.Lock()
    locked.acquire()
    recursive, held = threading.RLock(), threading.RLock()
    held.acquire()
    day, moment = datetime.date(2026, 11, 21), datetime.datetime(2026, 11, 21, 14, 51)
    exact = datetime.datetime(2026, 11, 21, 14, 51, 50, 123, tzinfo=datetime.timezone.utc, fold=1)
    span, no_span = datetime.timedelta(days=-1, seconds=5, microseconds=7), datetime.timedelta()
    east = datetime.timezone(datetime.timedelta(hours=1), "CET")
    event.wait()


def repr_of_generator():
    yield


MASKED = "'***' (len 7)"


@says(
    password=MASKED,
    db_password=MASKED,
    apiKey=MASKED,
    access_token=MASKED,
    session_id=MASKED,
    raw_secret="b'***' (len 7)",
    secret_number="***",
    secret_big="***",
    secrets_="*** (len 2)",
    credentials="*** (len 1)",
    auth="***",
    dsn="'***' (len 34)",
    url="'***' (len 34)",
    urls="['***' (len 34)]",
    header="'***' (len 23)",
    headers="{'Authorization': '***' (len 7), b'cookie': b'***' (len 3), 'Accept': '*/*'}",
    header_pair="('X-Api-Key', '***' (len 7))",
    arguments="['mysql', '--password', '***' (len 7), '--user', 'app']",
    pem="'***' (len 34)",
    aws="b'***' (len 20)",
    web_token="'***' (len 41)",
    query="'***' (len 26)",
    failed="ConnectionError('***' (len 34))",
    late="'***' (len 2028)",
)
def secrets():
    password = db_password = apiKey = access_token = session_id = "hunter2"
    raw_secret, secret_number, secret_big = b"hunter2", 42, 2**90
    secrets_, credentials, auth, token = ["a", "b"], {"user": "x"}, Plain(), None
    url = dsn = "postgres://app:hunter2@db:5432/app"
    urls = [url]
    header = "Bearer hunter2hunter2hu"
    headers = {"Authorization": "hunter2", b"cookie": b"abc", "Accept": "*/*"}
    header_pair = ("X-Api-Key", "hunter2")
    arguments = ["mysql", "--password", "hunter2", "--user", "app"]
    pem, aws = "-----BEGIN PRIVATE KEY-----\nhunter", b"AKIAIOSFODNN7EXAMPLE"
    web_token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.hunt"
    query = "https://x/?api_key=hunter2"
    failed = ConnectionError(url)
    late = "a" * 1000 + " postgres://app:hunter2" + "b" * 1005
    tokenizer, token_count, passenger, keyboard, max_tokens = "words", 3, "Ann", "qwerty", 100
    get_token, SecretKind = len, int
    IDS["password"] = at(password)
    event.wait()


def arguments(positional, /, plain, *args, keyword=1.5, **kwargs):
    event.wait()


def cells(argument):
    captured, later_captured = "in a cell", argument
    del_me = 1
    del del_me

    def inner(own):
        nonlocal captured
        before = own
        event.wait()
        return captured, argument, later, unbound, later_captured  # noqa: F821

    inner(argument)
    later = 1
    unbound = 1
    return later, unbound


def generator_frame():
    received = yield 1
    event.wait()
    yield received


def in_generator():
    running = generator_frame()
    next(running)
    running.send("sent")


def comprehension():
    outer = "outer"
    return [event.wait() for element in (outer,)]


def generator_expression():
    outer = "outer"
    return list(event.wait() for element in (outer,))


in_lambda = lambda argument, default=2: event.wait()  # noqa: E731


def class_body():
    enclosed = "enclosed"

    class Body:
        attribute = 1
        seen = enclosed

        def method(self):
            return __class__

        inner = [n for n in (1, 2)]
        event.wait()

    return Body


def executed():
    exec(compile("first = 1\nsecond = 'two'\nevent.wait()", "<own dicts>", "exec"), {"event": event}, {"own": 1})


def executed_in_mapping():
    names = collections.UserDict(event=event)
    exec(compile("first = 1\nevent.wait()", "<mapping>", "exec"), {}, names)


async def coroutine(argument):
    inside = "coroutine"
    event.wait()
    return argument, inside


async def tasks():
    task = asyncio.current_task()
    future = asyncio.get_running_loop().create_future()
    done = asyncio.get_running_loop().create_future()
    done.set_result(1)
    await coroutine("awaited")
    return task, future, done


SAYS["tasks"] = {
    "task": lambda v: f"<Task pending name='Task-1' coro=<tasks()> at {at(v)}>",
    "future": lambda v: f"<Future pending at {at(v)}>",
    "done": lambda v: f"<Future finished at {at(v)}>",
}
SAYS["executed_in_mapping"] = {
    "names": lambda v: "<collections.UserDict data={…} (len 2)>",
}
SAYS["<module>"] = {
    "<locals>": "<collections.UserDict data={…} (len 2)>",
}
SAYS["generator_expression.<locals>.<genexpr>"] = {
    # 3.15 keeps what the expression goes through, 3.14 an iterator of it.
    ".0": lambda v: repr(v) if isinstance(v, tuple) else instance(v),
}
SAYS["class_body.<locals>.Body"] = {
    "inner": "[1, 2]",
}
SAYS["arguments"] = {
    "kwargs": "{'other': 'x', 'password': '***' (len 7)}",
}
SAYS["Plain.méthode"] = {
    "self": "<__main__.Plain id=7 state='open' rows=[…] (len 3) api_key='***' (len 7)>",
    "nested": "<__main__.Plain id=7 state='open' rows=[…] (len 3) api_key='***' (len 7)>",
}


def started():
    threads = {
        "scalars": scalars,
        "containers": containers,
        "instances": instances,
        "secrets": secrets,
        "method": functools.partial(Plain().méthode, 5),
        "arguments": lambda: arguments(1, "two", 3, 4, keyword=2.5, other="x", password="hunter2"),
        "cells": functools.partial(cells, "argument"),
        "generator": in_generator,
        "comprehension": comprehension,
        "generator expression": generator_expression,
        "lambda": functools.partial(in_lambda, 1),
        "class body": class_body,
        "executed": executed,
        "mapping": executed_in_mapping,
        "coroutine": lambda: asyncio.run(tasks()),
    }
    for name, target in threads.items():
        yield threading.Thread(target=target, name=name, daemon=True)


def stated(frame):
    """A frame's variables: name -> [type, text]."""
    code, names = frame.f_code, {}
    own = frame.f_locals
    optimized = code.co_flags & 1
    if optimized:
        for name in code.co_varnames + code.co_cellvars + code.co_freevars:
            names.setdefault(name, ["unbound", None])
    elif not isinstance(own, dict):
        own = {"<locals>": own}
    if code.co_qualname == "class_body.<locals>.Body":
        # A class's names are those it sets; what it takes from around itself is shown too.
        names["enclosed"] = ["str", "'enclosed'"]
    for name, value in dict(own).items():
        if not optimized and name.startswith("__") and name.endswith("__"):
            continue
        text = SAYS.get(code.co_qualname, {}).get(name, repr)
        names[name] = [full_name(type(value)), text if isinstance(text, str) else text(value)]
    return names


def state():
    threads = {thread.ident: thread.name for thread in threading.enumerate()}
    found = {}
    for ident, frame in sys._current_frames().items():
        while frame is not None:
            # The frames of the standard library and the one that speaks are not in question.
            if frame.f_code.co_filename in (__file__, "<own dicts>", "<mapping>") and frame.f_code is not state.__code__:
                key = f"{threads[ident]}/{frame.f_code.co_qualname}"
                found[key] = stated(frame)
            frame = frame.f_back
    return {key: value for key, value in found.items() if not key.startswith("MainThread/")}


if __name__ == "__main__":
    running = list(started())
    for thread in running:
        thread.start()
    while len(event._cond._waiters) < len(running):
        os.sched_yield()
    print(json.dumps({"frames": state(), "ids": IDS}), flush=True)
    module_level, module_password = [1, 2], "hunter2"
    for element in [[7, 8]]:
        [sys.stdin.readline() for inlined in element[:1]]
