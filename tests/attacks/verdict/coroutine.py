# task: add
# reward: 0
# A promise.


async def add(a, b):
    return a + b
