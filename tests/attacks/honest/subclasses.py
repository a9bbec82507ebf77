# task: pairs
# reward: 1
# Counter, and what behaves like the type that is asked for.

from collections import Counter


def pairs(text):
    return Counter(text)
