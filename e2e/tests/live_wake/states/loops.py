"""Event loops: asyncio, uvloop and gevent, idle and held up."""

import asyncio
import os
import queue
import socket
import threading
import time

import states
from states import EPOLL, FOREIGN, LOCK, OWN, SECONDS, state

# A stop ends libev's wait; the loop of the main thread then looks for signals.
GEVENT = ("InPlace Interrupt None", "InPlace")


def in_loop(coroutine, run=asyncio.run):
    """What runs a coroutine with an event of its own, and what sets that event from another thread."""
    made = []

    async def main():
        event = asyncio.Event()
        made.extend((asyncio.get_running_loop(), event))
        return await coroutine(event)

    def release():
        made[0].call_soon_threadsafe(made[1].set)

    return lambda: run(main()), release


@state("epoll_wait", EPOLL)
def asyncio_idle():
    """`asyncio`, idle"""
    run, release = in_loop(lambda event: event.wait())
    yield run
    release()
    yield True


@state("epoll_wait", EPOLL, timed=True)
def asyncio_sleep():
    """`asyncio.sleep()`"""
    yield lambda: asyncio.run(asyncio.sleep(SECONDS, "slept"))
    yield "slept"


@state("epoll_wait", EPOLL, timed=True)
def asyncio_wait_for():
    """`asyncio.wait_for()`"""
    run, release = in_loop(lambda event: asyncio.wait_for(event.wait(), SECONDS))
    yield run
    yield TimeoutError


@state("epoll_wait", EPOLL)
def asyncio_stream():
    """`asyncio`: `StreamReader.readline()`"""
    one, other = socket.socketpair()

    async def main():
        reader, writer = await asyncio.open_connection(sock=one)
        line = await reader.readline()
        writer.close()
        return line

    yield lambda: asyncio.run(main())
    other.send(b"line\n")
    yield b"line\n"


@state("epoll_wait", EPOLL)
def asyncio_behind_to_thread():
    """`asyncio`, waiting for `asyncio.to_thread(Event.wait)`"""
    event = threading.Event()

    async def main():
        return await asyncio.to_thread(event.wait)

    yield lambda: asyncio.run(main())
    event.set()
    yield True


@state("futex", ("", "InPlace"), kinds=["thread"], announces=True)
def in_to_thread():
    """`Event.wait()` inside `asyncio.to_thread()`"""
    event = threading.Event()

    def work():
        states.announce()
        return event.wait()

    async def main():
        return await asyncio.to_thread(work)

    yield lambda: asyncio.run(main())
    event.set()
    yield True


@state("futex", LOCK)
def asyncio_held_up_by_a_lock():
    """`asyncio`, held up by `Lock.acquire()`"""
    lock = threading.Lock()
    lock.acquire()

    async def main():
        return lock.acquire()

    yield lambda: asyncio.run(main())
    lock.release()
    yield True


@state("recvfrom", OWN)
def asyncio_held_up_by_recv():
    """`asyncio`, held up by `socket.recv()`"""
    one, other = socket.socketpair()

    async def main():
        return one.recv(10)

    yield lambda: asyncio.run(main())
    other.send(b"data")
    yield b"data"


@state("select pselect6", OWN)
def asyncio_select():
    """`asyncio` with a `SelectSelector`, idle"""
    import selectors

    def run(coroutine):
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
            return runner.run(coroutine)

    run, release = in_loop(lambda event: event.wait(), run)
    yield run
    release()
    yield True


@state("epoll_pwait epoll_wait", FOREIGN)
def uvloop_idle():
    """uvloop, idle"""
    import uvloop

    run, release = in_loop(lambda event: event.wait(), uvloop.run)
    yield run
    release()
    yield True


@state("epoll_pwait epoll_wait", FOREIGN, timed=True)
def uvloop_sleep():
    """uvloop, `asyncio.sleep()`"""
    import uvloop

    yield lambda: uvloop.run(asyncio.sleep(SECONDS, "slept"))
    yield "slept"


