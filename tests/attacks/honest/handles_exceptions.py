# task: add
# reward: 1
# Tries, fails, catches, and a bare except.


def add(a, b):
    try:
        return [][a]
    except IndexError:
        pass
    finally:
        b += 0
    try:
        raise KeyboardInterrupt
    except:
        return a + b
