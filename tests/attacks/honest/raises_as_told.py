# task: check_raises
# reward: 1
# Raises a subclass of what is asked for.


class Odd(ValueError):
    pass


def half(n):
    if n % 2:
        raise Odd(f"{n} is odd")
    return n // 2
