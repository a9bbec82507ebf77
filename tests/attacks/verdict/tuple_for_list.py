# task: words
# reward: 0
# A tuple where a list is asked for.


def words(text):
    return tuple(text.split())
