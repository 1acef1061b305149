"""Children: those of subprocess and os, and those of multiprocessing with all they are given to wait for."""

import asyncio
import concurrent.futures
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import queue
import subprocess

from states import EPOLL, FOLDER, FOREIGN, LOCK, OWN, SECONDS, state

POLL = "poll ppoll"
# What is left of semaphores when a process is killed is left in a memory of this program's own.
ctypes.CDLL(None).mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, None)
# The children are there before any other thread is.
context = multiprocessing.get_context("fork")


def told():
    """A FIFO that a child reads one line of, and what lets it go on."""
    os.mkfifo(f"{FOLDER}/told")
    both = os.open(f"{FOLDER}/told", os.O_RDWR)
    return lambda: os.write(both, b"on\n")


CHILD = ["/bin/sh", "-c", f"read word < {FOLDER}/told; echo $word; exit 7"]
SILENT = ["/bin/sh", "-c", f"read word < {FOLDER}/told; exit 7"]
QUIET = {"stdout": subprocess.DEVNULL}


@state("wait4", OWN)
def waitpid():
    """`os.waitpid()`"""
    let_go = told()
    child = os.posix_spawn(SILENT[0], SILENT, {})
    yield lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    let_go()
    yield 7


@state("waitid", OWN)
def waitid():
    """`os.waitid()`"""
    let_go = told()
    child = os.posix_spawn(SILENT[0], SILENT, {})
    yield lambda: os.waitid(os.P_PID, child, os.WEXITED).si_status
    let_go()
    yield 7


@state("wait4", OWN)
def popen_wait():
    """`subprocess.Popen.wait()`"""
    let_go = told()
    yield subprocess.Popen(SILENT).wait
    let_go()
    yield 7


# Python 3.14 looks for the child every 50 ms at the latest, and so comes by itself; 3.15 waits for it.
@state("clock_nanosleep " + POLL, ({"3.14": "None Interrupt ForcedReturn", "3.15": "ForcedReturn"},) * 2, timed=True)
def popen_wait_timed():
    """`subprocess.Popen.wait(timeout)`"""
    let_go = told()
    child = subprocess.Popen(SILENT)
    yield lambda: child.wait(SECONDS)
    yield subprocess.TimeoutExpired
    let_go()
    child.wait()


@state("wait4", OWN)
def run():
    """`subprocess.run()`"""
    let_go = told()
    yield lambda: subprocess.run(CHILD, **QUIET).returncode
    let_go()
    yield 7


@state(POLL, OWN, timed=True)
def run_timed():
    """`subprocess.run(capture_output=True, timeout=…)`"""
    told()
    yield lambda: subprocess.run(CHILD, capture_output=True, timeout=SECONDS)
    yield subprocess.TimeoutExpired


