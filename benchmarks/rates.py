"""How fast this machine multiplies matrices, reads memory and takes exponentials.

Each rate is the fastest of some repetitions with the output's memory at hand: a limit, which no
program that has to allocate, pad or wait can pass. The clock is processor time where there is one
thread, so that what else the machine does counts little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from flops import Work
from shapes import Shape

BUDGET_S = 0.06  # of one rate
_TILE_BYTES = 64 * 2**20  # of logits at once
_MOST_ROWS = 2048  # tokens of a training product; more are no faster


def fastest(action: Callable[[], object], device: str = "cpu", budget: float = BUDGET_S) -> float:
    """Seconds of the fastest repetition, over so many seconds of trying, two tries at least."""
    one_thread = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if one_thread else time.perf_counter
    action()
    best, started = float("inf"), time.perf_counter()
    tries = 0
    while tries < 2 or time.perf_counter() - started < budget:
        if device == "cuda":
            torch.cuda.synchronize()
        begun = clock()
        action()
        if device == "cuda":
            torch.cuda.synchronize()
        best, tries = min(best, clock() - begun), tries + 1
    return best


def product_rate(m: int, k: int, n: int, device: str = "cpu", half: bool = False) -> float:
    """FLOP/s of [m, k] @ [k, n], where the right side is stored as a layer's weight [n, k] is."""
    dtype = torch.bfloat16 if half else torch.float32
    left, right = (torch.ones(shape, dtype=dtype, device=device) for shape in ((m, k), (n, k)))
    out = torch.empty(m, n, dtype=dtype, device=device)
    return 2.0 * m * k * n / fastest(lambda: torch.mm(left, right.T, out=out), device)


def bandwidth(device: str = "cpu") -> float:
    """Bytes/s of reading memory that is in no cache."""
    numbers = torch.ones(2**26 if device == "cpu" else 2**29, device=device)
    return numbers.numel() * numbers.element_size() / fastest(numbers.sum, device, 0.3)


def exponential_rate(vocabulary: int) -> float:
    """Exponentials/s on rows of that many numbers."""
    rows = max(1, min(64, _TILE_BYTES // (4 * vocabulary)))
    numbers = torch.zeros(rows, vocabulary)
    out = torch.empty_like(numbers)
    return numbers.numel() / fastest(lambda: torch.exp(numbers, out=out))


@dataclass(frozen=True)
class Rates:
    """FLOP/s of the products of one half of a step, and exponentials/s."""

    layers: float
    head: float
    exponentials: float

    def floor(self, work: Work) -> float:
        """Seconds that the work takes at these rates; attention at that of the layers."""
        products = (work.layers + work.attention) / self.layers + work.head / self.head
        return products + work.exponentials / self.exponentials


def layer_products(shape: Shape) -> Sequence[tuple[int, int, int]]:
    """(times, inputs, outputs) of the matrices of a layer."""
    h, kv, i = shape.hidden, shape.kv_width, shape.intermediate
    return (2, h, h), (2, h, kv), (2, h, i), (1, i, h)


def sampling_rates(shape: Shape) -> Rates:
    """With one row per completion, as each token step of sampling has."""
    rows = shape.completions
    return Rates(
        layers=_joint([(times, (rows, k, n)) for times, k, n in layer_products(shape)]),
        head=_joint([(1, (rows, shape.hidden, shape.vocabulary))]),
        exponentials=exponential_rate(shape.vocabulary),
    )


def training_rates(shape: Shape, tokens: int) -> Rates:
    """Forward, and backward to inputs and to weights, with as many rows as serve it best."""
    rows = min(tokens, _MOST_ROWS)
    tile = max(16, min(rows, _TILE_BYTES // (4 * shape.vocabulary)))
    products = []
    for times, k, n in layer_products(shape):
        products += [(times, (rows, k, n)), (times, (rows, n, k)), (times, (n, rows, k))]
    h, v = shape.hidden, shape.vocabulary
    return Rates(
        layers=_joint(products),
        head=_joint([(1, (tile, h, v)), (1, (tile, v, h)), (1, (v, tile, h))]),
        exponentials=exponential_rate(v),
    )


def best(rates: Mapping[str, Rates], square: float) -> float:
    """The fastest of all products measured."""
    return max(square, *(max(r.layers, r.head) for r in rates.values()))


def _joint(products: Sequence[tuple[int, tuple[int, int, int]]]) -> float:
    """FLOP/s of products done one after the other: (times, (m, k, n))."""
    flops = [times * 2.0 * m * k * n for times, (m, k, n) in products]
    seconds = sum(f / product_rate(*sizes) for f, (_, sizes) in zip(flops, products, strict=True))
    return sum(flops) / seconds
