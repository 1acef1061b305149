"""Threads inside interpreters beside the main one, with and without `threading` in there."""

import os
import concurrent.interpreters
import threading

PLAIN = """
import os
os.write({ready}, b"1")
os.read({never}, 1)
"""
RENAMING = """
import os, threading
threading.current_thread().name = "renamed inside the interpreter"
def inside():
    os.write({ready}, b"1")
    os.read({never}, 1)
threading.Thread(target=inside, name="started inside, with a long name", daemon=False).start()
os.write({ready}, b"1")
os.read({never}, 1)
"""
reads, ready = os.pipe()
never, _ = os.pipe()
for name, code in [("comes from outside, näm", PLAIN), ("comes from outside as well", RENAMING)]:
    interpreter = concurrent.interpreters.create()
    code = code.format(ready=ready, never=never)
    threading.Thread(target=interpreter.exec, args=(code,), name=name).start()
    os.read(reads, 1)
os.read(reads, 1)
print("ready", flush=True)
os.read(never, 1)
