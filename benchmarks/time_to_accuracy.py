"""Processor seconds and samples to an accuracy, against TRL's GRPOTrainer and RLOOTrainer.

    taskset -c 1 python benchmarks/time_to_accuracy.py --cache FOLDER [--only ours trl] [--out FILE]

All start from the built-in arithmetic checkpoint, with the prompts of our stream in its order, as
many prompts and completions a step as our settings say, one optimizer step per sampling, the same
reward, float32, AdamW, clip, schedule and one thread. TRL gets no KL, no checkpointing of
activations, no log, the fastest of some micro-batches and the best of some learning rates; ours
keeps its shipped settings. Every 10 steps the clocks stop, and our own evaluation reads the 500
held-out problems greedily off the weights. Printed are medians and ranges over seeds of what was
spent until an evaluation first showed 90 % and 95 %, imports and evaluations left out.

Every run is a process of its own whose result is kept in the cache, so that a benchmark that was
interrupted goes on, and that `--only ours` takes TRL's figures from there. TRL is needed for its
half only (pip install trl==1.16.0). Two CPU cores are enough, one is used; two and a half hours, of
which our half is ten minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measuring import Clock, machine, machine_line, write_results

from rewards.arithmetic import exact_answer
from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.builtin import dataset_rows, model_path, model_settings
from rl4lm.commands import quiet_libraries
from rl4lm.console import Screen
from rl4lm.data import stream_indices

MODEL = "builtin:tiny-arithmetic"
NAMES = {"ours": "rl4lm", "grpo": "TRL GRPOTrainer", "rloo": "TRL RLOOTrainer"}
TARGETS = (0.90, 0.95)
QUANTITIES = {
    "cpu_s": "processor seconds",
    "wall_s": "wall seconds",
    "samples": "samples",
    "steps": "steps",
}
EVERY = 10  # steps between evaluations
# Learning rates that are tried, in units of our own; for RLOO the best of GRPO's and its neighbour.
FACTORS = {"ours": (1.0,), "grpo": (0.25, 0.5, 1.0, 2.0), "rloo": (0.5, 1.0)}
MICRO_BATCHES = (128, 256, 1024)  # completions per forward and backward pass of TRL
TRIAL_STEPS = 8  # to find the fastest of them
STEPS = 360  # of every run; the learning rate falls over them
# What TRL's trainers take from our settings, and what else is right for them here.
SHARED = (
    "lr_scheduler_type",
    "warmup_steps",
    "max_steps",
    "max_grad_norm",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "num_generations",
    "max_completion_length",
    "temperature",
)
TRL_SETTINGS: dict[str, Any] = {
    "beta": 0.0,
    "num_iterations": 1,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "shuffle_dataset": False,  # the rows come in the order of our stream
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_dropout": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def our_settings() -> dict[str, Any]:
    """The shipped settings, over as many steps for every method."""
    return model_settings(MODEL) | {"max_steps": STEPS}


@dataclass(frozen=True)
class Job:
    """One training run."""

    method: str
    learning_rate: float
    seed: int
    micro_batch: int = 0  # completions; 0 = that of the method's settings
    limit: float = math.inf  # processor seconds of training
    steps: int = 0  # after which it ends; 0 = all steps of the schedule

    def file(self, cache: Path) -> Path:
        """Where its result is kept."""
        trial = f"-trial{self.steps}" if self.steps else ""
        name = f"{self.method}-lr{self.learning_rate:g}-seed{self.seed}-mb{self.micro_batch}{trial}"
        return cache / f"{name}.json"


class Referee:
    """Keeps the clocks of a run, evaluates its weights, and says when it is over."""

    def __init__(self, job: Job) -> None:
        """Prepare evaluations, on a copy of the model."""
        config = ReinforceConfig(**our_settings() | {"torch_threads": 1})
        self._judge = ReinforceTrainer(args=config, screen=Screen(quiet=True))
        self._job = job
        self._last = job.steps or config.max_steps
        self._spent = {"wall_s": 0.0, "cpu_s": 0.0}
        self._samples = config.completions_per_step
        self.curve: list[dict[str, float]] = []
        self.ended = ""
        self.totals: dict[str, float] = {}

    def start(self, model: torch.nn.Module) -> None:
        """Evaluate the weights of the start, and let the clocks run."""
        self._model = model
        self._evaluate(0)
        self._clock = Clock()

    def over(self, step: int) -> bool:
        """Whether the run is over after this step; the clocks stand still while this is found."""
        for name, seconds in self._clock.read().items():
            self._spent[name] += seconds
        self.totals = {"steps": step, "samples": step * self._samples, **self._spent}
        if step % EVERY == 0:
            self._evaluate(step)
        if reached(self.curve, max(TARGETS), in_a_row=2):
            self.ended = "target reached"
        elif step >= self._last:
            self.ended = "last step"
        elif self._spent["cpu_s"] >= self._job.limit:
            self.ended = "time limit"
        self._clock = Clock()
        return bool(self.ended)

    def _evaluate(self, step: int) -> None:
        self._judge.policy.module.model.load_state_dict(self._model.state_dict())
        accuracy = self._judge.evaluate()["accuracy"]
        point = {"steps": step, "samples": step * self._samples, **self._spent}
        self.curve.append({**point, "accuracy": accuracy})


def reached(
    curve: Sequence[Mapping[str, float]], target: float, in_a_row: int = 1
) -> Mapping[str, float] | None:
    """The evaluation that first completed so many in a row at or above a target, or None."""
    count = 0
    for point in curve:
        count = count + 1 if point["accuracy"] >= target else 0
        if count == in_a_row:
            return point
    return None


class _Over(Exception):
    """Ends our trainer."""


class _StopOurs:
    """Asks the referee after every step of our trainer."""

    def __init__(self, referee: Referee) -> None:
        self._referee = referee

    def on_step_end(self, state: Any, stats: Any) -> None:
        if self._referee.over(stats.step):
            raise _Over


def train_ours(job: Job, referee: Referee) -> dict[str, Any]:
    """Train with this package, as shipped but for seed and learning rate; returns the settings."""
    settings = {**our_settings(), "torch_threads": 1}
    settings |= {"seed": job.seed, "learning_rate": job.learning_rate}
    trainer = ReinforceTrainer(
        args=ReinforceConfig(**settings, eval_samples=0),
        callbacks=[_StopOurs(referee)],
        screen=Screen(quiet=True),
    )
    referee.start(trainer.policy.module.model)
    with contextlib.suppress(_Over):
        trainer.train()
    return settings


def train_trl(job: Job, referee: Referee) -> dict[str, Any]:
    """Train with TRL on the same stream of prompts; returns the settings."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    class Stop(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            referee.start(model)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = referee.over(state.global_step)

    ours = ReinforceConfig(**our_settings())
    settings = {name: getattr(ours, name) for name in SHARED} | TRL_SETTINGS
    settings |= {"seed": job.seed, "learning_rate": job.learning_rate}
    # One sampling is one optimizer step: TRL samples once per accumulation by default.
    settings["per_device_train_batch_size"] = job.micro_batch
    settings["gradient_accumulation_steps"] = ours.completions_per_step // job.micro_batch
    rows = dataset_rows(ours.dataset_name, "train")
    indices = stream_indices(len(rows), job.seed, 0, ours.max_steps * ours.prompts_per_step)
    data = [{name: rows[i][name] for name in ("prompt", "answer")} for i in indices]
    path = str(model_path(MODEL))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    trl = importlib.import_module("trl")
    with tempfile.TemporaryDirectory() as folder:
        trainer = getattr(trl, f"{job.method.upper()}Trainer")(
            model=model,
            reward_funcs=exact_answer,
            args=getattr(trl, f"{job.method.upper()}Config")(output_dir=folder, **settings),
            train_dataset=Dataset.from_list(data),
            processing_class=AutoTokenizer.from_pretrained(path),
            callbacks=[Stop()],
        )
        trainer.train()
    return settings


