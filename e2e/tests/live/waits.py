"""Threads that wait in every kind of system call. The program says of each, by name, in which one and for what."""

import ctypes, fcntl, json, os, select, signal, socket, subprocess, sys, threading, time

# Removed by the test: it outlives this program, which is killed.
folder = f"/tmp/waits-{os.getpid()}"
os.mkdir(folder)
libc = ctypes.CDLL(None)
said = {}


def waits(name, calls, detail, function, *args):
    threading.Thread(target=function, args=args, name=name, daemon=True).start()
    said[name] = {"calls": calls, "detail": detail}


def address(pair):
    host, port = pair[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def connected(family, host):
    server = socket.socket(family)
    server.bind((host, 0))
    server.listen()
    client = socket.socket(family)
    client.connect(server.getsockname())
    ends = f"TCP socket {address(client.getsockname())} -> {address(client.getpeername())}, ESTABLISHED"
    return server, client, server.accept()[0], ends


def fifo(name):
    os.mkfifo(f"{folder}/{name}")
    return f"{folder}/{name}"


# Sockets.
listens = socket.socket()
listens.bind(("127.0.0.1", 0))
listens.listen()
where = address(listens.getsockname())
waits("accept", ["accept4"], [f"fd {listens.fileno()}: TCP socket {where}, LISTEN"], listens.accept)
server, client, accepted, ends = connected(socket.AF_INET, "127.0.0.1")
waits("recv", ["recvfrom"], [f"fd {client.fileno()}: {ends}"], client.recv, 1)
_, client6, _, ends6 = kept6 = connected(socket.AF_INET6, "::1")
waits("recv of v6", ["recvfrom"], [f"fd {client6.fileno()}: {ends6}"], client6.recv, 1)
_, timed, _, ends_timed = kept_timed = connected(socket.AF_INET, "127.0.0.1")
timed.settimeout(3600)
waits("recv with timeout", ["poll", "ppoll"], [f"fd {timed.fileno()}: {ends_timed}"], timed.recv, 1)
_, full, _, ends_full = kept_full = connected(socket.AF_INET, "127.0.0.1")


def fill(write):
    while True:
        write(b"x" * 1_000_000)


waits("send", ["sendto"], [ends_full, " bytes not acknowledged"], fill, full.send)
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 0))
waits("udp", ["recvfrom"], [f"fd {udp.fileno()}: UDP socket {address(udp.getsockname())}"], udp.recvfrom, 1)
one, other = socket.socketpair()
waits("pair", ["recvfrom"], [f"fd {one.fileno()}: unix stream socket", f"connected to fd {other.fileno()} of this process"], one.recv, 1)
unix = socket.socket(socket.AF_UNIX)
unix.bind(f"{folder}/a socket")
unix.listen()
to_unix = socket.socket(socket.AF_UNIX)
to_unix.connect(f"{folder}/a socket")
kept_unix = unix.accept()
waits("unix accept", ["accept4"], [f"unix stream socket {folder}/a socket, LISTEN"], unix.accept)
waits("unix client", ["recvfrom"], [f"unix stream socket, connected to {folder}/a socket"], to_unix.recv, 1)

# Pipes, FIFOs and files.
reads, writes = os.pipe()
inode = os.fstat(reads).st_ino
waits("pipe", ["read"], [f"fd {reads}: pipe:[{inode}], read end; write end: fd {writes} of this process"], os.read, reads, 1)
full_reads, full_writes = os.pipe()
waits("full pipe", ["write"], [f"fd {full_writes}: pipe:[", f"write end; read end: fd {full_reads} of this process"], fill, lambda data: os.write(full_writes, data))
child = subprocess.Popen(["/bin/sleep", "3600"], stdout=subprocess.PIPE)
waits("pipe from a child", ["read"], ["read end; write end: process ", "(sleep)"], os.read, child.stdout.fileno(), 1)
path = fifo("named")
both = os.open(path, os.O_RDWR)
waits("fifo", ["read"], [f"fd {both}: FIFO {path}, both ends"], os.read, both, 1)
path = fifo("nobody writes")
waits("open of a fifo", ["openat"], [f"path {path}"], os.open, path, os.O_RDONLY)
first, second = open(f"{folder}/locked", "w"), open(f"{folder}/locked", "w")
fcntl.flock(first, fcntl.LOCK_EX)
waits("flock", ["flock"], [f"fd {second.fileno()}: file {folder}/locked, exclusive lock held by this process"], fcntl.flock, second, fcntl.LOCK_EX)
program = f"import fcntl, time\nfile = open('{folder}/record', 'w')\nfcntl.lockf(file, fcntl.LOCK_EX)\nprint('has it', flush=True)\ntime.sleep(3600)"
holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
holder.stdout.readline()
record = open(f"{folder}/record", "w")
waits("lockf", ["fcntl"], [f"fd {record.fileno()}: file {folder}/record, record lock held by process "], fcntl.lockf, record, fcntl.LOCK_EX)

