"""A task for everything that asyncio can wait for; says on stdout what each one waits for."""

import asyncio
import concurrent.futures
import json
import socket
import sys
import threading

truth = {}


def says(name, kind, thing, *details):
    """What the task of this name waits for: the object where several can wait for it, and words of its description."""
    truth[name] = {
        "kind": kind,
        "id": None if thing is None else f"{id(thing):#x}",
        "detail": [str(detail) for detail in details],
    }


class OwnLock(asyncio.Lock):
    pass


class OwnQueue(asyncio.Queue):
    async def get(self):
        return await super().get()


async def holds(lock):
    async with lock:
        await asyncio.sleep(7200)


async def enters(first, second, entered):
    async with first:
        await entered.wait()
        async with second:
            pass


async def joins_lock(lock):
    async with lock:
        pass


async def again(condition, entered):
    async with condition:
        entered.set()
        await condition.wait()


async def every(*awaited):
    await asyncio.gather(*awaited)


async def some(awaited, **options):
    await asyncio.wait(awaited, **options)


async def first_of(awaited):
    async for done in asyncio.as_completed(awaited):
        await done


async def next_of(awaited):
    for done in asyncio.as_completed(awaited):
        await done


async def group(future):
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bare(future), name="member one")
        tasks.create_task(bare(future), name="member two")


async def bare(future):
    await future


async def shields(task):
    await asyncio.shield(task)


async def within(seconds, awaited):
    async with asyncio.timeout(seconds):
        await asyncio.wait_for(awaited, seconds)


async def drains(writer):
    while True:
        writer.write(b"x" * (1 << 20))
        await writer.drain()


def block(event):
    event.wait()


async def look_up(loop, event):
    # The resolver of the machine answers when it likes; this one never does.
    original, socket.getaddrinfo = socket.getaddrinfo, lambda *_: event.wait()
    try:
        lookup = asyncio.ensure_future(loop.getaddrinfo("db.example", 5432))
        await asyncio.sleep(0)
    finally:
        socket.getaddrinfo = original
    await lookup


def other_loop(ready, release):
    async def forever():
        await asyncio.get_running_loop().create_future()

    async def main():
        ready.loop = asyncio.get_running_loop()
        ready.task = asyncio.create_task(forever(), name="in the other loop")
        await asyncio.sleep(0)
        ready.set()
        await asyncio.get_running_loop().run_in_executor(None, release.wait)

    asyncio.run(main())


