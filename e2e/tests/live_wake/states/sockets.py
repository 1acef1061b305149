"""Sockets of every kind, and what is built of them."""

import ctypes
import http.client
import os
import socket
import ssl
import struct
import threading
import urllib.request

from states import EPOLL, FOLDER, FOREIGN, OWN, PARTLY, SECONDS, background, state

# The call has returned when the thread is looked at.
CLOSING = ("None Interrupt", "None Interrupt")
POLL = "poll ppoll"


def tcp(family=socket.AF_INET, host="127.0.0.1"):
    """Two connected sockets."""
    with socket.create_server((host, 0), family=family) as server:
        client = socket.create_connection(server.getsockname()[:2])
        return client, server.accept()[0]


def fill(end):
    """Writes to a socket until it takes no more, and returns how much it took."""
    end.setblocking(False)
    taken = 0
    try:
        while True:
            taken += end.send(b"x" * 65536)
    except BlockingIOError:
        end.setblocking(True)
        return taken


def drain(end, count):
    """Reads that many bytes."""
    while count:
        count -= len(end.recv(min(count, 1 << 20)))


@state("recvfrom", OWN)
def recv():
    """`socket.recv()`, TCP"""
    one, other = tcp()
    yield lambda: one.recv(10)
    other.send(b"data")
    yield b"data"


@state("recvfrom", OWN)
def recv_v6():
    """`socket.recv()`, TCP over IPv6"""
    one, other = tcp(socket.AF_INET6, "::1")
    yield lambda: one.recv(10)
    other.send(b"data")
    yield b"data"


@state("recvfrom", OWN)
def recv_end():
    """`socket.recv()` that ends with the connection"""
    one, other = tcp()
    yield lambda: one.recv(10)
    other.close()
    yield b""


@state(POLL, OWN, timed=True)
def recv_timed():
    """`socket.recv()` with a timeout"""
    one, other = tcp()
    one.settimeout(SECONDS)
    yield lambda: one.recv(10)
    yield TimeoutError


@state(POLL, OWN)
def recv_with_timeout_answered():
    """`socket.recv()` with a timeout, that gets data"""
    one, other = tcp()
    one.settimeout(3600)
    yield lambda: one.recv(10)
    other.send(b"data")
    yield b"data"


@state("recvfrom", EPOLL, timed=True, again=True, note="the kernel ends it at every stop, and Python waits again for the whole time")
def recv_rcvtimeo():
    """`socket.recv()` with `SO_RCVTIMEO`"""
    one, other = tcp()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", SECONDS, 0))
    yield lambda: one.recv(10)
    yield BlockingIOError


@state("recvfrom", OWN)
def recv_into():
    """`socket.recv_into()`, all of it"""
    one, other = tcp()
    data = bytearray(6)

    def wait():
        one.recv_into(data, 6, socket.MSG_WAITALL)
        return bytes(data)

    yield wait
    other.send(b"six")
    other.send(b"teen")
    yield b"sixtee"


@state("recvfrom", PARTLY)
def recv_partly_there():
    """`socket.recv()` with `MSG_WAITALL`, part already there"""
    one, other = tcp()
    other.send(b"six")

    def wait():
        data = one.recv(6, socket.MSG_WAITALL)
        return data + one.recv(6 - len(data), socket.MSG_WAITALL) if len(data) < 6 else data

    yield wait
    other.send(b"teen")
    yield b"sixtee"


@state("recvfrom", OWN)
def recvfrom_udp():
    """`socket.recvfrom()`, UDP"""
    one, other = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(2))
    one.bind(("127.0.0.1", 0))
    yield lambda: one.recvfrom(10)[0]
    other.sendto(b"data", one.getsockname())
    yield b"data"


@state("recvmsg", OWN)
def recvmsg():
    """`socket.recv_fds()`, AF_UNIX"""
    one, other = socket.socketpair()

    def wait():
        data, fds, _, _ = socket.recv_fds(one, 10, 1)
        os.close(fds[0])
        return data, len(fds)

    yield wait
    socket.send_fds(other, [b"data"], [0])
    yield b"data", 1


@state("recvfrom", OWN)
def recv_unix():
    """`socket.recv()`, AF_UNIX datagrams"""
    one, other = socket.socketpair(type=socket.SOCK_DGRAM)
    yield lambda: one.recv(10)
    other.send(b"data")
    yield b"data"


