"""Threads that wait in eleven ways, and a main thread that lets them go, one after the other, without end.

Each wait has to give exactly what was handed in, once, and none may end before something was. Scripts count themselves in
`runs`. For each line on stdin the program prints how many waits have ended, when, how many scripts have run, the waiting
threads' kernel ids, and what went wrong: `waits COUNT NANOSECONDS RUNS ID,ID,... PROBLEM`. A line `end` has it stop
handing out, and says whether every wait has got its last: the problem is then `none` if all is well.
"""

import os
import queue
import select
import socket
import sys
import threading
import time

LONG = 60
runs = 0
problems = []


class Wait:
    """One thread and its way to wait; `give` hands in a number, `take` waits for it."""

    sent = received = 0

    def loop(self):
        self.tid = threading.get_native_id()
        self.started.set()
        while True:
            got = self.take()
            if got != self.received + 1:
                problems.append(f"{type(self).__name__} got {got!r} after {self.received}")
            self.received += 1

    def start(self):
        self.started = threading.Event()
        threading.Thread(target=self.loop, daemon=True).start()
        self.started.wait()


class Queue(Wait):
    timeout = None

    def __init__(self):
        self.queue = queue.Queue()

    def give(self, number):
        self.queue.put(number)

    def take(self):
        return self.queue.get(timeout=self.timeout)


class TimedQueue(Queue):
    timeout = LONG


class SimpleQueue(Queue):
    def __init__(self):
        self.queue = queue.SimpleQueue()


class Condition(Wait):
    timeout = None

    def __init__(self):
        self.condition, self.slot = threading.Condition(), None

    def give(self, number):
        with self.condition:
            self.slot = number
            self.condition.notify()

    def take(self):
        with self.condition:
            while self.slot is None:
                if not self.condition.wait(self.timeout):
                    return "a wait that was not notified"
            got, self.slot = self.slot, None
            return got


class TimedCondition(Condition):
    timeout = LONG


class Semaphore(Wait):
    def __init__(self):
        self.semaphore = threading.Semaphore(0)

    def give(self, number):
        self.semaphore.release()

    def take(self):
        return self.received + 1 if self.semaphore.acquire() else "no semaphore"


class TimedLock(Wait):
    def __init__(self):
        self.lock = threading.Lock()
        self.lock.acquire()

    def give(self, number):
        self.lock.release()

    def take(self):
        return self.received + 1 if self.lock.acquire(timeout=LONG) else "no lock"


class Socket(Wait):
    timeout = None

    def __init__(self):
        self.near, self.far = socket.socketpair()
        self.far.settimeout(self.timeout)

    def give(self, number):
        self.near.send(number.to_bytes(8))

    def take(self):
        return int.from_bytes(self.far.recv(8))


class TimedSocket(Socket):
    timeout = LONG


class Pipe(Wait):
    def __init__(self):
        self.out, self.into = os.pipe()

    def give(self, number):
        os.write(self.into, number.to_bytes(8))

    def take(self):
        return int.from_bytes(os.read(self.out, 8))


class Poll(Pipe):
    def take(self):
        poll = select.poll()
        poll.register(self.out, select.POLLIN)
        if not poll.poll(LONG * 1000):
            return "a poll that found nothing"
        return super().take()


WAYS = (Queue, TimedQueue, SimpleQueue, Condition, TimedCondition, Semaphore, TimedLock, Socket, TimedSocket, Pipe, Poll)
waits = [way() for way in WAYS]


def state():
    done = sum(wait.received for wait in waits)
    ids = ",".join(str(wait.tid) for wait in waits)
    return f"waits {done} {time.monotonic_ns()} {runs} {ids} "


def answer():
    for line in sys.stdin:
        if line == "end\n":
            return ending.set()
        print(state() + (problems[0] if problems else "none"), flush=True)


ending = threading.Event()
for wait in waits:
    wait.start()
threading.Thread(target=answer, daemon=True).start()
print("ready", flush=True)
while not ending.is_set():
    for wait in waits:
        # Never two at once: each wait is entered anew before it is let go.
        if wait.received == wait.sent:
            wait.sent += 1
            wait.give(wait.sent)
    time.sleep(0.001)
deadline = time.monotonic() + 10
while any(wait.received != wait.sent for wait in waits) and time.monotonic() < deadline:
    time.sleep(0.01)
stuck = [type(wait).__name__ for wait in waits if wait.received != wait.sent]
if stuck:
    problems.append("stuck: " + ", ".join(stuck))
print(state() + (problems[0] if problems else "none"), flush=True)
