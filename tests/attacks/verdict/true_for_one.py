# task: add
# reward: 0
# A bool where an int is asked for.


def add(a, b):
    return bool(a + b) if a + b in (0, 1) else a + b
