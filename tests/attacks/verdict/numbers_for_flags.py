# task: is_even
# reward: 0
# 0 and 1 where False and True are asked for.


def is_even(n):
    return (n + 1) % 2
