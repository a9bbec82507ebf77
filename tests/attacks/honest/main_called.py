# task: read_sum
# reward: 1
# A main part that runs, and an exit status.

import sys


def main():
    sys.stdout.write(f"{sum(map(int, sys.stdin.readline().split()))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
