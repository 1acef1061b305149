"""Code of every origin and name."""

import importlib.util
import shutil
import sys
import tempfile
import threading
import types
import zipfile
from functools import partial

import truth

threads = []


def start(function, name):
    threads.append(threading.Thread(target=function, name=name, daemon=True))
    threads[-1].start()


def run(source, file, name=None):
    """Runs source text under a file name."""
    start(partial(exec, compile(source, file, "exec"), {"truth": truth, "__name__": "made"}), name or file)


# Names.
run("def größe():\n class Straße:\n  def naïve(self): truth.park()\n Straße().naïve()\ngröße()", "/tmp/größe.py")
run("def 関数():\n truth.park()\n関数()", "/tmp/日本語/関数.py")
run("def 𝔣𝔲𝔫𝔠𐤀():\n truth.park()\n𝔣𝔲𝔫𝔠𐤀()", "/tmp/🐍.py")
run(f"def {'n' * 300}():\n def {'ä' * 400}():\n  truth.park()\n {'ä' * 400}()\n{'n' * 300}()", "/long/" + "d/" * 300 + "name.py")
run("truth.park()", "a file\nwith 'blanks' and\ttabs \x1b[31m.py")
run("truth.park()", "lone \udc80 surrogate.py")
run("truth.park()", "")
run("truth.park()", "<string>")


def renamed():
    truth.park()


for name in ["two words", "a\nnewline", "", "<lambda>", "\x00nul\x00", "\udcff", "x" * 1000, "日本" * 150, "a -> b"]:
    code = renamed.__code__.replace(co_name=name, co_qualname=f"Class.{name}")
    start(types.FunctionType(code, globals()), f"renamed {name[:20]}")

# Lines that are not there.
start(types.FunctionType(renamed.__code__.replace(co_linetable=b""), globals()), "no line table")
none = bytes([0x80 | 15 << 3 | 7] * 8)
start(types.FunctionType(renamed.__code__.replace(co_linetable=none), globals()), "lines that are none")
start(types.FunctionType(renamed.__code__.replace(co_firstlineno=2**31 - 100), globals()), "a high first line")
start(types.FunctionType(renamed.__code__.replace(co_firstlineno=0), globals()), "line zero")

# Code from elsewhere.
folder = tempfile.mkdtemp()
with zipfile.ZipFile(f"{folder}/archive.zip", "w") as archive:
    archive.writestr("zipped/__init__.py", "import truth\n\n\ntruth.park()\n")
sys.path.insert(0, f"{folder}/archive.zip")
start(partial(__import__, "zipped"), "module in an archive")
with open(f"{folder}/plain_module.py", "w") as file:
    file.write("import truth\n\ndef f():\n    truth.park()\n\nf()\n")


def load():
    spec = importlib.util.spec_from_file_location("plain_module", f"{folder}/plain_module.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


start(load, "module")

# Thread names.
for name in ["two words", "new\nline", "日本語 " * 60, "🐍", "", "t" * 1000, "\x1b[31mred", "ümlaut-that-is-longer-than-15"]:
    start(truth.park, name)
start(truth.park, "was renamed")
threads[-1].name = "renamed since"


class WithProperty(threading.Thread):
    def run(self):
        truth.park()


threads.append(WithProperty(name="subclass", daemon=True))
threads[-1].start()
truth.parked(*threads)
shutil.rmtree(folder)

namespace = {"truth": truth}
exec("class Body:\n    def method(self):\n        truth.stand_still()\n\n    exec('method(None)')\n", namespace)
