# task: add
# reward: 0
# A function, a class, a module, a frame: no data.

import sys


def add(a, b):
    return [add, int, sys, sys._getframe()][a % 4]
