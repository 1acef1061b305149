"""Python called by C called by Python, in every way that can be thought of: one thread for each."""

import abc
import array
import bisect
import builtins
import codecs
import collections
import contextlib
import copy
import ctypes
import functools
import gc
import heapq
import io
import itertools
import json
import operator
import pickle
import re
import signal
import sys
import threading
import types
import weakref
import xml.parsers.expat

import truth

CASES = []


def case(function):
    CASES.append(function)
    return function


@case
def sort_key():
    sorted([2, 1], key=lambda _: truth.park())


@case
def list_sort_key():
    [2, 1].sort(key=lambda _: truth.park())


@case
def comparison():
    class Compared:
        def __lt__(self, other):
            truth.park()

    sorted([Compared(), Compared()])


@case
def cmp_to_key():
    sorted([2, 1], key=functools.cmp_to_key(lambda a, b: truth.park()))


@case
def regex_substitution():
    re.sub(r"\w", lambda match: truth.park(), "text")


@case
def reduction():
    functools.reduce(lambda a, b: truth.park(), [1, 2])


@case
def map_in_list():
    list(map(lambda _: truth.park(), [1]))


@case
def filter_in_set():
    set(filter(lambda _: truth.park(), [1]))


@case
def nested_iterators():
    tuple(itertools.takewhile(bool, itertools.chain(map(lambda n: truth.park(), zip([1], [2])))))


@case
def groups():
    dict(itertools.groupby([1], key=lambda _: truth.park()))


@case
def maximum():
    max([1, 2], key=lambda _: truth.park())


@case
def heap():
    heapq.nsmallest(2, [3, 1, 2], key=lambda _: truth.park())


@case
def bisection():
    bisect.bisect([1, 2, 3], 2, key=lambda _: truth.park())


@case
def generator_in_sum():
    def numbers():
        yield 1
        truth.park()

    sum(numbers())


@case
def generator_expression_in_any():
    any(truth.park() for _ in [1])


@case
def delegating_generators():
    def inner():
        yield 1
        truth.park()

    def outer():
        yield from inner()

    for _ in outer():
        pass


@case
def generator_send():
    def echo():
        while True:
            if (yield):
                truth.park()

    generator = echo()
    next(generator)
    generator.send(True)


@case
def generator_throw():
    def stubborn():
        try:
            yield
        except ValueError:
            truth.park()

    generator = stubborn()
    next(generator)
    generator.throw(ValueError)


@case
def generator_close():
    def cleaning():
        try:
            yield
        finally:
            truth.park()

    generator = cleaning()
    next(generator)
    generator.close()


@case
def coroutine_send():
    async def leaf():
        truth.park()

    async def outer():
        await leaf()

    outer().send(None)


@case
def finalizer():
    class Finalized:
        def __del__(self):
            truth.park()

    Finalized()


@case
def finalizer_by_the_collector():
    class Finalized:
        def __del__(self):
            truth.park()

    circle = Finalized()
    circle.circle = circle
    del circle
    gc.collect(0)


@case
def weak_reference():
    class Referenced:
        pass

    referenced = Referenced()
    reference = weakref.ref(referenced, lambda _: truth.park())
    del referenced
    return reference


@case
def property_read():
    class Owner:
        @property
        def value(self):
            return truth.park()

    Owner().value


@case
def property_by_getattr():
    class Owner:
        @property
        def value(self):
            return truth.park()

    operator.attrgetter("value")(Owner())


@case
def descriptor():
    class Descriptor:
        def __get__(self, instance, owner):
            truth.park()

        def __set__(self, instance, value):
            pass

    class Owner:
        value = Descriptor()

    Owner().value


@case
def descriptor_named():
    class Descriptor:
        def __set_name__(self, owner, name):
            truth.park()

    class Owner:
        value = Descriptor()


@case
def missing_attribute():
    class Owner:
        def __getattr__(self, name):
            truth.park()

    Owner().nothing


@case
def every_attribute():
    class Owner:
        def __getattribute__(self, name):
            truth.park()

    Owner().anything


@case
def attribute_set():
    class Owner:
        def __setattr__(self, name, value):
            truth.park()

    setattr(Owner(), "value", 1)


