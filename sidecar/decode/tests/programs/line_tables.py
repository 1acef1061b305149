"""Lines of code of every shape: long, wide, over several lines, in every kind of block."""

import threading
from functools import partial

import truth

threads = []


def run(source, file):
    """Runs source text under a file name."""
    function = partial(exec, compile(source, file, "exec"), {"truth": truth, "__name__": "made"})
    threads.append(threading.Thread(target=function, name=file, daemon=True))
    threads[-1].start()


run("\n" * 70_000 + "truth.park()", "far down.py")
run("def long():\n" + "".join(f"    x{n} = {n}\n" for n in range(50_000)) + "    truth.park()\nlong()", "long function.py")
run("def long():\n" + "".join(f"    if {n}: y = {n}\n\n" for n in range(3000)) + "    truth.park()\nlong()", "branches.py")
run(f"x = [{', '.join(str(n) for n in range(400))}, len('y'), truth.park()]", "wide line.py")
run("def wide(): " + "; ".join(f"x{n} = {n}" for n in range(900)) + "; truth.park()\nwide()", "wide function.py")
run("x = (" + "+\n".join(f"len('{n}')" for n in range(600)) + "\n+ truth.park()\n)", "expression of many lines.py")
run("x = [\n1,\n\n2,\n*map(\nlambda n:\n\n\ntruth.park(), [1]\n)\n]", "nested expression.py")
run("def f(a,\n b,\n *c):\n  pass\n\nf(1,\n  2,\n *\n [\n truth.park()])", "call of many lines.py")
run("def f():\n for n in [\n  1]:\n  while True:\n   try:\n    with open('/dev/null'):\n     truth.park()\n   finally:\n    pass\nf()", "blocks.py")
run("def f():\n try:\n  1 / 0\n except* ZeroDivisionError:\n  truth.park()\nf()", "except star.py")
run("match [1, {'a': 2}]:\n case [1, {'a': n}] if \\\n  truth.park():\n  pass", "match.py")
run("x = f'''{\n1\n} {\ntruth.park()\n}'''", "f-string.py")
run("assert not \\\n\\\n truth.park()", "continued.py")
run("@(lambda f: truth.park())\n@(lambda f: f)\ndef decorated():\n pass", "decorators.py")
run("@(lambda f: f)\n@(lambda f: f)\ndef decorated(n=1,\n m=2):\n\n truth.park()\ndecorated()", "decorated.py")
run("[[[truth.park() for a in 'a']\n for b in 'b']\n for c in 'c']", "comprehensions.py")
run("x = {\n n: m\n for n, m in\n zip('a', (truth.park() for _ in\n 'b'))}", "generator in comprehension.py")
run("class A:\n class B:\n  class C:\n   x = [truth.park() for _ in 'a']", "class bodies.py")
run("class A[T: (truth.park(), int)]:\n pass\nA.__type_params__[0].__constraints__", "type parameters.py")
run("type X = truth.park()\nX.__value__", "type alias.py")
run("def f(a: truth.park()): pass\nf.__annotations__", "annotations.py")
run("lambda: 0\nx = lambda *a: (\n lambda: truth.park())()\nx()", "lambdas.py")
run("def f():\n global g\n def g():\n  def h():\n   truth.park()\n  h()\n g()\nf()", "nested functions.py")
truth.parked(*threads)
truth.stand_still()
