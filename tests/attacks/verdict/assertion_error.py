# task: check_raises
# reward: 0
# Raises what failing tests raise, and what those expect who wait for an exception.


def half(n):
    raise AssertionError if n % 2 == 0 else ValueError