@case
def cached():
    class Owner:
        @functools.cached_property
        def value(self):
            truth.park()

    Owner().value


@case
def least_recently_used():
    @functools.lru_cache
    def computed(n):
        truth.park()

    computed(1)


@case
def partial():
    functools.partial(functools.partial(lambda a, b: truth.park(), 1), 2)()


@case
def dispatched():
    @functools.singledispatch
    def generic(of):
        pass

    @generic.register
    def _(of: int):
        truth.park()

    generic(1)


@case
def hashed():
    class Key:
        def __hash__(self):
            return truth.park()

    {}.get(Key())


@case
def equal():
    class Item:
        def __eq__(self, other):
            truth.park()

    [Item()].index(1)


@case
def missing_key():
    class Table(dict):
        def __missing__(self, key):
            truth.park()

    Table()["key"]


@case
def default_factory():
    collections.defaultdict(lambda: truth.park())["key"]


@case
def operators():
    class Number:
        def __add__(self, other):
            truth.park()

    Number() + 1


@case
def reflected_operator():
    class Number:
        def __rsub__(self, other):
            truth.park()

    1 - Number()


@case
def truth_value():
    class Doubtful:
        def __bool__(self):
            return truth.park()

    not Doubtful()


@case
def length():
    class Container:
        def __len__(self):
            return truth.park()

    len(Container())


@case
def index():
    class Index:
        def __index__(self):
            return truth.park()

    [1, 2, 3][Index()]


@case
def contained():
    class Container:
        def __contains__(self, item):
            truth.park()

    1 in Container()


@case
def iterated():
    class Container:
        def __iter__(self):
            return self

        def __next__(self):
            truth.park()

    [*Container()]


@case
def iterated_by_index():
    class Container:
        def __getitem__(self, index):
            truth.park()

    list(Container())


@case
def called():
    class Callable:
        def __call__(self):
            truth.park()

    Callable()()


@case
def constructed():
    class Constructed:
        def __new__(cls):
            truth.park()

    Constructed()


@case
def initialised():
    class Initialised:
        def __init__(self):
            truth.park()

    Initialised()


@case
def initialised_by_c():
    class Initialised:
        def __init__(self, n):
            truth.park()

    list(map(Initialised, [1]))


@case
def subclassed():
    class Base:
        def __init_subclass__(cls):
            truth.park()

    class Derived(Base):
        pass


@case
def metaclass():
    class Meta(type):
        def __new__(mcs, name, bases, namespace):
            truth.park()

    class Made(metaclass=Meta):
        pass


@case
def metaclass_prepares():
    class Meta(type):
        @classmethod
        def __prepare__(mcs, name, bases):
            truth.park()

    class Made(metaclass=Meta):
        pass


@case
def instance_check():
    class Meta(abc.ABCMeta):
        def __instancecheck__(cls, instance):
            truth.park()

    class Checked(metaclass=Meta):
        pass

    isinstance(1, Checked)


@case
def formatted():
    class Formatted:
        def __format__(self, specification):
            truth.park()

    f"{Formatted():x}"


@case
def printed():
    class Printed:
        def __repr__(self):
            truth.park()

    print([Printed()], file=io.StringIO())


@case
def written():
    class Sink(io.TextIOBase):
        def write(self, text):
            truth.park()

    print("text", file=Sink())