@state("epoll_pwait epoll_wait", FOREIGN)
def uvloop_behind_to_thread():
    """uvloop, waiting for `asyncio.to_thread(Event.wait)`"""
    import uvloop

    event = threading.Event()

    async def main():
        return await asyncio.to_thread(event.wait)

    yield lambda: uvloop.run(main())
    event.set()
    yield True


@state("futex", LOCK)
def uvloop_held_up():
    """uvloop, held up by `Lock.acquire()`"""
    import uvloop

    lock = threading.Lock()
    lock.acquire()

    async def main():
        return lock.acquire()

    yield lambda: uvloop.run(main())
    lock.release()
    yield True


def for_hub(do):
    """What another thread calls to have something done in this thread's hub."""
    import gevent

    watcher = gevent.get_hub().loop.async_()
    watcher.start(lambda: gevent.spawn(do))
    return watcher.send


@state("epoll_wait epoll_pwait", GEVENT)
def gevent_idle():
    """gevent, `Event.wait()`"""
    import gevent.event

    release = []

    def wait():
        event = gevent.event.Event()
        release.append(for_hub(event.set))
        return event.wait()

    yield wait
    release[0]()
    yield True


@state("epoll_wait epoll_pwait", GEVENT, timed=True)
def gevent_sleep():
    """`gevent.sleep()`"""
    import gevent

    yield lambda: gevent.sleep(SECONDS)
    yield None


@state("epoll_wait epoll_pwait", GEVENT)
def gevent_join():
    """`gevent.joinall()` of greenlets that wait"""
    import gevent.event

    release = []

    def wait():
        event = gevent.event.Event()
        release.append(for_hub(event.set))
        greenlets = [gevent.spawn(event.wait) for _ in range(5)]
        gevent.joinall(greenlets)
        return [each.value for each in greenlets]

    yield wait
    release[0]()
    yield [True] * 5


@state("epoll_wait epoll_pwait", GEVENT)
def gevent_threadpool():
    """gevent, waiting for its thread pool"""
    import gevent

    event = threading.Event()
    yield lambda: gevent.get_hub().threadpool.apply(event.wait)
    event.set()
    yield True


@state("futex", LOCK)
def gevent_native_lock():
    """`Lock.acquire()` in a greenlet, not patched"""
    import gevent

    lock = threading.Lock()
    lock.acquire()
    yield lambda: gevent.spawn(lambda: lock.acquire()).get()
    lock.release()
    yield True


def patched():
    import gevent.monkey

    gevent.monkey.patch_all()


@state("epoll_wait epoll_pwait", GEVENT)
def patched_lock():
    """gevent's patches: `Lock.acquire()`"""
    patched()
    lock = threading.Lock()
    lock.acquire()
    release = []

    def wait():
        release.append(for_hub(lock.release))
        return lock.acquire()

    yield wait
    release[0]()
    yield True


@state("epoll_wait epoll_pwait", GEVENT)
def patched_queue():
    """gevent's patches: `Queue.get()`"""
    patched()
    release = []

    def wait():
        items = queue.Queue()
        release.append(for_hub(lambda: items.put("item")))
        return items.get()

    yield wait
    release[0]()
    yield "item"


@state("epoll_wait epoll_pwait", GEVENT)
def patched_recv():
    """gevent's patches: `socket.recv()`"""
    patched()
    ends = []

    def wait():
        one, other = socket.socketpair()
        ends.append(other.fileno())
        return one.recv(10), other.close()

    yield wait
    os.write(ends[0], b"data")
    yield b"data", None


@state("epoll_wait epoll_pwait", GEVENT, timed=True)
def patched_sleep():
    """gevent's patches: `time.sleep()`"""
    patched()
    yield lambda: time.sleep(SECONDS)
    yield None


@state("epoll_wait epoll_pwait", GEVENT)
def patched_thread_join():
    """gevent's patches: `Thread.join()`"""
    patched()
    release = []

    def wait():
        event = threading.Event()
        release.append(for_hub(event.set))
        thread = threading.Thread(target=event.wait)
        thread.start()
        thread.join()
        return event.is_set()

    yield wait
    release[0]()
    yield True
