# task: check_add
# reward: 0
# An exception that cannot be made of a text.


def add(a, b):
    try:
        raise ExceptionGroup("all well", [ValueError(1)])
    except NameError:
        raise UnicodeDecodeError("utf-8", b"", 0, 1, "all well") from None