@case
def raw_read():
    class Source(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            truth.park()

    io.BufferedReader(Source()).read(1)


@case
def context_managers():
    @contextlib.contextmanager
    def manager():
        yield
        truth.park()

    with contextlib.ExitStack() as stack:
        stack.enter_context(manager())


@case
def context_exit():
    class Manager:
        def __enter__(self):
            pass

        def __exit__(self, *error):
            truth.park()

    with Manager():
        raise ValueError


@case
def codec_errors():
    codecs.register_error("parks", lambda error: truth.park())
    "ä".encode("ascii", "parks")


@case
def encoded():
    json.dumps([{"key": object()}], default=lambda _: truth.park())


@case
def decoded():
    json.loads('{"a": {"b": 1}}', object_hook=lambda _: truth.park())


@case
def pickled():
    class Pickled:
        def __reduce__(self):
            truth.park()

    pickle.dumps([Pickled()])


@case
def copied():
    class Copied:
        def __deepcopy__(self, memo):
            truth.park()

    copy.deepcopy([Copied()])


@case
def parsed():
    parser = xml.parsers.expat.ParserCreate()
    parser.StartElementHandler = lambda name, attributes: truth.park()
    parser.Parse(b"<a/>", True)


@case
def foreign_callback():
    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
    def compare(a, b):
        truth.park()
        return 0

    numbers = (ctypes.c_int * 3)(3, 1, 2)
    ctypes.CDLL(None).qsort(numbers, 3, ctypes.sizeof(ctypes.c_int), compare)


@case
def foreign_callback_within_another():
    kind = ctypes.PYFUNCTYPE(ctypes.c_int)
    inner = kind(lambda: truth.park() or 0)
    outer = kind(lambda: inner())
    outer()


@case
def traced():
    def trace(frame, event, argument):
        if frame.f_code.co_name == "traced_function":
            truth.park()

    def traced_function():
        pass

    sys.settrace(trace)
    traced_function()


@case
def profiled():
    def profile(frame, event, argument):
        if event == "c_call" and argument is len:
            truth.park()

    sys.setprofile(profile)
    len([])


@case
def monitored():
    # Its code is instrumented, line by line and instruction by instruction.
    def watched():
        values = [n for n in range(3)]
        return values

    monitoring, tool = sys.monitoring, sys.monitoring.PROFILER_ID
    monitoring.use_tool_id(tool, "parks")
    last = watched.__code__.co_firstlineno + 2
    monitoring.register_callback(tool, monitoring.events.LINE, lambda code, line: line == last and truth.park())
    monitoring.register_callback(tool, monitoring.events.INSTRUCTION, lambda code, offset: None)
    monitoring.set_local_events(tool, watched.__code__, monitoring.events.LINE | monitoring.events.INSTRUCTION)
    watched()


@case
def imported():
    class Finder:
        @staticmethod
        def find_spec(name, path, target=None):
            if name == "no_such_module":
                truth.park()

    sys.meta_path.insert(0, Finder)
    import no_such_module  # noqa: F401


@case
def module_attribute():
    module = types.ModuleType("module")
    module.__getattr__ = lambda name: truth.park()
    module.nothing


@case
def evaluated():
    eval("[truth.park() for n in [1]]")


@case
def executed():
    exec(compile("def inner():\n    truth.park()\n\ninner()\n", "<made up>", "exec"))


@case
def audited():
    # Only the thread that asks for it is kept: a hook cannot be taken away.
    def hook(event, arguments):
        if event == "sidewinder.park":
            truth.park()

    sys.addaudithook(hook)
    sys.audit("sidewinder.park")


@case
def exception_hook():
    class Wrong(Exception):
        def __str__(self):
            truth.park()

    try:
        raise Wrong
    except Wrong as error:
        str(error)


@case
def except_clause():
    class Meta(type):
        def __call__(cls, *arguments):
            truth.park()

    class Wrong(Exception, metaclass=Meta):
        pass

    try:
        raise Wrong
    except TypeError:
        pass


@case
def deep_in_c():
    functools.reduce(
        lambda a, b: sorted([1], key=lambda n: list(map(lambda m: sum(truth.park() for _ in "x"), [1]))), [1, 2]
    )


@case
def array_from_iterator():
    array.array("i", (truth.park() for _ in [1]))


@case
def joined():
    "".join(truth.park() for _ in [1])


@case
def build_class():
    builtins.__build_class__(lambda: truth.park(), "Made")


@case
def async_generator_by_hand():
    async def numbers():
        truth.park()
        yield 1

    numbers().asend(None).send(None)


threads = [threading.Thread(target=function, name=function.__name__, daemon=True) for function in CASES]
for thread in threads:
    thread.start()
truth.parked(*threads)


def handler(number, frame):
    truth.stand_still()


def interrupted():
    # The handler runs on top of whatever the main thread does.
    signal.signal(signal.SIGUSR1, handler)
    signal.raise_signal(signal.SIGUSR1)


interrupted()
