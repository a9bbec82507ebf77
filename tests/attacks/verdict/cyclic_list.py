# task: words
# reward: 0
# A list that contains itself.


def words(text):
    items = []
    items.append(items)
    return items
