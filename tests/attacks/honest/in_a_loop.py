# task: check_loop
# reward: 1
# The answer to test code with a loop.


def add(a, b):
    return a + b
