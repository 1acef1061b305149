"""Threads that compute, allocate and recurse without end, in calls that are known: the program states them itself.

usage: known_calls.py WORKERS FILE

FILE gets the call graph as JSON before anything runs: for each function, by qualified name, its lines as the compiler has
them, the lines that call on, and whom they call. The calls are the arrows in this file's comments. Then the program prints
`ready`, and from then on, ten times a second, how much all workers have done so far and when: `work COUNT NANOSECONDS`.
One thread stands still at a depth that never changes.
"""

import functools
import json
import sys
import threading
import time

PARKED_DEPTH = 100


class Leaf:
    """A tree's end."""

    def __init__(self, value):
        self.value = value
        self.text = f"leaf {value}" * (1 + value % 5)

    def weight(self):
        return len(self.text) + self.value

    def walk(self):
        yield self.value
        yield self.weight()  # -> Leaf.weight


class Branch:
    """A tree's fork, with a method for each way to get from one Python frame to the next."""

    def __init__(self, left, right):
        self.left, self.right = left, right

    @property
    def heavier(self):
        left = self.left.weight()  # -> Leaf.weight, Branch.weight
        right = self.right.weight()  # -> Leaf.weight, Branch.weight
        return self.left if left > right else self.right

    def weight(self):
        left = self.left.weight()  # -> Leaf.weight, Branch.weight
        return left + self.right.weight()  # -> Leaf.weight, Branch.weight

    def walk(self):
        yield from self.left.walk()  # -> Leaf.walk, Branch.walk
        yield from self.right.walk()  # -> Leaf.walk, Branch.walk


def grow(depth, seed):
    if depth == 0:
        return Leaf(seed % 97)  # -> Leaf.__init__
    left = grow(depth - 1, seed * 31 + 7)  # -> grow
    right = grow(depth - 1, seed * 17 + 3)  # -> grow
    return Branch(left, right)  # -> Branch.__init__


def fold(values):
    def combine(total, value):
        return (total * 33 + value) % 1_000_003

    return functools.reduce(combine, values, 1)  # -> fold.<locals>.combine, Branch.walk


def order(words):
    by_end = lambda word: (word[::-1], len(word))
    return sorted(words, key=by_end)  # -> order.<locals>.<lambda>


def descend_to(tree):
    while isinstance(tree, Branch):
        tree = tree.heavier  # -> Branch.heavier
    return tree.value


def round_of(seed):
    tree = grow(6, seed)  # -> grow
    total = fold(tree.walk())  # -> fold, Branch.walk
    words = [str(total * number) for number in range(64)]
    total += len(order(words))  # -> order
    return total + descend_to(tree)  # -> descend_to


def work(done, number):
    while True:
        done[number] += 1
        round_of(done[number] * 97 + number)  # -> round_of


def park(depth, parked, never):
    if depth == 1:
        # On one line, so that whoever was told that it is parked sees it nowhere else.
        parked.release(), never.acquire()
    park(depth - 1, parked, never)  # -> park


def report(done):
    while True:
        print("work", sum(done), time.monotonic_ns(), flush=True)
        time.sleep(0.1)


def code_objects(code):
    yield code
    for constant in code.co_consts:
        if hasattr(constant, "co_qualname"):
            yield from code_objects(constant)


def lines_of(code):
    return sorted({line for *_, line in code.co_lines() if line})


def call_graph(source):
    arrows = {}
    for number, line in enumerate(source.splitlines(), 1):
        _, arrow, callees = line.partition("  # -> ")
        if arrow:
            arrows[number] = callees.split(", ")
    functions = {}
    for code in code_objects(compile(source, __file__, "exec")):
        lines = lines_of(code)
        calls = {line: arrows[line] for line in lines if line in arrows}
        functions[code.co_qualname] = (code.co_filename, lines, calls)
    # How a thread gets into this file.
    thread = threading.Thread
    for function, callees in [
        (thread._bootstrap, ["Thread._bootstrap_inner"]),
        (thread._bootstrap_inner, ["Thread.run"]),
        (thread.run, ["work", "park"]),
    ]:
        code = function.__code__
        lines = lines_of(code)
        calls = dict.fromkeys(lines, callees)
        functions[code.co_qualname] = (code.co_filename, lines, calls)
    return {
        name: {"file": file, "lines": lines, "calls": calls}
        for name, (file, lines, calls) in functions.items()
    }


def main(workers, file):
    with open(__file__) as source, open(file, "w") as statement:
        functions = call_graph(source.read())
        json.dump({"functions": functions, "parked": PARKED_DEPTH}, statement)
    done = [0] * workers
    for number in range(workers):
        threading.Thread(
            target=work, args=(done, number), name=f"worker-{number}", daemon=True
        ).start()
    parked, never = threading.Lock(), threading.Lock()
    parked.acquire(), never.acquire()
    threading.Thread(
        target=park, args=(PARKED_DEPTH, parked, never), name="parked", daemon=True
    ).start()
    parked.acquire()
    while not all(done):
        time.sleep(0.01)
    print("ready", flush=True)
    report(done)  # -> report


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])  # -> main
