"""C code that is not Python's own: it waits or computes, with the GIL released or held. And subinterpreters."""

import collections
import ctypes
import errno
import functools
import mmap
import operator
import os
import re
import select
import signal
import socket
import sqlite3
import struct
import threading
import time
from concurrent import interpreters

import states
from states import BLOCKED, ELSEWHERE, ENDING, FOLDER, FOREIGN, LOCK, NONE, OWN, SECONDS, background, state

libc = ctypes.CDLL(None, use_errno=True)
# Its functions are called with the GIL held.
holding = ctypes.PyDLL(None, use_errno=True)
AGAIN = "its time begins again"


def called(function, *arguments):
    """What a C function returned, and `errno` if that says that it failed."""
    result = function(*arguments)
    return result, ctypes.get_errno() if result == -1 else 0


def timespec(seconds):
    return ctypes.byref((ctypes.c_long * 2)(int(seconds), int(seconds % 1 * 1e9)))


def until():
    """The end of the wait, as an absolute time of the wall clock."""
    return timespec(time.time() + SECONDS)


@state("clock_nanosleep nanosleep", FOREIGN, timed=True, again=True, note=AGAIN)
def nanosleep():
    """C: `nanosleep()`"""
    yield lambda: called(libc.nanosleep, timespec(SECONDS), None)
    yield 0, 0


@state("clock_nanosleep nanosleep", FOREIGN, timed=True, again=True, note=AGAIN)
def usleep():
    """C: `usleep()`"""
    yield lambda: called(libc.usleep, SECONDS * 1_000_000)
    yield 0, 0


@state("clock_nanosleep nanosleep", FOREIGN, timed=True)
def sleep():
    """C: `sleep()`"""
    yield lambda: libc.sleep(SECONDS)
    yield 0


@state("poll", FOREIGN)
def poll():
    """C: `poll()`"""
    end, other_end = os.pipe()
    entry = struct.pack("ihh", end, select.POLLIN, 0)
    yield lambda: called(libc.poll, entry, 1, -1)
    os.write(other_end, b"x")
    yield 1, 0


@state("poll", FOREIGN, timed=True, again=True, note=AGAIN)
def poll_timed():
    """C: `poll()` with a timeout"""
    end, other_end = os.pipe()
    entry = struct.pack("ihh", end, select.POLLIN, 0)
    yield lambda: called(libc.poll, entry, 1, SECONDS * 1000)
    yield 0, 0


@state("read", FOREIGN)
def read():
    """C: `read()`"""
    end, other_end = os.pipe()
    data = ctypes.create_string_buffer(10)
    yield lambda: (called(libc.read, end, data, 10), data.value)
    os.write(other_end, b"data")
    yield (4, 0), b"data"


@state("recvfrom", FOREIGN)
def recv():
    """C: `recv()`"""
    one, other = socket.socketpair()
    data = ctypes.create_string_buffer(10)
    yield lambda: (called(libc.recv, one.fileno(), data, 10, 0), data.value)
    other.send(b"data")
    yield (4, 0), b"data"


@state("read", FOREIGN)
def fgets():
    """C: `fgets()`"""
    end, other_end = os.pipe()
    libc.fdopen.restype = libc.fgets.restype = ctypes.c_void_p
    file = ctypes.c_void_p(libc.fdopen(end, b"r"))
    data = ctypes.create_string_buffer(10)
    yield lambda: (libc.fgets(data, 10, file) is not None, data.value)
    os.write(other_end, b"line\n")
    yield True, b"line\n"


@state("wait4", FOREIGN)
def system():
    """C: `system()`"""
    os.mkfifo(f"{FOLDER}/told")
    both = os.open(f"{FOLDER}/told", os.O_RDWR)
    yield lambda: os.waitstatus_to_exitcode(libc.system(f"read word < {FOLDER}/told; exit 7".encode()))
    os.write(both, b"on\n")
    yield 7


@state("futex", FOREIGN)
def sem_wait():
    """C: `sem_wait()`"""
    semaphore = ctypes.create_string_buffer(32)
    libc.sem_init(semaphore, 0, 0)
    yield lambda: called(libc.sem_wait, semaphore)
    libc.sem_post(semaphore)
    yield 0, 0


@state("futex", FOREIGN, timed=True)
def sem_timedwait():
    """C: `sem_timedwait()`"""
    semaphore = ctypes.create_string_buffer(32)
    libc.sem_init(semaphore, 0, 0)
    yield lambda: called(libc.sem_timedwait, semaphore, until())
    yield -1, errno.ETIMEDOUT


@state("futex", FOREIGN)
def pthread_mutex_lock():
    """C: `pthread_mutex_lock()`"""
    mutex = ctypes.create_string_buffer(40)
    libc.pthread_mutex_lock(mutex)
    yield lambda: libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_unlock(mutex)
    yield 0


@state("futex", FOREIGN)
def pthread_cond_wait():
    """C: `pthread_cond_wait()`"""
    mutex, condition = ctypes.create_string_buffer(40), ctypes.create_string_buffer(48)

    def wait():
        libc.pthread_mutex_lock(mutex)
        return libc.pthread_cond_wait(condition, mutex)

    yield wait
    libc.pthread_mutex_lock(mutex)
    libc.pthread_cond_signal(condition)
    libc.pthread_mutex_unlock(mutex)
    yield 0


