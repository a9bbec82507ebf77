"""Processor seconds and samples to an accuracy, against TRL's GRPOTrainer and RLOOTrainer.

    taskset -c 1 python benchmarks/time_to_accuracy.py --cache FOLDER [--only ours trl] [--out FILE]

All start from the built-in arithmetic checkpoint, with the prompts of our stream in its order, as
many prompts and completions a step as our settings say, one optimizer step per sampling, the same
reward, float32, AdamW, clip, schedule and one thread. TRL gets no KL, no checkpointing of
activations, no log, the fastest of some micro-batches and the best of some learning rates; ours
keeps its shipped settings but for the learning rate, which is chosen alike. Every 10 steps the
clocks stop, and our own evaluation reads the 500 held-out problems greedily off the weights.
Printed are medians and ranges over seeds of what was spent until an evaluation first showed 90 %
and 95 %, imports and evaluations left out.

Every run is a process of its own whose result is kept in the cache, so that a benchmark that was
interrupted goes on, and that `--only ours` takes TRL's figures from there. TRL is needed for its
half only (pip install trl==1.16.0). Two CPU cores are enough, one is used; two and a half hours, of
which our half is ten minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accuracy_runs import EVERY, TARGETS, Job, our_settings, reached, run
from measuring import machine, machine_line, write_results

from rl4lm import ReinforceConfig
from rl4lm.commandline.commands import quiet_libraries

NAMES = {"ours": "rl4lm", "grpo": "TRL GRPOTrainer", "rloo": "TRL RLOOTrainer"}
QUANTITIES = {
    "cpu_s": "processor seconds",
    "wall_s": "wall seconds",
    "samples": "samples",
    "steps": "steps",
}
# Learning rates that are tried, in units of RATE; for RLOO the best of GRPO's early and another.
RATE = 5e-4
FACTORS = {"ours": (1.0, 1.4), "grpo": (0.25, 0.5, 1.0, 1.4, 2.0), "rloo": (0.5, 1.0)}
CHANCE = 0.08  # of accuracy, that a larger rate may be behind early
MICRO_BATCHES = (128, 256, 1024)  # completions per forward and backward pass of TRL
TRIAL_STEPS = 8  # to find the fastest of them


Runner = Callable[[Job], dict[str, Any]]


def runner(cache: Path, allowed: Iterable[str]) -> Runner:
    """From a job to its result: out of the cache, else by a run if allowed, else nothing, {}."""
    methods = set(allowed)

    def result_of(job: Job) -> dict[str, Any]:
        file = job.file(cache)
        if file.is_file():
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if found["ended"] != "time limit" or found["limit"] >= job.limit:
                return found
        if job.method not in methods:
            return {}
        print(f"running {file.stem}, {job.limit:g} s at most", flush=True)
        options = ["--one", job.method, job.learning_rate, job.seed, "--limit", job.limit]
        options += ["--micro_batch", job.micro_batch, "--steps", job.steps, "--cache", cache]
        command = [sys.executable, __file__, *map(str, options)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return result_of(job)

    return result_of


def measure(
    method: str, result_of: Runner, seeds: int, limits: tuple[float, float]
) -> dict[str, Any]:
    """Choose micro-batch and learning rate, then run all seeds.

    Args:
        method: which.
        result_of: runs a job, or looks it up.
        seeds: how many.
        limits: processor seconds of a run that only helps to choose, and of one that counts.
    """
    rate = RATE
    factors = FACTORS[method]
    job = Job(method, rate, 0, limit=limits[0] if len(factors) > 1 else limits[1])
    sizes = trial_seconds(job, result_of) if method != "ours" else {0: 0.0}
    job = replace(job, micro_batch=min(sizes, key=lambda size: sizes[size], default=0))
    tried = {rate * f: result_of(replace(job, learning_rate=rate * f)) for f in factors}
    early = {rate: early_accuracy(found, limits[0]) for rate, found in tried.items() if found}
    job = replace(job, limit=limits[1])
    # Small rates look better early than they are in the end: of those equal to a percent the
    # largest leads, and larger ones that are not far behind have their chance.
    leader = max(early, key=lambda rate: (round(early[rate], 2), rate), default=rate)
    larger = [rate for rate in early if rate > leader and early[rate] > early[leader] - CHANCE]
    finalists = [leader, *sorted(larger)]
    whole = {rate: result_of(replace(job, learning_rate=rate)) for rate in finalists}
    final = {rate: merit(found) for rate, found in whole.items() if found}
    best = min(final, key=lambda rate: final[rate], default=leader)
    results = [result_of(replace(job, learning_rate=best, seed=seed)) for seed in range(seeds)]
    done = [found for found in results if found]
    return {
        "micro_batch_seconds_per_step": sizes,
        "early_accuracy_by_learning_rate": early,
        "last_accuracy_by_learning_rate": {rate: -values[-1] for rate, values in final.items()},
        "learning_rate": best,
        "micro_batch": job.micro_batch,
        "runs": [{k: v for k, v in r.items() if k not in ("settings", "machine")} for r in done],
        **{k: done[0][k] for k in ("settings", "machine") if done},
    }


def trial_seconds(job: Job, result_of: Runner) -> dict[int, float]:
    """Processor seconds per step by micro-batch: the smaller of two short runs each."""
    seconds: dict[int, list[float]] = {}
    for size, seed in itertools.product(MICRO_BATCHES, (0, 1)):
        trial = Job(job.method, job.learning_rate, seed, micro_batch=size, steps=TRIAL_STEPS)
        if found := result_of(trial):
            seconds.setdefault(size, []).append(found["cpu_s"] / found["steps"])
    return {size: min(each) for size, each in seconds.items()}


def early_accuracy(result: Mapping[str, Any], limit: float) -> float:
    """Mean of the last three evaluations within so many processor seconds."""
    return statistics.fmean(
        [point["accuracy"] for point in result["curve"] if point["cpu_s"] <= limit][-3:]
    )


def merit(result: Mapping[str, Any]) -> tuple[float, ...]:
    """What a whole run is judged by, less is better: seconds to 95 %, to 90 %, last accuracy."""
    seconds = [spent({"runs": [result]}, target, "cpu_s")[0] for target in sorted(TARGETS)[::-1]]
    return (*seconds, -result["curve"][-1]["accuracy"])


def spent(found: Mapping[str, Any], target: float, what: str, in_a_row: int = 1) -> list[float]:
    """What each run of a method had spent when it reached a target; infinite where it did not."""
    points = [reached(run["curve"], target, in_a_row) for run in found["runs"]]
    return [math.inf if point is None else point[what] for point in points]


def summarize(found: Mapping[str, Any]) -> dict[str, Any]:
    """Target -> quantity -> one value per seed (null: not reached), once and twice in a row."""
    return {
        f"{target:.2f}": {
            what + suffix: [None if math.isinf(v) else v for v in spent(found, target, what, n)]
            for what in QUANTITIES
            for n, suffix in ((1, ""), (2, "_twice_in_a_row"))
        }
        for target in TARGETS
    }


def render(payload: dict[str, Any]) -> str:
    """A Markdown section of what `compare` has found."""
    methods = payload["methods"]
    lines = [
        "## Time to accuracy\n",
        f"The built-in arithmetic checkpoint, {payload['prompts_per_step']} prompts x "
        f"{payload['num_generations']} completions a step, float32, one thread; the same prompts "
        "in the same order, reward, optimizer, schedule and clip. What was spent until an "
        f"evaluation of the 500 held-out problems, every {payload['every']} steps, first showed "
        "the accuracy, without imports and evaluations: median (range) over seeds. A run ends "
        f"after {payload['max_steps']} steps or {payload['limit_s']:g} processor seconds.\n",
        f"| | accuracy | reached | {' | '.join(QUANTITIES.values())} |",
        "|---|---|---|" + "---|" * len(QUANTITIES),
    ]
    for target, (name, found) in itertools.product(TARGETS, methods.items()):
        count = sum(map(math.isfinite, spent(found, target, "steps")))
        cells = [_spread(spent(found, target, what)) for what in QUANTITIES]
        start = f"| {NAMES[name]} | {100 * target:.0f} % | {count} of {len(found['runs'])} |"
        lines.append(f"{start} {' | '.join(cells)} |")
    lines += ["", *_ratios(methods), ""]
    for name, found in methods.items():
        lines.append(f"- {NAMES[name]}: {_choice(found)}; {machine_line(found['machine'])}")
    for name, found in payload["only_tried"].items():
        seconds = min(found["micro_batch_seconds_per_step"].values())
        lines.append(
            f"- {NAMES[name]} was tried and left out: {seconds:.2f} processor seconds a step; "
            f"{_choice(found)}"
        )
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    """Median and range; a seed that never got there counts as infinite."""
    low, middle, high = (
        f"{v:,.0f}" if math.isfinite(v) else "never"
        for v in (min(values), statistics.median_high(values), max(values))
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def _ratios(methods: Mapping[str, Any]) -> list[str]:
    """The better of TRL's trainers over ours, by median, where both got there."""
    lines = []
    for target, what in itertools.product(TARGETS, ("cpu_s", "samples")):
        medians = {n: statistics.median_high(spent(f, target, what)) for n, f in methods.items()}
        ours = medians.pop("ours", math.inf)
        best = min(medians, key=lambda name: medians[name], default="ours")
        if math.isfinite(ours) and math.isfinite(medians.get(best, math.inf)):
            ratio = f"{medians[best] / ours:.2f} times our {QUANTITIES[what]}"
            lines.append(f"- To {100 * target:.0f} %, {NAMES[best]} needs {ratio}.")
    return lines