@state("accept4", OWN)
def accept():
    """`socket.accept()`"""
    server = socket.create_server(("127.0.0.1", 0))

    def wait():
        with server.accept()[0] as end:
            return end.recv(10)

    yield wait
    with socket.create_connection(server.getsockname()) as client:
        client.send(b"data")
    yield b"data"


@state(POLL, OWN, timed=True)
def accept_timed():
    """`socket.accept()` with a timeout"""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(SECONDS)
    yield server.accept
    yield TimeoutError


@state("accept4", OWN)
def accept_unix():
    """`socket.accept()`, AF_UNIX"""
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{FOLDER}/socket")
    server.listen()
    yield lambda: server.accept()[0].recv(10)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{FOLDER}/socket")
        client.send(b"data")
    yield b"data"


def full_backlog(family, address):
    """A server that has no room for another connection."""
    server = socket.socket(family)
    server.bind(address)
    server.listen(0)
    waiting = []
    while True:
        client = socket.socket(family)
        client.settimeout(0.2)
        try:
            client.connect(server.getsockname())
        except (BlockingIOError, TimeoutError):
            client.close()
            return server, waiting
        waiting.append(client)


def connects(client, server, waiting):
    """Connects, and sends over what came of it; the release takes all connections."""

    def wait():
        client.connect(server.getsockname())
        return client.send(b"data"), client.recv(10)

    yield wait
    for _ in waiting:
        server.accept()[0].close()
    end = server.accept()[0]
    end.send(end.recv(10) + b" back")
    yield 4, b"data back"


# Python asks with poll() how the connecting that was interrupted went on.
@state("connect " + POLL, OWN)
def connect():
    """`socket.connect()`, TCP, to a full backlog"""
    server, waiting = full_backlog(socket.AF_INET, ("127.0.0.1", 0))
    yield from connects(socket.socket(), server, waiting)


@state(POLL, OWN, timed=True)
def connect_timed():
    """`socket.connect()`, TCP, with a timeout"""
    server, waiting = full_backlog(socket.AF_INET, ("127.0.0.1", 0))
    client = socket.socket()
    client.settimeout(SECONDS)
    yield lambda: client.connect(server.getsockname())
    yield TimeoutError


@state("connect", FOREIGN)
def connect_unix():
    """`socket.connect()`, AF_UNIX, to a full backlog"""
    server, waiting = full_backlog(socket.AF_UNIX, f"{FOLDER}/socket")
    yield from connects(socket.socket(socket.AF_UNIX), server, waiting)


@state("sendto", OWN)
def send():
    """`socket.send()` into a full socket"""
    # AF_UNIX: TCP may find room for a few bytes whenever it is asked again.
    one, other = socket.socketpair()
    full = fill(one)
    yield lambda: one.send(b"data")
    drain(other, full)
    yield 4


@state("sendto", PARTLY)
def sendall():
    """`socket.sendall()`, part already sent"""
    one, other = socket.socketpair()
    data = bytes(range(256)) * 8192
    yield lambda: one.sendall(data)
    got = bytearray()
    while len(got) < len(data):
        got += other.recv(len(data))
    yield None if got == data else "changed on the way"


@state(POLL, OWN, timed=True)
def send_timed():
    """`socket.send()` with a timeout into a full connection"""
    one, other = tcp()
    fill(one)
    one.settimeout(SECONDS)
    yield lambda: one.send(b"data")
    yield TimeoutError


@state("sendmsg", OWN)
def sendmsg():
    """`socket.sendmsg()` into a full socket"""
    one, other = socket.socketpair()
    full = fill(one)
    yield lambda: one.sendmsg([b"da", b"ta"])
    drain(other, full)
    yield 4


@state("sendfile", OWN)
def sendfile():
    """`os.sendfile()` into a full socket"""
    one, other = socket.socketpair()
    full = fill(one)
    file = os.open(f"{FOLDER}/file", os.O_RDWR | os.O_CREAT)
    os.write(file, b"data")
    yield lambda: os.sendfile(one.fileno(), file, 0, 4)
    drain(other, full)
    yield 4


@state("recvfrom", OWN)
def makefile():
    """`socket.makefile().readline()`, half a line there"""
    one, other = tcp()
    file = one.makefile("r")
    other.send(b"half ")
    yield file.readline
    other.send(b"line\n")
    yield "half line\n"


@state("recvfrom", OWN)
def urlopen():
    """`urllib.request.urlopen()`"""
    server = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{server.getsockname()[1]}/"
    yield lambda: urllib.request.urlopen(url).read()
    end = server.accept()[0]
    end.recv(1000)
    end.send(b"HTTP/1.0 200 OK\r\n\r\nbody")
    end.close()
    yield b"body"


