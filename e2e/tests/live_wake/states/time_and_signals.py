"""Waits for a moment and for signals."""

import os
import signal
import threading
import time

from states import EPOLL, FOREIGN, NONE, OWN, SECONDS, state, waiting


@state("clock_nanosleep", OWN, timed=True)
def sleep():
    """`time.sleep()`"""
    yield lambda: time.sleep(SECONDS)
    yield None


@state("pause", FOREIGN)
def pause():
    """`signal.pause()`"""
    got = []
    signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
    yield signal.pause
    signal.pthread_kill(waiting[0], signal.SIGUSR1)
    yield None


@state("rt_sigtimedwait", FOREIGN)
def sigwait():
    """`signal.sigwait()`"""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    yield lambda: signal.sigwait({signal.SIGUSR1})
    os.kill(os.getpid(), signal.SIGUSR1)
    yield signal.SIGUSR1


@state("rt_sigtimedwait", EPOLL)
def sigwaitinfo():
    """`signal.sigwaitinfo()`"""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    yield lambda: signal.sigwaitinfo({signal.SIGUSR1}).si_signo
    os.kill(os.getpid(), signal.SIGUSR1)
    yield signal.SIGUSR1


@state("rt_sigtimedwait", EPOLL, timed=True)
def sigtimedwait():
    """`signal.sigtimedwait()`"""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    yield lambda: signal.sigtimedwait({signal.SIGUSR1}, SECONDS)
    yield None


@state("", NONE)
def computing_in_python():
    """a loop in Python"""
    done = []

    def wait():
        count = 0
        while not done:
            count += 1
        return count > 0

    yield wait
    done.append(1)
    yield True


@state("", NONE)
def spinning_on_a_lock():
    """`Lock.acquire(blocking=False)` over and over"""
    lock = threading.Lock()
    lock.acquire()

    def wait():
        while not lock.acquire(blocking=False):
            pass
        return lock.locked()

    yield wait
    lock.release()
    yield True
