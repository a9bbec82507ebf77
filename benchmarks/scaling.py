"""How the cost of a step grows with what is asked of it, and whether memory grows by what it must.

    taskset -c 0 python benchmarks/scaling.py [--axes samples length …] [--steps 3] [--out FILE]

Around one small model (hidden 128, 4 layers, vocabulary 2,000, 4 prompts x 8 samples, 32 tokens),
one thing at a time is doubled: samples per prompt, completion length, vocabulary, prompts, the
model's hidden size. Every point is a process of its own: a step that is not counted, then the
median processor seconds of some steps and the peak memory. The exponent is the slope of a straight
line through log cost against log size; beside it stands that of the operations counted by
`flops.py`, which a step cannot stay under for long and which constant costs bring it below.

Two more pairs of processes compare peak memory with what is needed: the vocabulary doubled (weights
of embedding and head, their gradients, two Adam moments, the gradient of the embedding that
autograd makes before it is added, one row of logits per completion), and the completions of a
micro-batch doubled (what a layer must keep for its backward pass, in float32: 11 hidden and 4
intermediate vectors per token, and 3 hidden vectors for the last norm; and 3 intermediate vectors
for the layer that the backward pass is in). Printed are a table per axis with its exponents, and
both growths beside the needs. Five minutes on one core.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from contenders import Job
from flops import step_work
from measuring import RESULTS, machine, machine_line, write_results
from racing import Contender
from shapes import Shape, prompt_ids

BASE = Shape("base", 128, 4, 4, 4, 512, 2_000, 32, prompts=4, samples=8)
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Axis:
    """What is doubled, and how."""

    title: str
    values: tuple[int, ...]
    size: Callable[[int], Shape]


def _wider(hidden: int) -> Shape:
    return replace(
        BASE, hidden=hidden, intermediate=4 * hidden, heads=hidden // 32, kv_heads=hidden // 32
    )


AXES = {
    "samples": Axis("samples per prompt", (4, 8, 16, 32), lambda n: replace(BASE, samples=n)),
    "length": Axis(
        "tokens of a completion", (16, 32, 64, 128), lambda n: replace(BASE, new_tokens=n)
    ),
    "vocabulary": Axis(
        "vocabulary", (2_000, 8_000, 32_000, 128_000), lambda n: replace(BASE, vocabulary=n)
    ),
    "prompts": Axis("prompts", (2, 4, 8, 16), lambda n: replace(BASE, prompts=n)),
    "model": Axis("hidden size", (64, 128, 256, 512), _wider),
}
COSTS = ("sampling", "gradient", "step")


def measure(shape: Shape, steps: int, threads: int, budget: int | None = None) -> dict[str, Any]:
    """Processor seconds of the parts of a step, and the memory of its process."""
    contender = Contender(Job("ours", shape, "fixed", threads, 0, budget, "cpu", steps + 1))
    try:
        contender.step()
        contender.steps += [contender.step() for _ in range(steps)]
    finally:
        contender.stop()
    result = contender.result()
    lengths = [len(ids) for ids in prompt_ids(shape)]
    work = step_work(shape, lengths)
    return {
        "seconds": {**result["phases_cpu_s"], "step": result["cpu_s"]["median"]},
        "operations": {
            "sampling": work.sampling.flops,
            "gradient": work.training.flops,
            "step": work.flops,
        },
        "memory": result["memory"],
        "shape": asdict(shape),
    }


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent: least squares of log cost against log size."""
    return statistics.linear_regression(
        [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    ).slope


def along(axis: Axis, points: int, steps: int, threads: int) -> dict[str, Any]:
    """The points of one axis, and the exponents."""
    values = axis.values[:points]
    found = [measure(axis.size(value), steps, threads) for value in values]
    result: dict[str, Any] = {"title": axis.title, "values": values, "points": found}
    for kind in ("seconds", "operations"):
        result[f"exponents_of_{kind}"] = {
            cost: slope(values, [point[kind][cost] for point in found]) for cost in COSTS
        }
    return result


def memory_of_vocabulary(threads: int) -> dict[str, Any]:
    """Growth of the peak when the vocabulary doubles, and what must be kept of it."""
    shape = Shape("vocabulary", 256, 2, 4, 4, 1024, 75_968, 8, prompts=4, samples=4)
    large = replace(shape, vocabulary=2 * shape.vocabulary)
    more = large.vocabulary - shape.vocabulary
    matrices = 1 if shape.tied else 2
    copies = 4 * matrices + 1  # weights, gradient, two moments of Adam; the embedding's as it comes
    need = FLOAT * more * (copies * shape.hidden + shape.completions)
    return _growth("vocabulary 75,968 to 151,936", shape, large, need, threads)


def memory_of_completions(threads: int) -> dict[str, Any]:
    """Growth of the peak when one micro-batch holds twice the completions."""
    shape = Shape("completions", 256, 4, 4, 4, 1024, 1_000, 64, prompts=4, samples=16)
    large = replace(shape, samples=2 * shape.samples)
    tokens = (large.completions - shape.completions) * shape.new_tokens
    kept = shape.layers * (11 * shape.hidden + 4 * shape.intermediate) + 3 * shape.hidden
    passing = 3 * shape.intermediate
    need = FLOAT * tokens * (kept + passing)
    return _growth("64 to 128 completions in one micro-batch", shape, large, need, threads, 2**30)


def _growth(
    what: str, small: Shape, large: Shape, need: int, threads: int, budget: int | None = None
) -> dict[str, Any]:
    before, after = (measure(shape, 1, threads, budget) for shape in (small, large))
    peaks = [point["memory"]["peak_bytes"] for point in (before, after)]
    return {
        "what": what,
        "peaks_bytes": peaks,
        "growth_bytes": peaks[1] - peaks[0],
        "need_bytes": need,
        "ratio": (peaks[1] - peaks[0]) / need,
        "shapes": [asdict(small), asdict(large)],
    }


def render(payload: Mapping[str, Any]) -> str:
    """A Markdown section of what was measured."""
    lines = [
        "### How the cost of a step grows",
        "",
        f"{machine_line(payload['machine'])}. Processor seconds per step.",
    ]
    for found in payload["axes"].values():
        lines += [
            "",
            f"| {found['title']} | sampling s | gradient s | step s | GFLOP | peak MB |",
            "|---|---|---|---|---|---|",
        ]
        for value, point in zip(found["values"], found["points"], strict=True):
            seconds = [f"{point['seconds'][cost]:.3g}" for cost in COSTS]
            flops = f"{point['operations']['step'] / 1e9:.3g}"
            peak = f"{point['memory']['peak_bytes'] / 1e6:,.0f}"
            lines.append("| " + " | ".join([f"{value:,}", *seconds, flops, peak]) + " |")
        for kind, name in (("seconds", "exponent"), ("operations", "of the operations")):
            row = [f"{found[f'exponents_of_{kind}'][cost]:.2f}" for cost in COSTS]
            lines.append("| " + " | ".join([name, *row, "", ""]) + " |")
    if payload["memory"]:
        lines += ["", "| peak memory | grew by MB | needed MB | ratio |", "|---|---|---|---|"]
    for found in payload["memory"]:
        grew, need = found["growth_bytes"] / 1e6, found["need_bytes"] / 1e6
        lines.append(f"| {found['what']} | {grew:,.0f} | {need:,.0f} | {found['ratio']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every axis, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--axes", nargs="*", choices=list(AXES), default=list(AXES))
    parser.add_argument("--points", type=int, default=4, help="of each axis, from the smallest")
    parser.add_argument("--steps", type=int, default=3, help="counted steps of a point")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no_memory", action="store_true", help="leave out the two needs")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.points < 2:
        parser.error("--points must be 2 or more: one point has no exponent")
    os.environ |= {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(arguments.threads)
    threads, memory = arguments.threads, []
    axes = {}
    for name in arguments.axes:
        axes[name] = along(AXES[name], arguments.points, arguments.steps, threads)
        print(f"{name}: exponent {axes[name]['exponents_of_seconds']['step']:.2f}", flush=True)
    if not arguments.no_memory:
        memory = [memory_of_vocabulary(threads), memory_of_completions(threads)]
    payload = {
        "benchmark": "scaling",
        "settings": {k: v for k, v in vars(arguments).items() if k != "out"},
        "machine": machine(),
        "axes": axes,
        "memory": memory,
    }
    print("\n" + render(payload))
    write_results(arguments.out or RESULTS / f"scaling-{threads}.json", payload)


if __name__ == "__main__":
    main()
