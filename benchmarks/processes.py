"""One process on one core against two processes on two, replicated and sharded by FSDP2.

    python benchmarks/processes.py [--shape S] [--steps 6] [--rounds 3] [--out FILE]

The same step for all: the prompts of `shapes.py`, variant `fixed`, which two processes share. In
every round the processes of each layout are started anew, each on a core of its own, and stay side
by side; each layout makes a step when it is its turn, so that whatever else the machine does hits
all alike, every other turn in reverse order. The first step is not counted, and a last one counts
the collectives and is not measured. Needs Linux and two cores with nothing else on them.

Printed and written: samples per second (median, range), the ratio to one process turn by turn, the
parts of a step as shares of it (means over the processes: `waiting` is the log's `time/idle_s`,
`telling` what the collectives take beyond it; under FSDP2 those of the gradient pass are inside
`gradient`), the collectives of a step, and the peak memory of a process. Two processes should make
1.6 times as many samples per second as one on size S; the last line says whether they do. Minutes:
T two, S half an hour.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contenders import TOKENS, Job
from measuring import RESULTS, machine, machine_line, summary, write_results
from shapes import SHAPES, shape_of
from teams import LAYOUTS, Team

ALONE = LAYOUTS[0].name
WANTED = 1.6  # times one process, on size S
SHARES = ("sampling", "gradient", "waiting", "telling", "update")


def race(job: Job, cores: Sequence[int], steps: int, counts: bool) -> dict[str, dict[str, Any]]:
    """One round: fresh processes of every layout, and their steps in turns.

    Args:
        job: the work of a step.
        cores: two of them.
        steps: counted ones of each layout.
        counts: whether one more step counts the collectives.
    """
    teams: dict[str, Team] = {}
    found: dict[str, dict[str, Any]] = {layout.name: {"steps": []} for layout in LAYOUTS}
    try:
        for layout in LAYOUTS:
            teams[layout.name] = Team(layout, job, cores)
        for turn in range(steps + 1):
            for name in list(teams)[:: -1 if turn % 2 else 1]:
                step = teams[name].step()
                if turn:
                    found[name]["steps"].append(step)
        if counts:
            for name, team in teams.items():
                found[name]["collectives"] = team.collectives()
    finally:
        for team in teams.values():
            team.stop()
    return found


def result(rounds: Sequence[Mapping[str, Any]], name: str, samples: int) -> dict[str, Any]:
    """What the steps of a layout took in all rounds, and beside those of one process."""
    steps, alone = ([s for found in rounds for s in found[n]["steps"]] for n in (name, ALONE))
    pairs = zip(steps, alone, strict=True)
    return {
        "samples_per_s": summary([samples / step["wall_s"] for step in steps]),
        "ratio": summary([one["wall_s"] / step["wall_s"] for step, one in pairs]),
        "shares": {
            part: summary([shares(step)[part] for step in steps])["median"] for part in SHARES
        },
        "collectives": rounds[-1][name]["collectives"],
        "peak_bytes": max(peak for step in steps for peak in step["peak_bytes"]),
        "steps": steps,
    }


def shares(step: Mapping[str, Any]) -> dict[str, float]:
    """Parts of a step over its seconds."""
    parts, idle = step["parts_s"], step["idle_s"]
    seconds = {
        "sampling": parts["sample"] + parts["score"],
        "gradient": parts["gradient"],
        "waiting": idle,
        "telling": parts["centre"] + parts["reduce"] - idle,
        "update": parts["update"],
    }
    return {name: value / step["wall_s"] for name, value in seconds.items()}


def render(payload: Mapping[str, Any]) -> str:
    """A Markdown section of what was measured."""
    size = payload["settings"]["shape"]
    lines = [
        f"### One process and two, size {size}",
        "",
        f"{machine_line(payload['machine'])}. A core and a thread for each process.",
        "",
        "| layout | samples/s: median (range) | times one process | "
        + " | ".join(SHARES)
        + " | collectives: calls, MB | peak MB of a process |",
        "|---|---|---|" + "---|" * (len(SHARES) + 2),
    ]
    for name, found in payload["results"].items():
        rate, ratio = found["samples_per_s"], found["ratio"]
        told = found["collectives"].values()
        calls, volume = sum(t["calls"] for t in told), sum(t["bytes"] for t in told)
        row = [
            name,
            f"{rate['median']:.3g} ({rate['low']:.3g} to {rate['high']:.3g})",
            f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
            *(f"{100 * found['shares'][part]:.1f} %" for part in SHARES),
            f"{calls}, {volume / 1e6:,.1f}",
            f"{found['peak_bytes'] / 1e6:,.0f}",
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join([*lines, "", verdict(payload)]) + "\n"


def verdict(payload: Mapping[str, Any]) -> str:
    """Whether two processes are as quick as they should be."""
    pairs = [(n, found["ratio"]["median"]) for n, found in payload["results"].items() if n != ALONE]
    named = ", ".join(f"{name} {ratio:.2f}" for name, ratio in pairs)
    if payload["settings"]["shape"] != "S":
        return f"Times one process: {named}; what is asked for is asked on size S."
    missed = ", ".join(name for name, ratio in pairs if ratio < WANTED)
    return f"Asked for: {WANTED} times one process. Found: {named}; missed by: {missed or 'none'}."


def main() -> None:
    """Race, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    cpu_sizes = [size for size, shape in SHAPES.items() if shape.architecture == "llama"]
    parser.add_argument("--shape", choices=cpu_sizes, default="S")
    parser.add_argument("--steps", type=int, default=6, help="counted steps of a round")
    parser.add_argument("--rounds", type=int, default=3, help="with fresh processes each")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not hasattr(os, "sched_setaffinity"):
        parser.error("this system does not say which core a process runs on; Linux does")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error(f"two processes need two cores, and this one may use {len(cores)}")
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    shape, budget = shape_of(arguments.shape, "fixed"), TOKENS[arguments.shape][0]
    job = Job("ours", shape, "fixed", 1, 0, budget, "cpu", arguments.steps + 2)
    rounds = []
    for number in range(arguments.rounds):
        rounds.append(race(job, cores, arguments.steps, number + 1 == arguments.rounds))
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
    payload = {
        "benchmark": "processes",
        "settings": {k: v for k, v in vars(arguments).items() if k != "out"},
        "machine": machine() | {"torch_threads": 1},
        "results": {
            layout.name: result(rounds, layout.name, shape.completions) for layout in LAYOUTS
        },
    }
    print("\n" + render(payload))
    write_results(arguments.out or RESULTS / f"processes-{arguments.shape}.json", payload)


if __name__ == "__main__":
    main()
