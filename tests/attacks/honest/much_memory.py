# task: add
# reward: 1
# 200 MiB are allowed.

table = bytearray(200 << 20)


def add(a, b):
    table[-1] = 1
    return a + b
