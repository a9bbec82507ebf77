# task: add
# reward: 0
# layer: parent
# Reads address 0.


def add(a, b):
    ctypes.string_at(0)
