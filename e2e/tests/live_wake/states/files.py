"""Pipes, files, terminals, and sets of descriptors."""

import ctypes
import fcntl
import os
import select
import selectors
import struct
import sys
import time

from states import EPOLL, FOLDER, FOREIGN, OWN, PARTLY, SECONDS, state

POLL = "poll ppoll"
SELECT = "select pselect6"


def full_pipe():
    """A pipe that takes no more, and how much it took."""
    end, other_end = os.pipe()
    os.set_blocking(other_end, False)
    taken = 0
    try:
        while True:
            taken += os.write(other_end, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(other_end, True)
    return end, other_end, taken


def drain(end, count):
    while count:
        count -= len(os.read(end, count))


@state("read", OWN)
def pipe_read():
    """`os.read()` of a pipe"""
    end, other_end = os.pipe()
    yield lambda: os.read(end, 10)
    os.write(other_end, b"data")
    yield b"data"


@state("write", OWN)
def pipe_write():
    """`os.write()` into a full pipe"""
    end, other_end, full = full_pipe()
    yield lambda: os.write(other_end, b"data")
    drain(end, full)
    yield 4


@state("write", PARTLY)
def pipe_write_partly():
    """`BufferedWriter.write()` into a pipe, part already written"""
    end, other_end = os.pipe()
    data = bytes(range(256)) * 2048
    writer = os.fdopen(other_end, "wb")
    got = bytearray()

    def wait():
        return writer.write(data), writer.flush()

    yield wait
    while len(got) < len(data):
        got += os.read(end, len(data))
    yield (len(data), None) if got == data else "changed on the way"


@state("write", OWN)
def print_into_a_full_pipe():
    """`print()` into a full pipe"""
    end, other_end, full = full_pipe()
    writer = os.fdopen(other_end, "w")
    yield lambda: print("line", file=writer, flush=True)
    drain(end, full)
    yield None


@state("read", OWN)
def stdin():
    """`sys.stdin.readline()`"""
    end, other_end = os.pipe()
    os.dup2(end, 0)
    sys.stdin = open(0)
    os.write(other_end, b"half ")
    yield sys.stdin.readline
    os.write(other_end, b"line\n")
    yield "half line\n"


@state("read", OWN)
def buffered_read():
    """`file.read()` of a pipe, up to its end"""
    end, other_end = os.pipe()
    file = os.fdopen(end, "rb")
    os.write(other_end, b"da")
    yield file.read
    os.write(other_end, b"ta")
    os.close(other_end)
    yield b"data"


def terminal():
    """The two ends of a terminal; this mount namespace is the program's own."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"devpts", b"/dev/pts", b"devpts", 0, b"newinstance,ptmxmode=0666"):
        raise OSError(ctypes.get_errno(), "mount")
    ours = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    unlock, number = 0x40045431, 0x80045430
    fcntl.ioctl(ours, unlock, struct.pack("i", 0))
    name = struct.unpack("i", fcntl.ioctl(ours, number, b"\0" * 4))[0]
    return ours, os.open(f"/dev/pts/{name}", os.O_RDWR | os.O_NOCTTY)


@state("read", OWN)
def terminal_read():
    """`file.readline()` of a terminal"""
    ours, theirs = terminal()
    yield os.fdopen(theirs, "r").readline
    os.write(ours, b"line\n")
    yield "line\n"


@state("openat open", OWN)
def fifo_open_to_read():
    """`open()` of a FIFO that nobody writes"""
    os.mkfifo(f"{FOLDER}/fifo")

    def wait():
        with open(f"{FOLDER}/fifo") as file:
            return file.read()

    yield wait
    with open(f"{FOLDER}/fifo", "w") as file:
        file.write("data")
    yield "data"


@state("openat open", OWN)
def fifo_open_to_write():
    """`os.open()` of a FIFO that nobody reads"""
    os.mkfifo(f"{FOLDER}/fifo")

    def wait():
        descriptor = os.open(f"{FOLDER}/fifo", os.O_WRONLY)
        return os.write(descriptor, b"data")

    yield wait
    with open(f"{FOLDER}/fifo", "rb") as file:
        got = file.read(4)
    yield 4 if got == b"data" else got


@state("read", OWN)
def fifo_read():
    """`os.read()` of a FIFO"""
    os.mkfifo(f"{FOLDER}/fifo")
    both = os.open(f"{FOLDER}/fifo", os.O_RDWR)
    yield lambda: os.read(both, 10)
    os.write(both, b"data")
    yield b"data"


@state("flock", OWN)
def flock():
    """`fcntl.flock()`"""
    first, second = (open(f"{FOLDER}/locked", "w") for _ in range(2))
    fcntl.flock(first, fcntl.LOCK_EX)

    def wait():
        fcntl.flock(second, fcntl.LOCK_EX)
        try:
            return fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "has it"

    yield wait
    fcntl.flock(first, fcntl.LOCK_UN)
    yield "has it"


@state("fcntl", OWN)
def lockf():
    """`fcntl.lockf()`"""
    file = open(f"{FOLDER}/locked", "w")
    ready, tell = os.pipe()
    told, let_go = os.pipe()
    # Record locks are a process's.
    child = os.fork()
    if not child:
        fcntl.lockf(file, fcntl.LOCK_EX)
        os.write(tell, b"x")
        os.read(told, 1)
        os._exit(0)
    os.read(ready, 1)
    yield lambda: fcntl.lockf(file, fcntl.LOCK_EX)
    os.write(let_go, b"x")
    yield None
    os.waitpid(child, 0)


@state("splice", OWN)
def splice():
    """`os.splice()` from an empty pipe"""
    (end, other_end), (to, out) = os.pipe(), os.pipe()
    yield lambda: (os.splice(end, out, 10), os.read(to, 10))
    os.write(other_end, b"data")
    yield 4, b"data"


# Of these two Python raises EINTR.
@state("read", FOREIGN)
def eventfd_read():
    """`os.eventfd_read()`"""
    descriptor = os.eventfd(0)
    yield lambda: os.eventfd_read(descriptor)
    os.eventfd_write(descriptor, 7)
    yield 7


@state("write", FOREIGN)
def eventfd_write():
    """`os.eventfd_write()` of what it has no room for"""
    most = 0xFFFF_FFFF_FFFF_FFFE
    descriptor = os.eventfd(0)
    os.eventfd_write(descriptor, most)
    yield lambda: os.eventfd_write(descriptor, 1)
    yield None if os.eventfd_read(descriptor) == most else "changed"


@state("read", OWN, timed=True)
def timerfd():
    """`os.read()` of a timer"""
    descriptor = os.timerfd_create(time.CLOCK_MONOTONIC)

    def wait():
        os.timerfd_settime(descriptor, initial=SECONDS)
        return os.read(descriptor, 8)

    yield wait
    yield struct.pack("Q", 1)


@state("read", OWN)
def inotify():
    """`os.read()` of inotify"""
    libc = ctypes.CDLL(None)
    descriptor = libc.inotify_init()
    create = 0x100
    libc.inotify_add_watch(descriptor, FOLDER.encode(), create)
    yield lambda: os.read(descriptor, 1000)[16:].rstrip(b"\0")
    os.mkdir(f"{FOLDER}/made")
    yield b"made"


@state(SELECT, OWN)
def select_read():
    """`select.select()`"""
    end, other_end = os.pipe()
    yield lambda: select.select([end], [], [])[0] == [end]
    os.write(other_end, b"x")
    yield True


@state(SELECT, OWN, timed=True)
def select_timed():
    """`select.select()` with a timeout"""
    end, other_end = os.pipe()
    yield lambda: select.select([end], [], [], SECONDS)
    yield [], [], []


@state(SELECT, OWN, timed=True)
def select_of_nothing():
    """`select.select([], [], [], timeout)`"""
    yield lambda: select.select([], [], [], SECONDS)
    yield [], [], []


@state(POLL, OWN)
def poll():
    """`select.poll().poll()`"""
    end, other_end = os.pipe()
    poll = select.poll()
    poll.register(end, select.POLLIN)
    yield poll.poll
    os.write(other_end, b"x")
    yield [(end, select.POLLIN)]


@state(POLL, OWN, timed=True)
def poll_timed():
    """`select.poll().poll(timeout)`"""
    end, other_end = os.pipe()
    poll = select.poll()
    poll.register(end, select.POLLIN)
    yield lambda: poll.poll(SECONDS * 1000)
    yield []


@state("epoll_wait", EPOLL)
def epoll():
    """`select.epoll().poll()`"""
    end, other_end = os.pipe()
    epoll = select.epoll()
    epoll.register(end, select.EPOLLIN)
    yield epoll.poll
    os.write(other_end, b"x")
    yield [(end, select.EPOLLIN)]


@state("epoll_wait", EPOLL, timed=True)
def epoll_timed():
    """`select.epoll().poll(timeout)`"""
    end, other_end = os.pipe()
    epoll = select.epoll()
    epoll.register(end, select.EPOLLIN)
    yield lambda: epoll.poll(SECONDS)
    yield []


@state("epoll_wait", EPOLL)
def selector():
    """`selectors.DefaultSelector().select()`"""
    end, other_end = os.pipe()
    selector = selectors.DefaultSelector()
    selector.register(end, selectors.EVENT_READ, "data")
    yield lambda: [key.data for key, _ in selector.select()]
    os.write(other_end, b"x")
    yield ["data"]


@state("waitid", OWN)
def pidfd():
    """`os.waitid()` of a pidfd"""
    told, let_go = os.pipe()
    child = os.fork()
    if not child:
        os.read(told, 1)
        os._exit(7)
    descriptor = os.pidfd_open(child)
    yield lambda: os.waitid(os.P_PIDFD, descriptor, os.WEXITED).si_status
    os.write(let_go, b"x")
    yield 7


@state("readv", OWN)
def readv():
    """`os.readv()` of a pipe"""
    end, other_end = os.pipe()
    data = bytearray(4)
    yield lambda: (os.readv(end, [data]), bytes(data))
    os.write(other_end, b"data")
    yield 4, b"data"
