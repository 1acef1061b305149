"""A program that says what is in it, and waits in one of several ways meanwhile.

For each SIGUSR1, which a thread of its own waits for, it prints its inventory as one line of JSON: whatever a script could
leave behind and the process itself can see. It is run with `WAY` in the environment.
"""

import asyncio
import builtins
import ctypes
import gc
import json
import os
import signal
import sys
import threading
import time
import warnings

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])


def handler(number):
    set_to = signal.getsignal(number)
    return id(set_to) if callable(set_to) else repr(set_to)


def inventory():
    main = sys.modules["__main__"]
    return {
        "modules": sorted(sys.modules),
        "importers": sorted(sys.path_importer_cache),
        "path": sys.path,
        "finders": [repr(finder) for finder in sys.meta_path],
        "streams": [id(sys.stdin), id(sys.stdout), id(sys.stderr)],
        "original streams": [sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__],
        "monitoring tools": [sys.monitoring.get_tool(tool) for tool in range(6)],
        "trace and profile": [repr(sys.gettrace()), repr(sys.getprofile())],
        "hooks": [id(hook) for hook in (sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook)],
        "handlers": {str(number): handler(number) for number in sorted(signal.valid_signals())},
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "thread states": len(sys._current_frames()),
        "builtins": sorted(vars(builtins)),
        "globals": sorted(vars(main)),
        "sys": sorted(vars(sys)),
        "environment": sorted(os.environ),
        "folder": os.getcwd(),
        "warnings": [repr(entry) for entry in warnings.filters],
        "collector": [gc.isenabled(), gc.get_threshold(), len(gc.callbacks)],
        "recursion limit": sys.getrecursionlimit(),
        "switch interval": sys.getswitchinterval(),
    }


def report():
    while True:
        signal.sigwait([signal.SIGUSR1])
        print(json.dumps(inventory()), flush=True)


def running():
    while True:
        pass


def loop():
    async def main():
        while True:
            await asyncio.sleep(0.02)

    asyncio.run(main())


def lock():
    held = threading.Lock()
    held.acquire()
    held.acquire()


def sleep():
    time.sleep(3600)


def foreign():
    ctypes.CDLL(None).poll(None, 0, 3600_000)


threading.Thread(target=report, name="reporter", daemon=True).start()
inventory()
print("ready", flush=True)
globals()[os.environ["WAY"]]()
