# task: words
# reward: 0
# A list that would never end.

import itertools


def words(text):
    return itertools.count()
