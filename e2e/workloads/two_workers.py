"""A parent and two worker processes of the same Python, told apart only by their arguments.

usage: two_workers.py [worker NAME]
"""

import subprocess
import sys
import time


def work(name):
    print(name, "started", flush=True)
    while True:
        time.sleep(1)


def main():
    workers = [
        subprocess.Popen([sys.executable, __file__, "worker", name], stdout=subprocess.PIPE)
        for name in ("mail", "images")
    ]
    for worker in workers:
        worker.stdout.readline()
    print("ready", flush=True)
    number = 0
    while True:
        print("tick", number, flush=True)
        number += 1
        time.sleep(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(sys.argv[2])
    else:
        main()
