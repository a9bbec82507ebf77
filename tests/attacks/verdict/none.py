# task: add
# reward: 0
# Nothing at all.


def add(a, b):
    pass
