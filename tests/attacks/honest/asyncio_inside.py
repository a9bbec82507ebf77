# task: add
# reward: 1
# An event loop of its own.

import asyncio


async def _later(value):
    await asyncio.sleep(0.001)
    return value


async def _sum(a, b):
    return sum(await asyncio.gather(_later(a), _later(b)))


def add(a, b):
    return asyncio.run(_sum(a, b))
