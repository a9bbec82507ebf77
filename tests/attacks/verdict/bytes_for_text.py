# task: words
# reward: 0
# The answer in another type of text.


def words(text):
    return [word.encode() for word in text.split()]
