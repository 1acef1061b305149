"""Three hundred threads, of which some have come and gone before."""

import threading

import truth


def work(depth):
    if depth:
        return work(depth - 1)
    with threading.Lock():
        truth.park()


def come_and_go():
    threads = [threading.Thread(target=int) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


threads = []
for n in range(300):
    if n % 50 == 0:
        come_and_go()
    threads.append(threading.Thread(target=work, args=(n % 40,), name=f"worker number {n}", daemon=n % 2 == 0))
    threads[-1].start()
truth.parked(*threads)
truth.stand_still()
