"""Stacks that are deep, and stacks that go in circles."""

import functools
import sys
import threading

import truth

# The innermost 131072 frames of a thread are shown.
DEPTH = 60_000

sys.setrecursionlimit(100_000)
threading.stack_size(64 << 20)


def plain(n):
    if n:
        plain(n - 1)
    else:
        truth.park()


def even(n):
    return truth.park() if n == 0 else odd(n - 1)


def odd(n):
    return truth.park() if n == 0 else even(n - 1)


def by_sorting(n):
    # Each step goes through C.
    sorted([1], key=lambda _: by_sorting(n - 1) if n else truth.park())


def by_reduction(n):
    functools.reduce(lambda a, b: by_reduction(n - 1) if n else truth.park(), [1, 2])


def generators(n):
    if n:
        yield from generators(n - 1)
    else:
        truth.park()
        yield


def by_generators(n):
    next(generators(n))


class Tree:
    def __init__(self, depth):
        self.child = Tree(depth - 1) if depth else None

    def __repr__(self):
        return f"<{self.child!r}>" if self.child else truth.park()


def by_printing(n):
    repr(Tree(n))


def factorial(n):
    return n * factorial(n - 1) if n > 1 else truth.park()


def ackermann(m, n):
    if m == 0:
        return n + 1 if n < 60 else truth.park()
    if n == 0:
        return ackermann(m - 1, 1)
    return ackermann(m - 1, ackermann(m, n - 1))


def exceptions(n):
    # A stack that grows within handlers.
    try:
        raise ValueError(n)
    except ValueError:
        if n:
            exceptions(n - 1)
        else:
            truth.park()


CASES = [
    (plain, DEPTH),
    (even, 3001),
    (by_sorting, 300),
    (by_reduction, 300),
    (by_generators, 500),
    (by_printing, 300),
    (factorial, 500),
    (exceptions, 200),
]
threads = [threading.Thread(target=function, args=(n,), name=function.__name__, daemon=True) for function, n in CASES]
threads.append(threading.Thread(target=ackermann, args=(2, 40), name="ackermann", daemon=True))
for thread in threads:
    thread.start()
truth.parked(*threads)


def main(n):
    if n:
        main(n - 1)
    else:
        truth.stand_still()


main(100)
