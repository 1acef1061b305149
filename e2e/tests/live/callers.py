"""Threads that are blocked in system calls of Python's own and of other people's code. The program says of each, by
name, in which call, whether it is Python's own, and which file libc was called from."""

import ctypes, fcntl, json, multiprocessing, os, queue, select, signal, socket, sqlite3, struct, subprocess, sys, threading, time

libc = ctypes.CDLL(None)
# What is mounted and bound from here on is gone with the process.
os.unshare(os.CLONE_NEWNET)
with socket.socket() as configured:
    fcntl.ioctl(configured, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
assert libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0
# Without files there, libc asks a name server on this host, which is one that never answers.
assert libc.mount(b"none", b"/etc", b"tmpfs", 0, None) == 0
silent = socket.socket(type=socket.SOCK_DGRAM)
silent.bind(("127.0.0.1", 53))

said = {}
python = f"python3.{sys.version_info.minor}"


def waits(name, calls, own, file, function, *args):
    thread = threading.Thread(target=function, args=args, name=name, daemon=True)
    thread.start()
    said[name] = {"tid": thread.native_id, "calls": calls, "own": own, "file": file}


def fill(write):
    while True:
        write(b"x" * 1_000_000)


# Time and locks.
lock = threading.Lock()
lock.acquire()
waits("sleep", ["clock_nanosleep"], True, python, time.sleep, 3600)
waits("lock", ["futex"], True, python, lock.acquire)
waits("lock with timeout", ["futex"], True, python, lock.acquire, True, 3600)
waits("condition", ["futex"], True, python, threading.Event().wait)
waits("event with timeout", ["futex"], True, python, threading.Event().wait, 3600)
waits("join", ["futex"], True, python, threading.main_thread().join)
waits("queue", ["futex"], True, python, queue.SimpleQueue().get)
waits("queue with timeout", ["futex"], True, python, queue.SimpleQueue().get, True, 3600)
semaphore = multiprocessing.Semaphore(0)
waits("process semaphore", ["futex"], True, "/lib-dynload/_multiprocessing.", semaphore.acquire)
waits("process semaphore with timeout", ["futex"], True, "/lib-dynload/_multiprocessing.", semaphore.acquire, True, 3600)

# Sockets.
listens = socket.socket()
listens.bind(("127.0.0.1", 0))
listens.listen()
idle = socket.socket()
idle.listen()
waits("accept", ["accept4"], True, python, idle.accept)
client = socket.create_connection(listens.getsockname())
waits("recv", ["recvfrom"], True, python, client.recv, 1)
timed = socket.create_connection(listens.getsockname())
timed.settimeout(3600)
waits("recv with timeout", ["poll", "ppoll"], True, python, timed.recv, 1)
waits("send", ["sendto"], True, python, fill, socket.create_connection(listens.getsockname()).send)
unix = socket.socket(socket.AF_UNIX)
unix.bind("/tmp/full")
unix.listen(0)
kept = [socket.socket(socket.AF_UNIX) for _ in range(2)]
kept[0].connect("/tmp/full")
waits("unix connect", ["connect"], True, python, kept[1].connect, "/tmp/full")
waits("getaddrinfo", ["poll", "ppoll"], False, python, socket.getaddrinfo, "db.example", 5432)

# Pipes and files.
reads, writes = os.pipe()
full = os.pipe()
waits("pipe", ["read"], True, python, os.read, reads, 1)
waits("full pipe", ["write"], True, python, fill, lambda data: os.write(full[1], data))
waits("lines of a file", ["read"], True, python, os.fdopen(os.pipe()[0]).readline)
os.mkfifo("/tmp/fifo")
waits("open of a fifo", ["openat"], True, python, os.open, "/tmp/fifo", os.O_RDONLY)
first, second = open("/tmp/locked", "w"), open("/tmp/locked", "w")
fcntl.flock(first, fcntl.LOCK_EX)
waits("flock", ["flock"], True, python, fcntl.flock, second, fcntl.LOCK_EX)

# Sets of descriptors.
epoll, poll, timed_poll = select.epoll(), select.poll(), select.poll()
for each in epoll, poll, timed_poll:
    each.register(reads, select.POLLIN)
waits("epoll", ["epoll_wait", "epoll_pwait"], True, python, epoll.poll)
waits("poll", ["poll", "ppoll"], True, python, poll.poll)
waits("poll with timeout", ["poll", "ppoll"], True, python, timed_poll.poll, 3600_000)
waits("select", ["select", "pselect6"], True, python, select.select, [reads], [], [])

# Children and signals.
child = subprocess.Popen(["/bin/sleep", "3600"])
waits("wait", ["wait4"], True, python, os.waitpid, child.pid, 0)
waits("waitid", ["waitid"], True, python, os.waitid, os.P_PID, child.pid, os.WEXITED)
waits("signals", ["rt_sigtimedwait"], True, python, signal.sigwait, {signal.SIGUSR1})
waits("pause", ["pause", "ppoll"], True, python, signal.pause)

# Other people's code.
waits("sleep in C", ["clock_nanosleep", "nanosleep"], False, "libffi.", libc.sleep, 3600)
waits("read in C", ["read"], False, "libffi.", libc.read, reads, bytes(1), 1)
waits("poll in C", ["poll", "ppoll"], False, "libffi.", libc.poll, struct.pack("ihh", reads, 1, 0), 1, 3600_000)
libc.fdopen.restype = ctypes.c_void_p
waits("character in C", ["read"], False, "libffi.", libc.fgetc, ctypes.c_void_p(libc.fdopen(os.pipe()[0], b"r")))
holder = sqlite3.connect("/tmp/database", check_same_thread=False)
holder.execute("create table t (x)")
holder.execute("begin exclusive")
waiter = sqlite3.connect("/tmp/database", timeout=3600, check_same_thread=False)
waits("busy database", ["clock_nanosleep", "nanosleep"], False, "libsqlite3.", waiter.execute, "insert into t values (1)")

print("ready", flush=True)
print(json.dumps(said), flush=True)
lock.acquire()
