# task: repeat
# reward: 1
# A result of a third of a megabyte.


def repeat(text, times):
    return [text] * times
