"""One loop, and a task for each thing that a task can wait for."""

import asyncio
import collections.abc
import concurrent.futures
import contextlib
import socket
import threading
import types

import truth

CASES = []
KEPT = []


def case(function):
    CASES.append(function)
    return function


def pending():
    return asyncio.get_running_loop().create_future()


@case
async def on_future():
    await pending()


@case
async def on_task():
    await asyncio.create_task(on_future(), name="awaited by on_task")


@case
async def asleep():
    await asyncio.sleep(3600)


@case
async def gathered():
    await asyncio.gather(on_future(), asleep(), asyncio.gather(on_future()))


@case
async def gathered_exceptions():
    await asyncio.gather(*(on_future() for _ in range(5)), return_exceptions=True)


@case
async def group():
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(on_future(), name="in a group")
        tasks.create_task(group_within(), name="a group within")


async def group_within():
    async with asyncio.TaskGroup() as tasks:
        for n in range(3):
            tasks.create_task(asleep(), name=f"in the inner group {n}")


@case
async def group_in_its_body():
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(on_future())
        await asleep()


@case
async def waited():
    await asyncio.wait([asyncio.create_task(on_future(), name=f"waited {n}") for n in range(3)])


@case
async def waited_for_the_first():
    tasks = [asyncio.create_task(on_future()), asyncio.create_task(asyncio.sleep(0))]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait(tasks)


@case
async def as_completed():
    for earliest in asyncio.as_completed([on_future(), asleep()]):
        await earliest


@case
async def as_completed_asynchronously():
    async for task in asyncio.as_completed([asyncio.create_task(on_future())]):
        await task


@case
async def shielded():
    await asyncio.shield(asyncio.create_task(on_future(), name="shielded"))


@case
async def with_timeout():
    async with asyncio.timeout(3600):
        async with asyncio.timeout(None):
            await on_future()


@case
async def waits_for_coroutine():
    await asyncio.wait_for(on_future(), 3600)


@case
async def waits_for_task():
    await asyncio.wait_for(asyncio.create_task(on_future()), None)


@case
async def in_executor():
    await asyncio.get_running_loop().run_in_executor(None, truth.park)


@case
async def in_thread():
    await asyncio.to_thread(truth.park)


@case
async def in_pool():
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="pool")
    KEPT.append(pool)
    await asyncio.wrap_future(pool.submit(truth.park))


@case
async def on_queue():
    await asyncio.Queue().get()


@case
async def on_full_queue():
    queue = asyncio.PriorityQueue(1)
    await queue.put(1)
    await queue.put(2)


@case
async def on_joined_queue():
    queue = asyncio.Queue()
    queue.put_nowait(1)
    await queue.join()


@case
async def on_lock():
    lock = asyncio.Lock()
    await lock.acquire()
    async with lock:
        pass


@case
async def on_event():
    await asyncio.Event().wait()


@case
async def on_semaphore():
    async with asyncio.BoundedSemaphore(1) as _, asyncio.Semaphore(0):
        pass


@case
async def on_condition():
    condition = asyncio.Condition()
    async with condition:
        await condition.wait_for(lambda: False)


@case
async def on_barrier():
    await asyncio.Barrier(2).wait()


@case
async def reads_stream():
    ours, theirs = socket.socketpair()
    KEPT.append(theirs)
    reader, writer = await asyncio.open_connection(sock=ours)
    KEPT.append(writer)
    await reader.readline()


@case
async def writes_stream():
    ours, theirs = socket.socketpair()
    KEPT.append(theirs)
    reader, writer = await asyncio.open_connection(sock=ours)
    writer.write(b"x" * (8 << 20))
    await writer.drain()


@case
async def receives():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    KEPT.append(theirs)
    await asyncio.get_running_loop().sock_recv(ours, 1)


@case
async def serves():
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with server:
        await server.serve_forever()


@case
async def accepts():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    await asyncio.get_running_loop().sock_accept(listener)


@case
async def runs_process():
    process = await asyncio.create_subprocess_exec("sleep", "60")
    await process.wait()


@case
async def reads_process():
    process = await asyncio.create_subprocess_exec("sleep", "60", stdout=asyncio.subprocess.PIPE)
    await process.communicate()


async def numbers(future):
    yield 1
    await future
    yield 2


@case
async def async_for():
    async for _ in numbers(pending()):
        pass


@case
async def async_comprehension():
    return [n async for n in numbers(pending()) if n]


@case
async def async_generator_of_generators():
    async def outer():
        async for n in numbers(pending()):
            yield n

    async for _ in outer():
        pass


@case
async def asend():
    async def echo():
        got = yield
        await pending()
        yield got

    generator = echo()
    await generator.asend(None)
    await generator.asend(1)


@case
async def athrow():
    async def stubborn():
        try:
            yield
        except ValueError:
            await pending()
            yield

    generator = stubborn()
    await anext(generator)
    await generator.athrow(ValueError)


@case
async def aclose():
    async def cleaning():
        try:
            yield
        finally:
            await pending()

    generator = cleaning()
    await anext(generator)
    await generator.aclose()


@case
async def next_with_default():
    await anext(numbers(pending()), None)
    generator = numbers(pending())
    await anext(generator)
    await anext(generator, None)