@state(POLL, OWN, timed=True)
def http_timed():
    """`http.client` with a timeout"""
    server = socket.create_server(("127.0.0.1", 0))
    connection = http.client.HTTPConnection(*server.getsockname(), timeout=SECONDS)

    def wait():
        connection.request("GET", "/")
        return connection.getresponse()

    yield wait
    yield TimeoutError


def tls():
    """Two ends of a TLS connection, the client's first."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(f"{FOLDER}/tls.pem")
    trusting = ssl.create_default_context(cafile=f"{FOLDER}/tls.pem")
    one, other = socket.socketpair()
    ends = []
    thread = background(lambda: ends.append(serving.wrap_socket(other, server_side=True)))
    client = trusting.wrap_socket(one, server_hostname="localhost")
    thread.join()
    return client, ends[0]


@state("read", FOREIGN)
def tls_recv():
    """`SSLSocket.recv()`"""
    client, server = tls()
    yield lambda: client.recv(10)
    server.send(b"data")
    yield b"data"


@state(POLL, OWN, timed=True)
def tls_recv_timed():
    """`SSLSocket.recv()` with a timeout"""
    client, server = tls()
    client.settimeout(SECONDS)
    yield lambda: client.recv(10)
    yield TimeoutError


@state("write", FOREIGN)
def tls_send():
    """`SSLSocket.sendall()`, part already sent"""
    client, server = tls()
    data = bytes(range(256)) * 8192
    yield lambda: client.sendall(data)
    got = bytearray()
    while len(got) < len(data):
        got += server.recv(len(data))
    yield None if got == data else "changed on the way"


@state("read", FOREIGN)
def tls_handshake():
    """`SSLContext.wrap_socket()`, the other side silent"""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(f"{FOLDER}/tls.pem")
    trusting = ssl.create_default_context(cafile=f"{FOLDER}/tls.pem")
    one, other = socket.socketpair()
    yield lambda: trusting.wrap_socket(one, server_hostname="localhost").recv(10)
    server = serving.wrap_socket(other, server_side=True)
    server.send(b"data")
    yield b"data"


@state(POLL, FOREIGN, note="may take longer by what was over of the resolver's own timeout")
def getaddrinfo():
    """`socket.getaddrinfo()`"""
    # A name server that is silent until it is released, and a C library that asks it.
    name_server = socket.socket(type=socket.SOCK_DGRAM)
    pid = os.getpid()
    address = f"127.{pid >> 14 & 0x7F | 1}.{pid >> 7 & 0x7F}.{pid & 0x7F | 128}"
    name_server.bind((address, 53))
    os.mkdir(f"{FOLDER}/etc")
    for name, text in {
        "resolv.conf": f"nameserver {address}\noptions timeout:30 attempts:1\n",
        "nsswitch.conf": "hosts: dns\n",
        "hosts": "",
    }.items():
        with open(f"{FOLDER}/etc/{name}", "w") as file:
            file.write(text)
    libc = ctypes.CDLL(None, use_errno=True)
    bind = 4096
    if libc.mount(f"{FOLDER}/etc".encode(), b"/etc", None, bind, None):
        raise OSError(ctypes.get_errno(), "mount")

    yield lambda: socket.getaddrinfo("name.invalid", 80, socket.AF_INET, socket.SOCK_STREAM)[0][4]
    question, client = name_server.recvfrom(1000)
    # The question again, with one answer: its name by reference, an address of this internet, for a minute.
    answer = question[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
    end = question.index(b"\0", 12) + 5
    answer += question[12:end] + struct.pack(">HHHIH4B", 0xC00C, 1, 1, 60, 4, 192, 0, 2, 7)
    name_server.sendto(answer, client)
    yield "192.0.2.7", 80


@state("close", CLOSING, ends=True, note="every stop ends it; what was not sent yet is sent all the same")
def close_lingering():
    """`socket.close()` with `SO_LINGER`"""
    one, other = tcp()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    full = fill(one)
    yield one.close
    drain(other, full)
    yield None


@state("recvfrom", OWN)
def recv_held():
    """`socket.recv()` while the thread has a lock that others want"""
    lock = threading.Lock()
    one, other = tcp()
    others = []

    def wants():
        with lock:
            pass

    def wait():
        with lock:
            others.extend(background(wants) for _ in range(3))
            return one.recv(10)

    yield wait
    other.send(b"data")
    yield b"data"
    for each in others:
        each.join()