@state(POLL, OWN)
def communicate():
    """`subprocess.Popen.communicate()`"""
    let_go = told()
    child = subprocess.Popen(CHILD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield child.communicate
    let_go()
    yield "on\n", ""
    child.wait()


@state(POLL, OWN, timed=True)
def communicate_timed():
    """`subprocess.Popen.communicate(timeout=…)`"""
    let_go = told()
    child = subprocess.Popen(CHILD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield lambda: child.communicate(timeout=SECONDS)
    yield subprocess.TimeoutExpired
    let_go()
    child.communicate()


@state("read", OWN)
def check_output():
    """`subprocess.check_output()`"""
    let_go = told()
    yield lambda: subprocess.check_output([*CHILD[:2], CHILD[2].replace("exit 7", "exit 0")])
    let_go()
    yield b"on\n"


@state("wait4", FOREIGN)
def system():
    """`os.system()`"""
    let_go = told()
    yield lambda: os.waitstatus_to_exitcode(os.system(SILENT[2]))
    let_go()
    yield 7


@state("read", OWN)
def popen_read():
    """`os.popen().read()`"""
    let_go = told()

    def wait():
        with os.popen(CHILD[2].replace("exit 7", "exit 0")) as output:
            return output.read()

    yield wait
    let_go()
    yield "on\n"


@state("epoll_wait", EPOLL)
def asyncio_subprocess():
    """`asyncio`: `Process.communicate()`"""
    let_go = told()

    async def wait():
        child = await asyncio.create_subprocess_exec(*CHILD, stdout=subprocess.PIPE)
        return await child.communicate()

    yield lambda: asyncio.run(wait())
    let_go()
    yield b"on\n", None


def process(function, *arguments):
    """A process of multiprocessing's, which runs."""
    child = context.Process(target=function, args=arguments)
    child.start()
    return child


@state("wait4", OWN)
def process_join():
    """`multiprocessing.Process.join()`"""
    event = context.Event()
    child = process(event.wait)

    def wait():
        child.join()
        return child.exitcode

    yield wait
    event.set()
    yield 0


@state(POLL, OWN, timed=True)
def process_join_timed():
    """`multiprocessing.Process.join(timeout)`"""
    event = context.Event()
    child = process(event.wait)

    def wait():
        child.join(SECONDS)
        return child.exitcode

    yield wait
    yield None
    event.set()
    child.join()


@state("futex", LOCK)
def mp_lock():
    """`multiprocessing.Lock.acquire()`"""
    lock = context.Lock()
    lock.acquire()
    yield lock.acquire
    lock.release()
    yield True


@state("futex", LOCK, timed=True)
def mp_lock_timed():
    """`multiprocessing.Lock.acquire(timeout=…)`"""
    lock = context.Lock()
    lock.acquire()
    yield lambda: lock.acquire(timeout=SECONDS)
    yield False


@state("futex", LOCK)
def mp_semaphore():
    """`multiprocessing.Semaphore.acquire()`, released by a child"""
    semaphore, event = context.Semaphore(0), context.Event()

    def release():
        event.wait()
        semaphore.release()

    child = process(release)
    yield semaphore.acquire
    event.set()
    yield True
    child.join()


@state("futex", LOCK)
def mp_event():
    """`multiprocessing.Event.wait()`"""
    event = context.Event()
    yield event.wait
    event.set()
    yield True


@state("futex", LOCK, timed=True)
def mp_event_timed():
    """`multiprocessing.Event.wait(timeout)`"""
    event = context.Event()
    yield lambda: event.wait(SECONDS)
    yield False


@state("futex", LOCK)
def mp_condition():
    """`multiprocessing.Condition.wait()`"""
    condition = context.Condition()

    def wait():
        with condition:
            return condition.wait()

    yield wait
    with condition:
        condition.notify()
    yield True


@state("futex", LOCK)
def mp_barrier():
    """`multiprocessing.Barrier.wait()`, with a child"""
    barrier, event = context.Barrier(2), context.Event()

    def arrive():
        event.wait()
        barrier.wait()

    child = process(arrive)
    yield barrier.wait
    event.set()
    yield 0
    child.join()


@state("read", OWN)
def mp_queue():
    """`multiprocessing.Queue.get()`"""
    items = context.Queue()
    yield items.get
    items.put("item")
    yield "item"


@state(POLL, OWN, timed=True)
def mp_queue_timed():
    """`multiprocessing.Queue.get(timeout=…)`"""
    items = context.Queue()
    yield lambda: items.get(timeout=SECONDS)
    yield queue.Empty


@state("futex", LOCK)
def mp_queue_put():
    """`multiprocessing.Queue.put()` on a full queue"""
    items = context.Queue(1)
    items.put(1)

    def wait():
        items.put(2)
        return items.get()

    yield wait
    items.get()
    yield 2


@state("read", OWN)
def mp_simple_queue():
    """`multiprocessing.SimpleQueue.get()`"""
    items = context.SimpleQueue()
    yield items.get
    items.put("item")
    yield "item"


@state("read", OWN)
def mp_connection():
    """`multiprocessing.connection.Connection.recv()`, from a child"""
    ours, theirs = context.Pipe()
    event = context.Event()

    def send():
        event.wait()
        theirs.send({"key": [1, 2]})

    child = process(send)
    yield ours.recv
    event.set()
    yield {"key": [1, 2]}
    child.join()


@state(POLL, OWN, timed=True)
def mp_connection_poll():
    """`multiprocessing.connection.Connection.poll(timeout)`"""
    ours, theirs = context.Pipe()
    yield lambda: ours.poll(SECONDS)
    yield False


@state(POLL, OWN)
def mp_connection_wait():
    """`multiprocessing.connection.wait()`"""
    pipes = [context.Pipe() for _ in range(3)]
    yield lambda: multiprocessing.connection.wait([end for end, _ in pipes]) == [pipes[1][0]]
    pipes[1][1].send("data")
    yield True


@state("accept4", OWN)
def mp_listener():
    """`multiprocessing.connection.Listener.accept()`"""
    listener = multiprocessing.connection.Listener(authkey=b"key")
    yield lambda: listener.accept().recv()
    with multiprocessing.connection.Client(listener.address, authkey=b"key") as client:
        client.send("data")
    yield "data"
    listener.close()


def doubled(value):
    os.read(LET_GO[0], 1)
    return 2 * value


@state("futex", LOCK)
def mp_pool():
    """`multiprocessing.Pool.map()`"""
    global LET_GO
    LET_GO = os.pipe()
    pool = context.Pool(2)
    yield lambda: pool.map(doubled, range(4))
    os.write(LET_GO[1], b"xxxx")
    yield [0, 2, 4, 6]
    pool.close()
    pool.join()


@state("read", OWN)
def mp_manager():
    """a `multiprocessing` manager's `Queue.get()`"""
    manager = context.Manager()
    items = manager.Queue()
    yield items.get
    # A connection of this thread's own, to the same queue.
    items.put("item")
    yield "item"
    manager.shutdown()


@state("futex", LOCK)
def process_pool_executor():
    """`ProcessPoolExecutor.submit().result()`"""
    global LET_GO
    LET_GO = os.pipe()
    executor = concurrent.futures.ProcessPoolExecutor(1, mp_context=context)
    yield executor.submit(doubled, 21).result
    os.write(LET_GO[1], b"x")
    yield 42
    executor.shutdown()


@state("futex", LOCK)
def process_pool_shutdown():
    """`ProcessPoolExecutor.shutdown()`"""
    global LET_GO
    LET_GO = os.pipe()
    executor = concurrent.futures.ProcessPoolExecutor(1, mp_context=context)
    result = executor.submit(doubled, 21)

    def wait():
        executor.shutdown()
        return result.result()

    yield wait
    os.write(LET_GO[1], b"x")
    yield 42