@state("futex", FOREIGN, timed=True)
def pthread_cond_timedwait():
    """C: `pthread_cond_timedwait()`"""
    mutex, condition = ctypes.create_string_buffer(40), ctypes.create_string_buffer(48)

    def wait():
        libc.pthread_mutex_lock(mutex)
        return libc.pthread_cond_timedwait(condition, mutex, until())

    yield wait
    yield errno.ETIMEDOUT


@state("flock", FOREIGN)
def flock():
    """C: `flock()`"""
    first, second = (os.open(f"{FOLDER}/locked", os.O_RDWR | os.O_CREAT) for _ in range(2))
    exclusive, free = 2, 8
    libc.flock(first, exclusive)
    yield lambda: called(libc.flock, second, exclusive)
    libc.flock(first, free)
    yield 0, 0


ENDED = "every stop ends it with EINTR (signal(7))"


@state("epoll_wait", ENDING, ends=True, note=ENDED)
def epoll_wait():
    """C: `epoll_wait()`"""
    end, other_end = os.pipe()
    epoll = select.epoll()
    epoll.register(end, select.EPOLLIN)
    events = ctypes.create_string_buffer(12)
    yield lambda: called(libc.epoll_wait, epoll.fileno(), events, 1, -1)
    yield -1, errno.EINTR


@state("semop semtimedop", ENDING, ends=True, note=ENDED)
def semop():
    """C: `semop()`"""
    private, remove = 0, 0
    number = libc.semget(private, 1, 0o600)
    yield lambda: called(libc.semop, number, struct.pack("Hhh", 0, -1, 0), 1)
    yield -1, errno.EINTR
    libc.semctl(number, 0, remove)


@state("rt_sigtimedwait", ENDING, ends=True, note=ENDED)
def sigwaitinfo():
    """C: `sigwaitinfo()`"""
    signals = ctypes.create_string_buffer(128)
    libc.sigaddset(signals, signal.SIGUSR1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    yield lambda: called(libc.sigwaitinfo, signals, None)
    yield -1, errno.EINTR


@state("recvfrom", ENDING, ends=True, note=ENDED)
def recv_rcvtimeo():
    """C: `recv()` with `SO_RCVTIMEO`"""
    one, other = socket.socketpair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 3600, 0))
    data = ctypes.create_string_buffer(10)
    yield lambda: called(libc.recv, one.fileno(), data, 10, 0)
    yield -1, errno.EINTR


@state("futex", ("TargetBlocked", ""), kinds=["main"], announces=True, note="the handler could raise where the C code does not expect it")
def with_a_signal_waiting():
    """C: `pthread_mutex_lock()`, a signal's Python handler waiting"""
    mutex = ctypes.create_string_buffer(40)
    libc.pthread_mutex_lock(mutex)
    handled = []
    signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))

    inside, over = threading.Event(), threading.Event()

    def interrupt(thread):
        # The GIL comes here when the other thread is in the C code.
        inside.wait()
        signal.pthread_kill(thread.ident, signal.SIGUSR1)
        states.announce(thread)
        over.wait()

    interrupting = background(interrupt, threading.current_thread())

    def wait():
        inside.set()
        result = libc.pthread_mutex_lock(mutex)
        return result, handled

    yield wait
    libc.pthread_mutex_unlock(mutex)
    yield 0, [1]
    over.set()
    interrupting.join()


@state("futex", ("", "TargetBlocked"), kinds=["thread"], announces=True, note="the stack has less than 128 KiB left")
def with_a_small_stack():
    """C: `pthread_mutex_lock()` in a thread with a stack of 64 KiB"""
    mutex = ctypes.create_string_buffer(40)
    libc.pthread_mutex_lock(mutex)
    got = []

    def work():
        states.announce()
        got.append(libc.pthread_mutex_lock(mutex))

    def wait():
        threading.stack_size(65536)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return got

    yield wait
    libc.pthread_mutex_unlock(mutex)
    yield [0]


@state("futex", LOCK)
def in_a_callback():
    """`Lock.acquire()` in a callback from C"""
    lock = threading.Lock()
    lock.acquire()
    got = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    def compare(one, other):
        got.append(lock.acquire())
        return 0

    def wait():
        libc.qsort(ctypes.create_string_buffer(2), 2, 1, compare)
        return got

    yield wait
    lock.release()
    yield [True]


@state("clock_nanosleep nanosleep", FOREIGN)
def sqlite_busy():
    """`sqlite3`: a database that is locked"""
    holder, waiter = (
        sqlite3.connect(f"{FOLDER}/base", timeout=3600, isolation_level=None, check_same_thread=False)
        for _ in range(2)
    )
    holder.execute("create table t (n)")
    holder.execute("begin exclusive")
    holder.execute("insert into t values (7)")
    yield lambda: waiter.execute("select n from t").fetchall()
    holder.execute("commit")
    yield [(7,)]