def run(job: Job, cache: Path) -> None:
    """Train once, in this process, and keep the result."""
    torch.set_num_threads(1)
    referee = Referee(job)
    settings = (train_ours if job.method == "ours" else train_trl)(job, referee)
    result = {
        **asdict(job),
        **referee.totals,
        "ended": referee.ended,
        "curve": referee.curve,
        "settings": settings,
        "machine": machine(),
    }
    job.file(cache).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


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
    rate = ReinforceConfig(**our_settings()).learning_rate
    factors = FACTORS[method]
    job = Job(method, rate, 0, limit=limits[0] if len(factors) > 1 else limits[1])
    sizes = trial_seconds(job, result_of) if method != "ours" else {0: 0.0}
    job = replace(job, micro_batch=min(sizes, key=lambda size: sizes[size], default=0))
    tried = {rate * f: result_of(replace(job, learning_rate=rate * f)) for f in factors}
    early = {rate: early_accuracy(found, limits[0]) for rate, found in tried.items() if found}
    job = replace(job, limit=limits[1])
    # Small rates look better early than they are in the end: of those equal to a percent the
    # largest leads, and the next larger one has its chance.
    leader = max(early, key=lambda rate: (round(early[rate], 2), rate), default=rate)
    finalists = [leader, *sorted(rate for rate in early if rate > leader)[:1]]
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
    """A Markdown section of what `main` writes."""
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


def main() -> None:
    """Run or look up all runs, print the section, write the JSON; with --one, a single run."""
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
    arguments = parser.parse_args()
    quiet_libraries()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        method, rate, seed = arguments.one
        options = (arguments.micro_batch, arguments.limit, arguments.steps)
        run(Job(method, float(rate), int(seed), *options), arguments.cache)
        return
    allowed = [name for name in NAMES if ("ours" if name == "ours" else "trl") in arguments.only]
    result_of = runner(arguments.cache, allowed)
    limits = (arguments.grid_limit, arguments.limit)
    found = {name: measure(name, result_of, arguments.seeds, limits) for name in NAMES}
    config = ReinforceConfig(**our_settings())
    payload = {
        "targets": TARGETS,
        "every": EVERY,
        "prompts_per_step": config.prompts_per_step,
        "num_generations": config.num_generations,
        "max_steps": config.max_steps,
        "grid_limit_s": arguments.grid_limit,
        "limit_s": arguments.limit,
        "machine": machine(),
        "methods": {n: {"summary": summarize(f), **f} for n, f in found.items() if f["runs"]},
        "only_tried": {
            name: each
            for name, each in found.items()
            if each["early_accuracy_by_learning_rate"] and not each["runs"]
        },
    }
    print(render(payload))
    write_results(arguments.out, payload)


if __name__ == "__main__":
    main()
