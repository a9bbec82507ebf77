# task: words
# reward: 0
# Something that is still to be computed.


def words(text):
    yield from text.split()
