# task: words
# reward: 1
# Letters of other alphabets, in names and texts.

größe = "naïve Ω 漢字 🎈".split()
assert len(größe[3].encode()) == 4


def words(text):
    return text.split()
