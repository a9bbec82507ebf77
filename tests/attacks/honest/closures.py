# task: add
# reward: 1
# Closures, decorators, a cache, a lambda.

from functools import lru_cache, wraps


def logged(function):
    @wraps(function)
    def inner(*given):
        return function(*given)

    return inner


add = logged(lru_cache(maxsize=None)(lambda a, b: a + b))
