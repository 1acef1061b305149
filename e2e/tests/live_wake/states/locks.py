"""Locks of Python and what is built of them: one thread waits for another of the same process."""

import asyncio
import concurrent.futures
import io
import logging
import os
import queue
import select
import signal
import sys
import threading

import states
from states import END, FOLDER, LOCK, SECONDS, background, held, state


@state("futex", LOCK)
def lock():
    """`Lock.acquire()`"""
    lock = threading.Lock()
    lock.acquire()
    yield lock.acquire
    lock.release()
    yield True


@state("futex", LOCK, timed=True)
def lock_timed():
    """`Lock.acquire(timeout=…)`"""
    lock = threading.Lock()
    lock.acquire()
    yield lambda: lock.acquire(timeout=SECONDS)
    yield False


@state("futex", LOCK)
def lock_with_timeout_released():
    """`Lock.acquire(timeout=…)` that gets it"""
    lock = threading.Lock()
    lock.acquire()
    yield lambda: lock.acquire(timeout=3600)
    lock.release()
    yield True


@state("futex", LOCK)
def with_lock():
    """`with lock:`"""
    lock = threading.Lock()
    lock.acquire()

    def wait():
        with lock:
            return lock.locked()

    yield wait
    lock.release()
    yield True


@state("futex", LOCK)
def rlock():
    """`RLock.acquire()`"""
    lock = threading.RLock()
    give_back = held(lock)
    yield lock.acquire
    give_back()
    yield True


@state("futex", LOCK, timed=True)
def rlock_timed():
    """`RLock.acquire(timeout=…)`"""
    lock = threading.RLock()
    give_back = held(lock)
    yield lambda: lock.acquire(timeout=SECONDS)
    yield False
    give_back()


@state("futex", LOCK)
def event():
    """`Event.wait()`"""
    event = threading.Event()
    yield event.wait
    event.set()
    yield True


@state("futex", LOCK, timed=True)
def event_timed():
    """`Event.wait(timeout)`"""
    event = threading.Event()
    yield lambda: event.wait(SECONDS)
    yield False


@state("futex", LOCK)
def condition():
    """`Condition.wait()`"""
    condition = threading.Condition()

    def wait():
        with condition:
            return condition.wait()

    yield wait
    with condition:
        condition.notify()
    yield True


@state("futex", LOCK, timed=True)
def condition_timed():
    """`Condition.wait(timeout)`"""
    condition = threading.Condition()

    def wait():
        with condition:
            return condition.wait(SECONDS)

    yield wait
    yield False


@state("futex", LOCK)
def condition_wait_for():
    """`Condition.wait_for()`, notified twice"""
    condition, values = threading.Condition(), []

    def wait():
        with condition:
            return condition.wait_for(lambda: len(values) == 2 and values)

    yield wait
    for value in (1, 2):
        with condition:
            values.append(value)
            condition.notify_all()
    yield [1, 2]


@state("futex", LOCK)
def semaphore():
    """`Semaphore.acquire()`"""
    semaphore = threading.Semaphore(0)
    yield semaphore.acquire
    semaphore.release()
    yield True


@state("futex", LOCK, timed=True)
def semaphore_timed():
    """`Semaphore.acquire(timeout=…)`"""
    semaphore = threading.BoundedSemaphore(1)
    semaphore.acquire()
    yield lambda: semaphore.acquire(timeout=SECONDS)
    yield False


@state("futex", LOCK)
def barrier():
    """`Barrier.wait()`"""
    barrier = threading.Barrier(2)
    yield barrier.wait
    barrier.wait()
    yield 0


@state("futex", LOCK, timed=True)
def barrier_timed():
    """`Barrier.wait(timeout)`"""
    barrier = threading.Barrier(2)
    yield lambda: barrier.wait(SECONDS)
    yield threading.BrokenBarrierError


@state("futex", LOCK)
def join():
    """`Thread.join()`"""
    event = threading.Event()
    thread = background(event.wait)
    yield thread.join
    event.set()
    yield None


@state("futex", LOCK, timed=True)
def join_timed():
    """`Thread.join(timeout)`"""
    event = threading.Event()
    thread = background(event.wait)

    def wait():
        thread.join(SECONDS)
        return thread.is_alive()

    yield wait
    yield True
    event.set()


@state("futex", LOCK, kinds=["main"])
def end_of_main():
    """the main script has ended, Python waits for a thread"""
    yield END
    yield None


@state("futex", LOCK, kinds=["main"], at_exit=True)
def exit_handler():
    """`Lock.acquire()` in an exit handler"""
    lock = threading.Lock()
    lock.acquire()
    yield lock.acquire
    lock.release()
    yield True


@state("futex", LOCK)
def queue_get():
    """`Queue.get()`"""
    items = queue.Queue()
    yield items.get
    items.put("item")
    yield "item"


@state("futex", LOCK, timed=True)
def queue_get_timed():
    """`Queue.get(timeout=…)`"""
    items = queue.Queue()
    yield lambda: items.get(timeout=SECONDS)
    yield queue.Empty


@state("futex", LOCK)
def queue_put():
    """`Queue.put()` on a full queue"""
    items = queue.Queue(1)
    items.put(1)

    def wait():
        items.put(2)
        return items.get()

    yield wait
    items.get()
    yield 2


@state("futex", LOCK)
def queue_join():
    """`Queue.join()`"""
    items = queue.Queue()
    items.put(1)
    yield items.join
    items.get()
    items.task_done()
    yield None


@state("futex", LOCK)
def simple_queue():
    """`SimpleQueue.get()`"""
    items = queue.SimpleQueue()
    yield items.get
    items.put("item")
    yield "item"


