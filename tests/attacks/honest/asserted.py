# task: check_add
# reward: 1
# The answer to test code.


def add(a, b):
    return a + b