@case
async def contexts():
    @contextlib.asynccontextmanager
    async def manager():
        try:
            yield
        finally:
            await pending()

    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(manager())


class Awaitable:
    def __init__(self, future):
        self.future = future

    def __await__(self):
        return (yield from self.future)


class AwaitsCoroutine(Awaitable):
    def __await__(self):
        return self.inner().__await__()

    async def inner(self):
        await self.future


class AwaitsWithinGenerator(Awaitable):
    def __await__(self):
        yield from AwaitsCoroutine(self.future).__await__()


class ByHand(collections.abc.Awaitable):
    """An iterator of its own: nobody can look through it."""

    def __init__(self, future):
        self.iterator = future.__await__()

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.iterator)


# Classes called as the interpreter's own types are, which say nothing of what they await.
NAMESAKES = [
    type(name, (ByHand,), {})
    for name in ("coroutine", "generator", "async_generator", "coroutine_wrapper", "async_generator_asend", "anext_awaitable")
]


@case
async def namesakes():
    async with asyncio.TaskGroup() as tasks:
        for namesake in NAMESAKES:
            tasks.create_task(on_namesake(namesake), name=namesake.__name__)


async def on_namesake(namesake):
    await namesake(pending())


@case
async def custom_awaitable():
    await Awaitable(pending())


@case
async def wrapped_coroutine():
    await AwaitsCoroutine(pending())


@case
async def wrapped_in_a_generator():
    await AwaitsWithinGenerator(pending())


@case
async def iterator_of_its_own():
    await ByHand(pending())


@types.coroutine
def by_generator(awaited):
    return (yield from awaited)


@case
async def generator_based():
    await by_generator(by_generator(pending()))


@case
async def generator_based_on_coroutine():
    await by_generator(on_future().__await__())


@case
async def generator_based_directly():
    await by_generator(on_future())


class Coroutine(collections.abc.Coroutine):
    """A coroutine that is not Python's own."""

    def __init__(self, inner):
        self.inner = inner

    def send(self, value):
        return self.inner.send(value)

    def throw(self, *error):
        return self.inner.throw(*error)

    def close(self):
        self.inner.close()

    def __await__(self):
        return self.inner.__await__()


@case
async def awaits_foreign_coroutine():
    await Coroutine(on_future())


@case
async def deep():
    async def deeper(n):
        return await (deeper(n - 1) if n else on_future())

    await deeper(400)


@case
async def recursive_tasks(n=20):
    await (asyncio.create_task(recursive_tasks(n - 1), name=f"recursive {n}") if n else on_future())


@case
async def eager():
    await asyncio.Task(on_future(), eager_start=True, name="eager")


@case
async def eager_that_makes_tasks():
    async def maker():
        await asyncio.create_task(asleep(), name="made by an eager one")

    await asyncio.Task(maker(), eager_start=True, name="eager maker")


class Subclass(asyncio.Task):
    """A task with attributes."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.more = "more"


@case
async def subclassed():
    await Subclass(on_future(), name="subclass")


@case
async def ready():
    # What it waits for is there, and its loop is held up.
    future = pending()
    LATE.append(future)
    await future


@case
async def cancelled():
    CANCELLED.append(asyncio.current_task())
    await pending()


@case
async def lone():
    with contextlib.suppress(asyncio.CancelledError):
        await pending()


@case
async def on_other_threads_future():
    await asyncio.wrap_future(concurrent.futures.Future())


LATE, CANCELLED = [], []
NAMES = ["two words", "new\nline", "x" * 300, "ä" * 300, "日本語" * 100, "🐍", "", "Task-1", "\udc80", "a -> b", "\x1b[31m"]


def stand_still(_):
    # The running task goes on through plain frames and C.
    truth.stand_still()


def hold_up(n):
    if n:
        return hold_up(n - 1)
    return sorted([1], key=stand_still)


async def at_rest():
    """Waits until every task stands where it will stay, those that tasks have made included."""
    this = asyncio.current_task()
    while any(task._fut_waiter is None or task._fut_waiter.done() for task in asyncio.all_tasks() if task is not this):
        await asyncio.sleep(0)


async def main():
    tasks = [asyncio.create_task(function(), name=function.__name__) for function in CASES]
    tasks += [asyncio.create_task(on_future(), name=name) for name in NAMES]
    tasks += [asyncio.create_task(on_future()) for _ in range(3)]
    tasks.append(asyncio.create_task(Coroutine(on_future()), name="foreign coroutine"))
    renamed = asyncio.create_task(on_future(), name="was renamed")
    renamed.set_name(12345678901234567890)
    renamed_to_number = asyncio.create_task(on_future())
    renamed_to_number.set_name("named since")
    KEPT.extend([tasks, renamed, renamed_to_number])
    await at_rest()
    KEPT.append(asyncio.create_task(on_future(), name="created"))
    KEPT.append(asyncio.create_task(numbers_of(), name="created too"))
    for future in LATE:
        future.set_result(None)
    for task in CANCELLED:
        task.cancel()
    # From here on the loop does nothing more.
    truth.parked(*(thread for thread in threading.enumerate() if thread.name.startswith(("asyncio", "pool"))))
    hold_up(3)


async def numbers_of():
    return [n async for n in numbers(pending())]


asyncio.run(main())