# Sets of descriptors.
epoll = select.epoll()
epoll.register(reads, select.EPOLLIN)
epoll.register(client.fileno(), select.EPOLLIN)
waits("epoll", ["epoll_wait", "epoll_pwait"], [f"fd {epoll.fileno()}: epoll on 2 descriptors (", f"fd {client.fileno()}: {ends}", f"fd {reads}: pipe:["], epoll.poll)
poll = select.poll()
poll.register(reads, select.POLLIN)
poll.register(client, select.POLLIN)
waits("poll", ["poll", "ppoll"], [f"2 descriptors: fd {reads}: pipe:[", f"fd {client.fileno()}: {ends}"], poll.poll)
waits("select", ["select", "pselect6"], [f"2 descriptors: fd ", f"fd {reads}: pipe:[", f"fd {client.fileno()}: {ends}"], select.select, [reads], [], [client])
many = [os.pipe() for _ in range(10)]
waits("select of many", ["select", "pselect6"], ["10 descriptors (", f"fd {many[9][0]}"], select.select, [end for end, _ in many], [], [])

# Children.
children = subprocess.Popen(["/bin/sleep", "3600"])
waits("wait", ["wait4"], [f"child {children.pid}"], os.waitpid, children.pid, 0)
waits("wait for any", ["wait4"], ["any child"], os.waitpid, -1, 0)
waits("waitid", ["waitid"], [f"child {children.pid}"], os.waitid, os.P_PID, children.pid, os.WEXITED)
pidfd = os.pidfd_open(children.pid)
waits("waitid of a pidfd", ["waitid"], [f"fd {pidfd}: pidfd of process "], os.waitid, os.P_PIDFD, pidfd, os.WEXITED)

# Descriptors that are nothing else.
event = os.eventfd(0)
waits("eventfd", ["read"], [f"fd {event}: eventfd, count 0"], os.read, event, 8)
timer = os.timerfd_create(time.CLOCK_MONOTONIC)
os.timerfd_settime(timer, initial=3600)
waits("timerfd", ["read"], [f"fd {timer}: timerfd, 3", " s left"], os.read, timer, 8)
notify = libc.inotify_init()
libc.inotify_add_watch(notify, folder.encode(), 0x400)
waits("inotify", ["read"], [f"fd {notify}: inotify, 1 watches"], os.read, notify, 1)

# Time, locks and signals.
waits("sleep", ["clock_nanosleep"], [" s left"], time.sleep, 3600)
waits("sleep in C", ["clock_nanosleep", "nanosleep"], ["for 3600.000 s"], libc.sleep, 3600)
lock = threading.Lock()
lock.acquire()
waits("lock", ["futex"], ["futex 0x", ", private"], lock.acquire)
waits("lock with timeout", ["futex"], ["futex 0x", ", private, timed"], lock.acquire, True, 3600)
waits("signals", ["rt_sigtimedwait"], ["SIGUSR1, SIGTERM"], signal.sigwait, {signal.SIGUSR1, signal.SIGTERM})
waits("pause", ["pause", "ppoll"], [], libc.pause)

print("ready", flush=True)
print(json.dumps(said), flush=True)
lock.acquire()
