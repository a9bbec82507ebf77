# task: words
# reward: 1
# Sorting with keys, and undoing it.

from functools import cmp_to_key
from operator import itemgetter


def words(text):
    numbered = sorted(enumerate(text.split()), key=itemgetter(1), reverse=True)
    numbered.sort(key=cmp_to_key(lambda left, right: left[0] - right[0]))
    return [word for _, word in numbered]
