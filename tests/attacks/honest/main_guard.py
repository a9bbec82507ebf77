# task: add
# reward: 1
# A guarded main part, which is not run.

import sys


def add(a, b):
    return a + b


def main():
    raise SystemExit("never")


if __name__ == "__main__":
    sys.exit(main())
