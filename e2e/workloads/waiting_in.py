"""A main thread that waits in one way and stays there.

usage: waiting_in.py WAY
"""

import sys

runs = 0
"""How many scripts have run."""


def running():
    while True:
        pass


def asyncio_idle():
    import asyncio

    asyncio.run(asyncio.sleep(3600))


def uvloop_idle():
    import asyncio

    import uvloop

    uvloop.run(asyncio.sleep(3600))


def gevent_idle():
    import gevent

    gevent.sleep(3600)


def sleep():
    import time

    time.sleep(3600)


def recv():
    import socket

    near, far = socket.socketpair()
    far.recv(1)


def recv_with_timeout():
    import socket

    near, far = socket.socketpair()
    far.settimeout(3600)
    far.recv(1)


def lock():
    import threading

    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def queue_with_timeout():
    import queue

    queue.Queue().get(timeout=3600)


def child():
    import subprocess

    subprocess.run(["sleep", "3600"])


def c_sleep():
    import ctypes

    ctypes.CDLL(None).sleep(3600)


def c_poll():
    import ctypes

    ctypes.CDLL(None).poll(None, 0, 3600_000)


sys.path.append("/opt/packages")
print("ready", flush=True)
globals()[sys.argv[1]]()
