"""The runs of `time_to_accuracy.py`: this package's trainer and TRL's two, on the same work.

One run a process. A referee stops the clocks every few steps, reads the held-out problems greedily
off the weights, and says when a run is over.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import Clock, machine

from rewards.arithmetic import exact_answer
from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.builtin import dataset_rows, model_path, model_settings
from rl4lm.data.examples import stream_indices
from rl4lm.screen.console import Screen

MODEL = "builtin:tiny-arithmetic"
TARGETS = (0.90, 0.95)
EVERY = 10  # steps between evaluations
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
