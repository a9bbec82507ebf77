"""What a step costs on W processes, from sizes and rates: a model, and not a measurement.

With N weights, of which A are trained, 4 bytes a number of the master weights:

    sampling    per token: the larger of reading (weights once, the keys' whole room of all rows)
                and computing (2 N per row), and what the host takes; over as many tokens as the
                longest completion, rows leaving by halves as `rl4lm.sampling.loop` lets them leave
    gradient    the operations of `flops.py` at a share of the peak rate
    telling     replicated: one sum, 2 (W-1)/W · 4 A bytes over the slowest link
                sharded: weights gathered once a rollout, (W-1)/W · 4 N bytes, and for every
                micro-batch gathered twice and the gradient scattered once; of the latter only what
                is longer than the computation counts, which is what prefetching reaches at best
    waiting     lengths are drawn at random, prompts dealt by `rl4lm.processes.dealing.deal` on
                their means of an earlier draw; the mean over the processes of what the slowest
                takes longer
    update      36 bytes of every trained weight that a process holds: weight, gradient and both
                moments of AdamW read, three of them written; the gradient zeroed and its norm read

Seconds and bytes everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from clusters import HALF, MASTER, Device, Mode, Work, dealt_lengths, weights
from flops import step_work
from shapes import Shape
from torch import Tensor

STATE = 16  # bytes of a trained weight: itself, its gradient, two moments
UPDATE = 36  # bytes of a trained weight that an update moves
CHECK_EVERY = 16  # tokens of sampling after which finished rows may leave
TILE = 3 * 64 * 2**20  # logits, and what is made of them


@dataclass(frozen=True)
class Cost:
    """Seconds of a step by what they go into, and bytes of a process."""

    sampling: float
    gradient: float
    waiting: float
    telling: float
    update: float
    memory: float
    sampling_limit: str  # what a token of sampling takes longest for

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.sampling + self.gradient + self.waiting + self.telling + self.update

    @property
    def limit(self) -> str:
        """The largest term."""
        terms = ("sampling", "gradient", "waiting", "telling", "update")
        largest = max(terms, key=lambda name: getattr(self, name))
        return f"sampling: {self.sampling_limit}" if largest == "sampling" else largest


def step_cost(shape: Shape, mode: Mode, work: Work, device: Device, processes: int) -> Cost:
    """A step of a model on so many processes; they divide the prompts."""
    dealt = dealt_lengths(work, processes)  # [W, P / W, G]
    rows = dealt.flatten(1)  # [W, b]
    sampling = sampling_seconds(shape, mode, work, device, rows)
    tokens = rows.sum(dim=1) + work.prompt_tokens * dealt.shape[1]  # [W]
    gradient = tokens * _gradient_seconds_per_token(shape, mode, work, device, rows)
    passes = math.ceil(float(tokens.max()) / micro_tokens(work))
    told = telling_seconds(shape, mode, device, processes, passes, float(gradient.max()))
    waiting = float((sampling.max() - sampling.mean()) + (gradient.max() - gradient.mean()))
    held = mode.trained(shape) / (processes if mode.sharded else 1)
    return Cost(
        sampling=float(sampling.mean()),
        gradient=float(gradient.mean()),
        waiting=waiting,
        telling=told,
        update=UPDATE * held / device.memory_rate,
        memory=memory(shape, mode, work, processes),
        sampling_limit=token_limit(shape, mode, work, device, rows.shape[1]),
    )


def _token_terms(
    shape: Shape, mode: Mode, work: Work, device: Device, rows: Tensor
) -> dict[str, Tensor]:
    """Seconds of what one token of sampling needs, for each number of rows."""
    read = shape.layers * shape.layer_parameters + shape.head_parameters
    per_token = 2 * shape.kv_width * shape.layers * HALF  # keys and values
    room = rows * (work.longest + work.prompt_tokens / work.samples)
    return {
        "reading weights": torch.full_like(rows, mode.bytes_per_token * read / device.memory_rate),
        "reading keys": per_token * room / device.memory_rate,
        "computing": 2 * read * rows / device.flops,
        "the host": torch.full_like(rows, device.token_s),
    }


def token_limit(shape: Shape, mode: Mode, work: Work, device: Device, rows: int) -> str:
    """The name of the largest of these terms while all rows run."""
    terms = _token_terms(shape, mode, work, device, torch.tensor(float(rows)))
    return max(terms, key=lambda name: float(terms[name]))


def sampling_seconds(
    shape: Shape, mode: Mode, work: Work, device: Device, lengths: Tensor
) -> Tensor:
    """Of each process, [W], from the lengths [W, b] of its completions."""
    processes, b = lengths.shape
    rows = torch.full((processes,), float(b), dtype=torch.float64)
    prompts = work.prompt_tokens * b / work.samples
    seconds = torch.full_like(rows, 2 * weights(shape) * prompts / device.flops)
    for token in range(0, work.longest, CHECK_EVERY):
        running = (lengths > token).sum(dim=1).double()
        rows = torch.where(running <= rows / 2, running, rows)
        terms = _token_terms(shape, mode, work, device, rows)
        moved = terms["reading weights"] + terms["reading keys"]
        each = torch.maximum(moved, terms["computing"]) + terms["the host"]
        seconds += torch.where(running > 0, CHECK_EVERY * each, 0.0)
    return seconds


def least_sampling_seconds(
    shape: Shape, mode: Mode, work: Work, device: Device, lengths: Tensor
) -> Tensor:
    """`sampling_seconds` without what an engine can do away with: what it cannot stay under.

    Only keys that are written are read, rows leave when they end, and the host takes no time.
    """
    seconds = torch.zeros(len(lengths), dtype=torch.float64)
    for token in range(0, work.longest, CHECK_EVERY):
        running = (lengths > token).sum(dim=1).double()
        terms = _token_terms(shape, mode, replace(work, longest=token), device, running)
        moved = terms["reading weights"] + terms["reading keys"]
        each = torch.maximum(moved, terms["computing"])
        seconds += torch.where(running > 0, CHECK_EVERY * each, 0.0)
    return seconds


def _gradient_seconds_per_token(
    shape: Shape, mode: Mode, work: Work, device: Device, rows: Tensor
) -> float:
    """Of a token fed, prompts once: the operations of a step over its tokens."""
    step = replace(shape, prompts=work.prompts, samples=work.samples)
    prompts = [work.prompt_tokens] * work.prompts
    operations = step_work(step, prompts, float(rows.mean()), mode.adapters).training.flops
    return operations / float(rows.sum() + sum(prompts)) / device.flops


def micro_tokens(work: Work) -> int:
    """Tokens of a micro-batch: 4096, or one sequence where it is longer."""
    return max(4096, work.prompt_tokens + work.longest)


def gather_seconds(size: float, device: Device, processes: int, calls: int) -> float:
    """To gather, or to scatter the sum of, so many bytes in so many calls over a ring."""
    share = (processes - 1) / processes
    return share * size / device.rate(processes) + calls * (processes - 1) * device.hop


def sum_seconds(size: float, device: Device, processes: int) -> float:
    """To sum so many bytes: round the ring twice, the first byte through a tree."""
    share = 2 * (processes - 1) / processes
    hops = 2 * math.ceil(math.log2(processes)) if processes > 1 else 0
    return share * size / device.rate(processes) + hops * device.hop


def telling_seconds(
    shape: Shape, mode: Mode, device: Device, processes: int, passes: int, computing: float
) -> float:
    """What collectives take beyond what is computed meanwhile.

    Args:
        shape: sizes of the model.
        mode: who holds what.
        device: its rates.
        processes: W.
        passes: micro-batches of the process that has most.
        computing: seconds of the gradient of the slowest process.
    """
    if not mode.sharded:
        return sum_seconds(MASTER * mode.trained(shape), device, processes)
    once = gather_seconds(MASTER * weights(shape), device, processes, shape.layers + 1)
    return once + max(0.0, 3 * passes * once - computing)


def memory(shape: Shape, mode: Mode, work: Work, processes: int) -> float:
    """The most bytes of a process: in a rollout, in the gradient, at the check of the start."""
    n, trained = weights(shape), mode.trained(shape)
    held = STATE * trained / processes if mode.sharded else STATE * trained
    frozen = MASTER * n if mode.adapters else 0.0
    cast = 0.0 if mode.adapters else HALF * n
    rows = work.completions / processes
    room = rows * work.longest + rows / work.samples * work.prompt_tokens
    keys = 2 * shape.kv_width * shape.layers * HALF * room
    rollout = keys + cast + (MASTER * n if mode.sharded else 0.0)
    # What a layer keeps for its way back, as `scaling.py` counts it, in bfloat16.
    per_token = shape.layers * (11 * shape.hidden + 4 * shape.intermediate) * HALF
    layer = (MASTER + HALF) * (2 * shape.layer_parameters + shape.head_parameters)
    passing = micro_tokens(work) * per_token + TILE + (layer if mode.sharded else cast)
    check = 2 * MASTER * n - held if mode.sharded else 0.0
    return held + frozen + max(rollout, passing, check)