@state("futex", LOCK, timed=True)
def simple_queue_timed():
    """`SimpleQueue.get(timeout=…)`"""
    items = queue.SimpleQueue()
    yield lambda: items.get(timeout=SECONDS)
    yield queue.Empty


@state("futex", LOCK)
def future():
    """`Future.result()` of a `ThreadPoolExecutor`"""
    event = threading.Event()
    executor = concurrent.futures.ThreadPoolExecutor(1)
    result = executor.submit(event.wait).result
    yield result
    event.set()
    yield True
    executor.shutdown()


@state("futex", LOCK, timed=True)
def future_timed():
    """`Future.result(timeout)`"""
    future = concurrent.futures.Future()
    yield lambda: future.result(SECONDS)
    yield TimeoutError


@state("futex", LOCK)
def futures_wait():
    """`concurrent.futures.wait()`"""
    futures = [concurrent.futures.Future() for _ in range(3)]
    yield lambda: len(concurrent.futures.wait(futures).done)
    for each in futures:
        each.set_result(None)
    yield 3


@state("futex", LOCK)
def executor_map():
    """`ThreadPoolExecutor.map()`"""
    event = threading.Event()
    executor = concurrent.futures.ThreadPoolExecutor(2)

    def double(value):
        event.wait()
        return 2 * value

    yield lambda: list(executor.map(double, range(4)))
    event.set()
    yield [0, 2, 4, 6]
    executor.shutdown()


@state("futex", LOCK)
def executor_shutdown():
    """`ThreadPoolExecutor.shutdown()`"""
    event = threading.Event()
    executor = concurrent.futures.ThreadPoolExecutor(1)
    executor.submit(event.wait)
    yield executor.shutdown
    event.set()
    yield None


@state("futex", ("", "InPlace"), kinds=["thread"], announces=True)
def executor_worker():
    """a worker of a `ThreadPoolExecutor`, in `Event.wait()`"""
    event = threading.Event()
    executor = concurrent.futures.ThreadPoolExecutor(1)

    def work():
        states.announce()
        return event.wait()

    yield lambda: executor.submit(work).result()
    event.set()
    yield True
    executor.shutdown()


@state("futex", LOCK)
def run_coroutine_threadsafe():
    """`asyncio.run_coroutine_threadsafe().result()`"""
    loop, event = asyncio.new_event_loop(), asyncio.Event()
    thread = background(loop.run_forever)
    yield asyncio.run_coroutine_threadsafe(event.wait(), loop).result
    loop.call_soon_threadsafe(event.set)
    yield True
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@state("futex", LOCK)
def import_lock():
    """an import that another thread is in the middle of"""
    with open(f"{FOLDER}/being_imported.py", "w") as file:
        file.write("import states.locks as locks\nlocks.importing.set()\nlocks.imported.wait()\nvalue = 7\n")
    global importing, imported
    importing, imported = threading.Event(), threading.Event()
    thread = background(__import__, "being_imported")
    importing.wait()

    def wait():
        import being_imported

        return being_imported.value

    yield wait
    imported.set()
    yield 7
    thread.join()


@state("futex", LOCK)
def logging_lock():
    """`logging`: the lock of a handler"""
    handler = logging.StreamHandler(io.StringIO())
    logger = logging.getLogger("states")
    logger.addHandler(handler)
    logger.propagate = False
    give_back = held(handler.lock)

    def wait():
        logger.error("message")
        return handler.stream.getvalue()

    yield wait
    give_back()
    yield "message\n"


@state("futex", ("InPlace", "InPlace"))
def buffered_lock():
    """the lock inside a `BufferedWriter` that another thread writes to"""
    end, other_end = os.pipe()
    writer = os.fdopen(other_end, "wb")
    thread = background(writer.write, b"x" * 1_000_000)
    # When the pipe is full the other thread has the lock.
    while select.select([], [other_end], [], 0)[1]:
        pass
    yield lambda: writer.write(b"y")
    left = 1_000_001
    while left > 1:
        left -= len(os.read(end, left))
    yield 1
    thread.join()
    writer.close()


@state("futex", LOCK, kinds=["main"])
def in_a_signal_handler():
    """`Lock.acquire()` in a signal handler"""
    lock = threading.Lock()
    lock.acquire()
    got = []
    signal.signal(signal.SIGUSR1, lambda *_: got.append(lock.acquire()))

    def wait():
        signal.raise_signal(signal.SIGUSR1)
        return got

    yield wait
    lock.release()
    yield [True]


@state("futex", LOCK)
def in_a_finalizer():
    """`Lock.acquire()` in `__del__`"""
    lock = threading.Lock()
    lock.acquire()
    got = []

    class Waits:
        def __del__(self):
            got.append(lock.acquire())

    def wait():
        Waits()
        return got

    yield wait
    lock.release()
    yield [True]


@state("futex", LOCK)
def in_a_generator():
    """`Lock.acquire()` in a generator that a C function draws from"""
    lock = threading.Lock()
    lock.acquire()

    def values():
        yield 1
        lock.acquire()
        yield 2

    yield lambda: sum(values())
    lock.release()
    yield 3


@state("futex", LOCK)
def under_tracing():
    """`Lock.acquire()` with `sys.settrace` on"""
    lock = threading.Lock()
    lock.acquire()
    seen = set()

    def trace(frame, event, argument):
        seen.add(event)
        return trace

    def traced():
        return lock.acquire()

    def wait():
        sys.settrace(trace)
        try:
            return traced()
        finally:
            sys.settrace(None)

    yield wait
    lock.release()
    yield True
