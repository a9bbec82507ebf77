"""What one step must cost on this machine at least, and how near ours comes.

    taskset -c 0 python benchmarks/limits.py [--sizes T S V] [--threads 1] [--rounds 3] [--out FILE]

`flops.py` counts what a step needs: every prompt once, no padding, 2 operations per weight and
token for sampling and 6 for training, the head on completion tokens only, and an exponential per
completion token and vocabulary entry in each half. Divided by how fast the machine multiplies the
very matrices of these shapes (and, again, by its fastest product of all) that is a floor in
seconds; the share is the floor over what our step took. Floor and step take turns, so that a
machine that slows down slows both. Printed: rates, operations, floors and shares of sampling and
of training. Minutes on one core: T half, S 4, V 4.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from contenders import Job
from flops import Step, Work, step_work
from measuring import RESULTS, machine, machine_line, write_results
from racing import Contender
from rates import Rates, bandwidth, best, product_rate, sampling_rates, training_rates
from shapes import SHAPES, Shape, prompt_ids, shape_of

HALVES = {"sampling": "sampling", "training": "gradient"}  # -> the phase of a step


def measure_rates(shape: Shape, tokens: int) -> dict[str, Any]:
    """Rates now: of the products of both halves, of the fastest product, of memory."""
    rates = {"sampling": sampling_rates(shape), "training": training_rates(shape, tokens)}
    square = product_rate(2048, 2048, 2048)
    return {"rates": rates, "square": square, "best": best(rates, square)}


def floors(work: Step, measured: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Seconds of each half at the rates of its own products, and at the fastest product's."""
    found = {}
    for half in HALVES:
        rates, todo = measured["rates"][half], getattr(work, half)
        fast = Rates(measured["best"], measured["best"], rates.exponentials)
        found[half] = {"at_shapes": rates.floor(todo), "at_best": fast.floor(todo)}
    return found


def examine(size: str, threads: int, rounds: int, budget: int | None) -> dict[str, Any]:
    """Floors and steps of one size, in turns."""
    shape = shape_of(size, "fixed")
    lengths = [len(ids) for ids in prompt_ids(shape)]
    work = step_work(shape, lengths)
    tokens = sum(lengths) + shape.completions * (shape.new_tokens - 1)
    contender = Contender(Job("ours", shape, "fixed", threads, 0, budget, "cpu", rounds + 1))
    turns = []
    try:
        contender.step()
        for _ in range(rounds):
            measured = measure_rates(shape, tokens)
            step = contender.step()
            turns.append(_shares(floors(work, measured), step, threads) | _plain(measured))
    finally:
        contender.stop()
    return {
        "operations": {half: _counted(getattr(work, half)) for half in HALVES},
        "flops": work.flops,
        "turns": turns,
        "median": {
            half: {
                key: statistics.median(turn[half][key] for turn in turns) for key in turns[0][half]
            }
            for half in (*HALVES, "step")
        },
        "settings_of_ours": contender.built["settings"],
    }


def _counted(work: Work) -> dict[str, float]:
    return asdict(work) | {"flops": work.flops}


def _plain(measured: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rates": {half: asdict(rates) for half, rates in measured["rates"].items()},
        "square": measured["square"],
        "best": measured["best"],
    }


def _shares(
    floor: Mapping[str, Mapping[str, float]], step: Mapping[str, Any], threads: int
) -> dict[str, Any]:
    """Floor, seconds and share of each half and of the whole step."""
    clock = "cpu" if threads == 1 else "wall"
    found: dict[str, Any] = {}
    for half, phase in HALVES.items():
        found[half] = {**floor[half], "seconds": step[f"phases_{clock}_s"][phase]}
    found["step"] = {
        kind: sum(floor[half][kind] for half in HALVES) for kind in ("at_shapes", "at_best")
    } | {"seconds": step[f"{clock}_s"]}
    for numbers in found.values():
        for kind in ("at_shapes", "at_best"):
            numbers[f"share_{kind}"] = numbers[kind] / numbers["seconds"]
    return found


def render(payload: Mapping[str, Any]) -> str:
    """A Markdown section of what was measured."""
    lines = [
        f"### The floor of a step, {payload['settings']['threads']} thread(s)",
        "",
        f"{machine_line(payload['machine'])}. Fastest square product (2048³) "
        f"{payload['square'] / 1e9:.0f} GFLOP/s, reading {payload['bandwidth'] / 1e9:.0f} GB/s.",
        "",
        "| size | half | GFLOP | layers, GFLOP/s | head, GFLOP/s | exp, G/s | floor s, these "
        "products | floor s, fastest product | ours s | share of the floor | share, fastest |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for size, found in payload["results"].items():
        for half, numbers in found["median"].items():
            rates, flops = ["", "", ""], found["flops"]
            if half in HALVES:
                measured = [turn["rates"][half] for turn in found["turns"]]
                rates = [
                    _giga(statistics.median(rate[key] for rate in measured))
                    for key in ("layers", "head", "exponentials")
                ]
                flops = found["operations"][half]["flops"]
            seconds = [f"{numbers[key]:.3g}" for key in ("at_shapes", "at_best", "seconds")]
            shares = [f"{100 * numbers[f'share_at_{key}']:.0f} %" for key in ("shapes", "best")]
            row = [size, half, f"{flops / 1e9:,.1f}", *rates, *seconds, *shares]
            lines.append("| " + " | ".join(row) + " |")
    lines += ["", "The step's seconds hold scoring and the optimizer too; its floor does not."]
    return "\n".join(lines) + "\n"


def _giga(rate: float) -> str:
    return f"{rate / 1e9:.3g}"


def main() -> None:
    """Measure all sizes, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    cpu_sizes = [size for size, shape in SHAPES.items() if shape.architecture == "llama"]
    parser.add_argument("--sizes", nargs="+", choices=cpu_sizes, default=cpu_sizes)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--tokens_per_micro_batch", type=int, help="of ours; default: the trainer's own"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(arguments.threads)
    budget = arguments.tokens_per_micro_batch
    payload = {
        "benchmark": "limits",
        "settings": {k: v for k, v in vars(arguments).items() if k != "out"},
        "machine": machine(),
        "bandwidth": bandwidth(),
        "square": product_rate(2048, 2048, 2048),
        "results": {
            size: examine(size, arguments.threads, arguments.rounds, budget)
            for size in arguments.sizes
        },
    }
    print("\n" + render(payload))
    sizes = "".join(arguments.sizes)
    write_results(arguments.out or RESULTS / f"limits-{sizes}-{arguments.threads}.json", payload)


if __name__ == "__main__":
    main()
