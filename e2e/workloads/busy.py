"""Never waits: computes and allocates without end."""

import time


def fold(words):
    groups = {}
    for word in words:
        groups.setdefault(word[-2:], []).append(word[::-1])
    return sorted(groups.items())


def main():
    number, due = 0, time.monotonic()
    print("ready", flush=True)
    while True:
        fold([str(value * 7919) for value in range(2000)])
        if time.monotonic() >= due:
            print("tick", number, flush=True)
            number += 1
            due = time.monotonic() + 1


if __name__ == "__main__":
    main()
