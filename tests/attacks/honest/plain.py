# task: add
# reward: 1
# The answer, with a text that no other run may find.


def add(a, b):
    "This is the word of an earlier run."
    return a + b
