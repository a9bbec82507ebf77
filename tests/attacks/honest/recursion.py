# task: add
# reward: 1
# Recursion close to the usual limit, and far beyond with a higher one.

import sys


def _count(n):
    return 0 if n == 0 else 1 + _count(n - 1)


assert _count(900) == 900
sys.setrecursionlimit(20000)
assert _count(10000) == 10000


def add(a, b):
    return a + b