async def main():
    loop = asyncio.get_running_loop()
    never = loop.create_future()
    release = threading.Event()
    tasks = []

    def start(name, coroutine):
        task = asyncio.create_task(coroutine, name=name)
        tasks.append(task)
        return task

    lock, own_lock = asyncio.Lock(), OwnLock()
    start("holds lock", holds(lock))
    start("holds own lock", holds(own_lock))
    says("holds lock", "Sleep", None, "7200 s")
    await asyncio.sleep(0)
    for n in range(3):
        start(f"lock {n}", joins_lock(lock))
        says(f"lock {n}", "Lock", lock, "locked", "3 waiting, held by holds lock")
    start("own lock", within(3600, own_lock.acquire()))
    says("own lock", "Lock", own_lock, "OwnLock", "locked", "1 waiting, held by holds own lock")

    left, right, alone, acquired = (asyncio.Lock() for _ in range(4))
    both = asyncio.Event()
    start("left then right", enters(left, right, both))
    start("right then left", enters(right, left, both))
    start("twice", enters(alone, alone, both))
    await asyncio.sleep(0)
    both.set()
    says("left then right", "Lock", right, "1 waiting, held by right then left")
    says("right then left", "Lock", left, "1 waiting, held by left then right")
    says("twice", "Lock", alone, "1 waiting, held by twice")
    await acquired.acquire()
    start("nobody knows", joins_lock(acquired))
    says("nobody knows", "Lock", acquired, "1 waiting")

    event = asyncio.Event()
    for n in range(2):
        start(f"event {n}", event.wait())
        says(f"event {n}", "Event", event, "2 waiting")

    semaphore, bounded = asyncio.Semaphore(0), asyncio.BoundedSemaphore(1)
    start("holds bounded", holds(bounded))
    await asyncio.sleep(0)
    start("semaphore", semaphore.acquire())
    says("semaphore", "Semaphore", semaphore, "value 0", "1 waiting")
    start("bounded", joins_lock(bounded))
    says("bounded", "Semaphore", bounded, "BoundedSemaphore", "value 0", "1 waiting, held by holds bounded")

    condition, entered = asyncio.Condition(), asyncio.Event()
    start("condition", again(condition, entered))
    says("condition", "Condition", condition, "1 waiting", "its lock is not locked")
    await entered.wait()
    shared = asyncio.Condition()
    entered = asyncio.Event()
    start("back to the lock", again(shared, entered))
    await entered.wait()
    start("holds the condition", holds(shared))
    await asyncio.sleep(0)
    shared._notify(1)
    says("back to the lock", "Lock", shared._lock, "locked", "1 waiting, held by holds the condition")

    queues = {
        "get": (asyncio.Queue(), "0 items"),
        "get priority": (asyncio.PriorityQueue(5), "0 of 5 items"),
        "get own": (OwnQueue(), "0 items"),
    }
    for name, (queue, items) in queues.items():
        start(name, queue.get())
        own = [type(queue).__name__] if type(queue) is not asyncio.Queue else []
        says(name, "Queue", queue, *own, "get", items, "1 waiting")
    full = asyncio.LifoQueue(1)
    full.put_nowait(1)
    start("put", full.put(2))
    says("put", "Queue", full, "LifoQueue", "put", "1 of 1 items", "1 waiting")
    start("join", full.join())
    says("join", "Queue", full, "LifoQueue", "join", "1 unfinished")

    barrier = asyncio.Barrier(3)
    for n in range(2):
        start(f"barrier {n}", barrier.wait())
        says(f"barrier {n}", "Barrier", barrier, "2 of 3 parties")

    for name, delay in {"sleep": 3600, "sleep float": 1234.5, "sleep long": 10**12}.items():
        start(name, asyncio.sleep(delay))
        says(name, "Sleep", None, f"{delay} s")
    start("timeout", within(3600, asyncio.sleep(3601)))
    says("timeout", "Sleep", None, "3601 s")

    waited = [start(f"waited {n}", bare(never)) for n in range(3)]
    for n in range(3):
        says(f"waited {n}", "Future", never)
    start("gather", every(*waited[:2]))
    says("gather", "Gather", None, "2 of 2 pending: waited 0, waited 1")
    start("wait", some(waited))
    says("wait", "Wait", None, "3 of 3 pending: waited")
    options = {"return_when": asyncio.FIRST_COMPLETED, "timeout": 90}
    start("wait first", some(waited[:1], **options))
    says("wait first", "Wait", None, "1 of 1 pending: waited 0", "first completed", "timeout 90 s")
    start("as completed", first_of(waited))
    says("as completed", "AsCompleted", None, "3 pending: waited")
    start("next completed", next_of(waited[:1]))
    says("next completed", "AsCompleted", None, "1 pending: waited 0")
    start("group", group(never))
    says("group", "TaskGroup", None, "2 pending: member")
    start("shield", shields(waited[0]))
    says("shield", "Shield", waited[0], "waited 0")
    start("task", bare(waited[1]))
    says("task", "Task", waited[1], "waited 1")

    start("to thread", asyncio.to_thread(block, release))
    says("to thread", "Executor", None, "block", "running in thread")
    pool = concurrent.futures.ThreadPoolExecutor(1, "pool")
    work = pool.submit(block, release)
    start("executor", bare(asyncio.wrap_future(work)))
    says("executor", "Executor", work, "block", "running in thread")
    start("executor full", bare(loop.run_in_executor(pool, block, release)))
    says("executor full", "Executor", None, "pending")
    start("look up", look_up(loop, release))
    ready = threading.Event()
    other = threading.Thread(target=other_loop, args=(ready, release), name="other loop", daemon=True)
    other.start()
    while not ready.wait(0):
        await asyncio.sleep(0.001)
    far = asyncio.run_coroutine_threadsafe(bare(ready.task), ready.loop)
    start("threadsafe", bare(asyncio.wrap_future(far)))
    says("threadsafe", "Task", None)

    left, right = socket.socketpair()
    left.setblocking(False)
    start("sock recv", loop.sock_recv(left, 10))
    says("sock recv", "Socket", left, "recv", f"fd {left.fileno()}")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    start("sock accept", loop.sock_accept(listener))
    says("sock accept", "Socket", listener, "accept", f"fd {listener.fileno()}")

    streams = asyncio.get_running_loop().create_future()

    async def serve(reader, writer):
        streams.set_result((reader, writer))
        await bare(never)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    start("serve", server.serve_forever())
    says("serve", "Server", server)
    host, port = server.sockets[0].getsockname()
    reader, writer = await asyncio.open_connection(host, port)
    fd = writer.get_extra_info("socket").fileno()
    start("stream read", reader.readline())
    says("stream read", "Stream", reader, "read", f"fd {fd}", f"peer {host}:{port}")
    start("stream drain", drains(writer))
    says("stream drain", "Stream", writer, "drain", f"fd {fd}", f"peer {host}:{port}")
    await streams

    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec("/bin/cat", stdin=pipe, stdout=pipe)
    start("process wait", child.wait())
    says("process wait", "Subprocess", child, f"pid {child.pid}")
    talker = await asyncio.create_subprocess_exec("/bin/sleep", "7200", stdout=pipe)
    start("process communicate", talker.communicate())
    says("process communicate", "Subprocess", talker, f"pid {talker.pid}")
    start("process output", child.stdout.read())
    fd = child._transport.get_pipe_transport(1).get_extra_info("pipe").fileno()
    says("process output", "Stream", child.stdout, "read", f"fd {fd}")

    await asyncio.sleep(0.3)
    for task in asyncio.all_tasks():
        if task.get_coro().__qualname__.endswith("getaddrinfo"):
            task.set_name("getaddrinfo")
            says("getaddrinfo", "Executor", None, "getaddrinfo db.example", "running in thread")
            says("look up", "Task", task, "getaddrinfo")
    print(json.dumps(truth), flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    child.kill()
    talker.kill()
    release.set()


asyncio.run(main())
