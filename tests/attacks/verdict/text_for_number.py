# task: add
# reward: 0
# The digits of the answer.


def add(a, b):
    return str(a + b)