@state("clock_nanosleep nanosleep", FOREIGN, timed=True, again=True)
def sqlite_busy_timed():
    """`sqlite3`: a database that stays locked"""
    holder, waiter = (
        sqlite3.connect(f"{FOLDER}/base", timeout=SECONDS, isolation_level=None, check_same_thread=False)
        for _ in range(2)
    )
    holder.execute("begin exclusive")
    yield lambda: waiter.execute("create table t (n)")
    yield sqlite3.OperationalError


def interpreter(setup="pass"):
    made = interpreters.create()
    made.exec(setup)
    return made


@state("read", FOREIGN)
def in_an_interpreter():
    """`Interpreter.exec()` of `os.read()`, asked in the main interpreter"""
    end, other_end = os.pipe()
    made = interpreter("import os")
    yield lambda: made.exec(f"assert os.read({end}, 10) == b'data'")
    os.write(other_end, b"data")
    yield None
    made.close()


@state("clock_nanosleep", FOREIGN, timed=True)
def sleep_in_an_interpreter():
    """`Interpreter.exec()` of `time.sleep()`, asked in the main interpreter"""
    made = interpreter("import time")
    yield lambda: made.exec(f"time.sleep({SECONDS})")
    yield None
    made.close()


@state("read", OWN, arguments=["--interpreter", "1"])
def of_an_interpreter():
    """`Interpreter.exec()` of `os.read()`, asked in that interpreter"""
    end, other_end = os.pipe()
    made = interpreter("import os")
    yield lambda: made.exec(f"assert os.read({end}, 10) == b'data'")
    os.write(other_end, b"data")
    yield None
    made.close()


@state("futex", FOREIGN, arguments=["--interpreter", "1"])
def lock_of_an_interpreter():
    """`Interpreter.exec()` of `Lock.acquire()`, asked in that interpreter"""
    end, other_end = os.pipe()
    made = interpreter("import os, threading\nlock = threading.Lock()\nlock.acquire()")
    # A thread of that interpreter releases it.
    made.exec(f"threading.Thread(target=lambda: (os.read({end}, 1), lock.release())).start()")
    yield lambda: made.exec("assert lock.acquire()")
    os.write(other_end, b"x")
    yield None
    made.close()


GIL = "the C code holds the GIL"


@state("clock_nanosleep nanosleep", BLOCKED, timed=True, again=True, note=GIL)
def usleep_with_the_gil():
    """C that holds the GIL: `usleep()`"""
    yield lambda: called(holding.usleep, SECONDS * 1_000_000)
    yield 0, 0


@state("read", BLOCKED, alone=True, note=GIL)
def read_with_the_gil():
    """C that holds the GIL: `read()`"""
    end = os.open(f"{FOLDER}/byte", os.O_RDWR)
    data = ctypes.create_string_buffer(10)
    yield lambda: (called(holding.read, end, data, 10), data.value)
    yield (1, 0), b"x"


@state("clone clone3 vfork", BLOCKED, alone=True, note="the thread is in uninterruptible sleep (D) and holds the GIL")
def spawn():
    """`os.posix_spawn()` of a child that does not begin"""
    # The child opens it before it runs its program, and until then its parent stands still.
    actions = [(os.POSIX_SPAWN_OPEN, 0, f"{FOLDER}/gate", os.O_RDONLY, 0)]
    yield lambda: os.posix_spawn("/bin/true", ["true"], {}, file_actions=actions) > 0
    yield True
    os.wait()


@state("", BLOCKED, alone=True, note="it computes in C and holds the GIL")
def computing_in_c_with_the_gil():
    """a loop in C that holds the GIL"""
    word = mmap.mmap(os.open(f"{FOLDER}/word", os.O_RDWR), 1)
    looking = iter(functools.partial(operator.getitem, word, 0), 1)
    yield lambda: len(collections.deque(looking, maxlen=0))
    yield 0


@state("", BLOCKED, note="it computes in C")
def computing_in_c():
    """a loop in C without the GIL"""
    lock = ctypes.create_string_buffer(4)
    libc.pthread_spin_init(lock, 0)
    libc.pthread_spin_lock(lock)
    yield lambda: libc.pthread_spin_lock(lock)
    libc.pthread_spin_unlock(lock)
    yield 0


@state("clock_nanosleep nanosleep", BLOCKED, kinds=["main"], timed=True, again=True, elsewhere=True, note=GIL)
def usleep_with_the_gil_auto():
    """C that holds the GIL: `usleep()`, with `thread: Auto`"""
    yield from usleep_with_the_gil.function()


@state("", ELSEWHERE, kinds=["main"], elsewhere=True)
def computing_in_c_auto():
    """a loop in C without the GIL, with `thread: Auto`"""
    yield from computing_in_c.function()


@state("", NONE, alone=True)
def regex():
    """a regular expression that backtracks"""
    expression, length = re.compile("(a+)+$"), 16
    # It takes twice as long for every character more.
    while True:
        began = time.perf_counter()
        expression.match("a" * length + "b")
        if time.perf_counter() - began > 0.2:
            break
        length += 1
    yield lambda: expression.match("a" * (length + 4) + "b")
    yield None
