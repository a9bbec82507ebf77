# task: words
# reward: 0
# seconds: 2
# A text of 100 MB.


def words(text):
    return ["a" * 100_000_000]
