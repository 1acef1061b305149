"""Interpreters with threads and loops of their own, by every way to make one."""

import concurrent.interpreters
import os
import threading

import _interpreters
import truth

FOLDER = os.path.dirname(os.path.abspath(__file__))
# In the other interpreter: threads and a loop, at rest; what it knows of itself goes through a pipe.
CODE = """
import os, sys, threading
sys.path.insert(0, folder)
import truth

def recurse(n):
    return recurse(n - 1) if n else truth.park()

def callback():
    return sorted([1], key=lambda _: recurse(2))

threads = [threading.Thread(target=recurse, args=(n,), name=f"{label} thread {n}") for n in range(3)]
threads.append(threading.Thread(target=callback, name=f"{label} größer"))
for thread in threads:
    thread.start()
truth.parked(*threads)

def tell():
    truth.OTHER_THREADS.update(ident for ident in sys._current_frames() if ident not in threading._active)
    document = truth.said(sys._getframe().f_back)
    os.write(told, f"{' '.join(str(ident) for ident in threading._active)}\\n{document}\\n".encode())
    os.close(told)

def stand():
    tell(), truth.os.read(truth.PARKING, 1)
"""
PLAIN = CODE + "stand()\n"
ASYNCIO = (
    CODE
    + """
import asyncio

async def leaf(future):
    await future

async def main():
    future = asyncio.get_running_loop().create_future()
    tasks = [asyncio.create_task(leaf(future), name=f"{label} task {n}") for n in range(3)]
    tasks.append(asyncio.create_task(asyncio.wait(tasks), name=f"{label} waits"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    stand()

asyncio.run(main())
"""
)

documents = []


def prepared(label):
    reading, writing = os.pipe()
    documents.append(reading)
    return {"label": label, "told": writing, "folder": FOLDER}


def concurrently(label, code):
    interpreter = concurrent.interpreters.create()
    interpreter.prepare_main(prepared(label))
    interpreter.exec(code)


def with_kind(label, kind, code):
    """`legacy` interpreters share the main interpreter's GIL."""
    interpreter = _interpreters.create(kind)
    _interpreters.set___main___attrs(interpreter, prepared(label))
    _interpreters.exec(interpreter, code)


idle = concurrent.interpreters.create()
idle_for_good = _interpreters.create("legacy")
starts = [
    (concurrently, "one", ASYNCIO),
    (concurrently, "two", ASYNCIO),
    (concurrently, "plain", PLAIN),
    (with_kind, "legacy", "legacy", ASYNCIO),
    (with_kind, "legacy plain", "legacy", PLAIN),
]
threads = []
for function, label, *arguments in starts:
    thread = threading.Thread(target=function, args=(label, *arguments), name=f"inside {label}", daemon=True)
    threads.append(thread)
    thread.start()
    while len(documents) < len(threads):
        os.sched_yield()


def read(descriptor):
    with open(descriptor) as file:
        idents, document, *_ = file.read().split("\n")
    return {int(ident) for ident in idents.split()}, document


for descriptor in documents:
    idents, document = read(descriptor)
    truth.OTHER_THREADS |= idents - {thread.ident for thread in threads}
    truth.OTHER_INTERPRETERS.append(document)
truth.stand_still()
