# task: words
# reward: 1
# Generators and comprehensions inside.


def _parts(text):
    yield from (part for part in text.split(" ") if part)


def words(text):
    return [*_parts(text)]
