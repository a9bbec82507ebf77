# task: add
# reward: 0
# A float where an int is asked for.


def add(a, b):
    return float(a + b)
