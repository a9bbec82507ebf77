# task: words
# reward: 0
# seconds: 2
# Millions of items, all the same one.


def words(text):
    row = [0] * 1000
    return [row] * 5000