def _choice(found: Mapping[str, Any]) -> str:
    """What was chosen, and among what."""
    early, last = (found[f"{k}_accuracy_by_learning_rate"] for k in ("early", "last"))
    words = f"learning rate {found['learning_rate']:g}"
    for title, shares in (("early", early), ("in the end", last)) if len(early) > 1 else ():
        if shares:
            each = ", ".join(
                f"{float(rate):g}: {100 * share:.1f}" for rate, share in shares.items()
            )
            words += f"; {title}, accuracy in % by learning rate {each}"
    if found["runs"]:
        words = f"seeds {', '.join(str(run['seed']) for run in found['runs'])}; {words}"
    if found["micro_batch"]:
        words += f", micro-batches of {found['micro_batch']} completions"
    return words


def arguments_of_a_call() -> argparse.Namespace:
    """What the command was given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--cache", type=Path, required=True, help="folder of finished runs")
    parser.add_argument("--only", nargs="*", choices=("ours", "trl"), default=["ours", "trl"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grid_limit", type=float, default=200, help="processor seconds")
    parser.add_argument("--limit", type=float, default=900, help="processor seconds")
    default = Path(__file__).parent / "results" / "time_to_accuracy.json"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "RATE", "SEED"), help="a single run")
    parser.add_argument("--micro_batch", type=int, default=0, help="of --one")
    parser.add_argument("--steps", type=int, default=0, help="of --one; 0 = all")
    return parser.parse_args()


def compare(result_of: Runner, seeds: int, limits: tuple[float, float]) -> dict[str, Any]:
    """Measure every method; what `render` tells and the results file holds.

    Args:
        result_of, seeds, limits: as `measure` takes them.
    """
    found = {name: measure(name, result_of, seeds, limits) for name in NAMES}
    config = ReinforceConfig(**our_settings())
    return {
        "targets": TARGETS,
        "every": EVERY,
        "prompts_per_step": config.prompts_per_step,
        "num_generations": config.num_generations,
        "max_steps": config.max_steps,
        "grid_limit_s": limits[0],
        "limit_s": limits[1],
        "machine": machine(),
        "methods": {n: {"summary": summarize(f), **f} for n, f in found.items() if f["runs"]},
        "only_tried": {
            name: each
            for name, each in found.items()
            if each["early_accuracy_by_learning_rate"] and not each["runs"]
        },
    }


def main() -> None:
    """Run or look up all runs, print the section, write the JSON; with --one, a single run."""
    arguments = arguments_of_a_call()
    quiet_libraries()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        method, rate, seed = arguments.one
        options = (arguments.micro_batch, arguments.limit, arguments.steps)
        run(Job(method, float(rate), int(seed), *options), arguments.cache)
        return
    allowed = [name for name in NAMES if ("ours" if name == "ours" else "trl") in arguments.only]
    limits = (arguments.grid_limit, arguments.limit)
    payload = compare(runner(arguments.cache, allowed), arguments.seeds, limits)
    print(render(payload))
    write_results(arguments.out, payload)


if __name__ == "__main__":
    main()
