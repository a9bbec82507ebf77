"""The programs that `vs_trl.py` compares, each in a process of its own, one step at a time.

A worker builds its program once, says what it weighs, and makes a step whenever it is told to over
a pipe. What a step took is measured from the word to the end of the optimizer's update.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import torch
from measuring import Clock, Parts, peak_rss_bytes, rss_bytes
from shapes import (
    Shape,
    as_text,
    build_model,
    build_tokenizer,
    hashed,
    lora_config,
    prompt_ids,
)

if TYPE_CHECKING:
    from rl4lm import ReinforceTrainer

LEARNING_RATE = 1e-7  # weights move, and completions stay as long as their shape makes them
CLIP = 1.0
CLOCKS = {"wall_s": "wall", "cpu_s": "processor"}  # in a step's answer -> in words
NAMES = ("ours", "ours_frugal", "trl_grpo", "trl_grpo_frugal", "trl_rloo", "hand_rolled")
# Completions of a forward and backward pass: of those tried, what was fastest, and what took least
# memory without being much slower.
MICRO = {"T": (16, 16), "S": (8, 8), "V": (8, 8), "G": (16, 4), "L": (8, 4)}
# Tokens of a micro-batch of ours, chosen alike; None = the trainer's default.
TOKENS: dict[str, tuple[int | None, int | None]] = {
    "T": (None, 320),
    "S": (1024, 1024),
    "V": (1024, 1024),
    "G": (None, 8192),
    "L": (None, 8192),
}
MICRO_HAND_ROLLED = {"T": 16, "S": 16, "V": 8, "G": 16, "L": 8}
# What a program needs before its model is built.
IMPORTS = {
    "ours": (("rl4lm", "ReinforceTrainer"), ("transformers", "LlamaForCausalLM")),
    "trl": (("trl", "GRPOTrainer"), ("trl", "RLOOTrainer")),
    "hand": (("transformers", "LlamaForCausalLM"),),
}
PHASES = {"sampling": "sampling", "scoring": "scoring"} | dict.fromkeys(
    ("gradient", "forward", "backward", "loss"), "gradient"
)


@dataclass(frozen=True)
class Job:
    """What a worker is asked to be."""

    contender: str
    shape: Shape
    variant: str
    threads: int
    micro: int  # completions; of TRL and the hand-rolled loop
    tokens_per_micro_batch: int | None  # of ours; None = its default
    device: str
    max_steps: int


class Turns:
    """A worker's end of the pipe: waits for the word, measures, reports."""

    def __init__(self, pipe: Connection, job: Job, weights: dict[str, float]) -> None:
        self._pipe, self._job, self._weights = pipe, job, weights
        self._clock = Clock()
        self.parts = Parts()

    def ready(self, settings: dict[str, Any]) -> None:
        """Say that the program is built, and with which settings."""
        if torch.get_num_threads() != self._job.threads:
            raise AssertionError(
                f"{torch.get_num_threads()} threads, {self._job.threads} asked for"
            )
        self._weights["built_bytes"] = rss_bytes()
        self._pipe.send({"settings": settings, "memory": self._weights})

    def wait(self) -> None:
        """Block until a step is wanted; the parent ends this process when none is."""
        self._pipe.recv()
        self.parts.clear()
        self._clock = Clock()

    def report(self, mean_length: float) -> None:
        """The step has ended: send what it took, in seconds, by phase."""
        self.synchronize()
        total = self._clock.read()
        answer: dict[str, Any] = {**total, "mean_length": mean_length}
        for kind, parts in (("wall", self.parts.wall), ("cpu", self.parts.cpu)):
            phases: dict[str, float] = dict.fromkeys(("sampling", "scoring", "gradient"), 0.0)
            for name, seconds in parts.items():
                phases[PHASES[name]] += seconds
            if not (phases["sampling"] and phases["gradient"]):
                raise AssertionError(f"sampling or gradient was not timed, only {sorted(parts)}")
            phases["rest"] = total[f"{kind}_s"] - sum(phases.values())
            answer[f"phases_{kind}_s"] = phases
        answer["parts_cpu_s"] = dict(self.parts.cpu)
        self._pipe.send(answer | {"peak_bytes": self._peak()})

    def synchronize(self) -> None:
        """Wait for the device, so that clocks show what was done and not what was asked for."""
        if self._job.device == "cuda":
            torch.cuda.synchronize()

    def _peak(self) -> int:
        if self._job.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return peak_rss_bytes()


def work(pipe: Connection, job: Job) -> None:
    """Be a contender until the parent ends this process."""
    with answering(pipe):
        torch.set_num_threads(job.threads)
        for module, name in IMPORTS[job.contender.split("_")[0]]:
            getattr(importlib.import_module(module), name)  # all of them load by need
        turns = Turns(pipe, job, {"imported_bytes": rss_bytes()})
        _program(job.contender)(job, turns)


@contextlib.contextmanager
def answering(pipe: Connection) -> Iterator[None]:
    """A process that says nothing but over its pipe; what goes wrong is sent as text."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries print; the table is the parent's
    warnings.simplefilter("ignore", FutureWarning)
    try:
        from transformers.utils import logging

        logging.set_verbosity_error()
        yield
    except Exception:  # noqa: BLE001 -- whatever it is, the parent shows it
        with contextlib.suppress(OSError):
            pipe.send({"error": traceback.format_exc()})
        sys.exit(1)


def _program(contender: str) -> Callable[[Job, Turns], None]:
    if contender.startswith("trl"):
        import trl_steps

        return trl_steps.run
    return _ours if contender.startswith("ours") else _hand_rolled


def material(job: Job) -> tuple[Any, Any, list[str], Shape]:
    """Model, tokenizer, prompts and sizes; every program gets the same."""
    shape = job.shape
    tokenizer, ids = build_tokenizer(shape, job.variant), prompt_ids(shape)
    prompts = [as_text(row) for row in ids]
    if tokenizer(prompts)["input_ids"] != ids:
        raise AssertionError("the tokenizer does not give back the ids of the prompts")
    return build_model(shape, job.variant, job.device), tokenizer, prompts, shape


def _ours(job: Job, turns: Turns) -> None:
    _lap_in_processor_time(turns)
    trainer = our_trainer(job)
    turns.ready(trainer.config.to_dict())
    while True:
        turns.wait()
        metrics: Any = trainer.learner.step().metrics
        turns.report(metrics["completions/mean_length"])


def our_trainer(job: Job) -> ReinforceTrainer:
    """This package's trainer on the work that all programs do."""
    from rl4lm import ReinforceConfig, ReinforceTrainer
    from rl4lm.screen.console import Screen

    model, tokenizer, prompts, shape = material(job)
    budget = job.tokens_per_micro_batch
    chosen: dict[str, Any] = {} if budget is None else {"max_tokens_per_micro_batch": budget}
    config = ReinforceConfig(
        prompts_per_step=shape.prompts,
        num_generations=shape.samples,
        max_completion_length=shape.new_tokens,
        learning_rate=LEARNING_RATE,
        max_grad_norm=CLIP,
        max_steps=job.max_steps,
        torch_threads=job.threads,
        eval_samples=0,
        noise_every=0,  # a measurement that the others do not make
        sample_table_steps=0,
        **chosen,
    )
    return ReinforceTrainer(
        model=model,
        reward_funcs=hashed,
        args=config,
        train_dataset=[{"prompt": prompt} for prompt in prompts],
        processing_class=tokenizer,
        peft_config=lora_config() if job.variant == "lora" else None,
        screen=Screen(quiet=True),
    )


def _lap_in_processor_time(turns: Turns) -> None:
    """Book the laps of a step in wall and processor seconds; its metrics have wall seconds only."""
    from rl4lm.metrics import Stopwatch

    names = {"sample": "sampling", "score": "scoring", "gradient": "gradient"}
    start, lap = Stopwatch.__init__, Stopwatch.lap
    since = [Clock()]

    def started(self: Any) -> None:
        start(self)
        since[0] = Clock()

    def lapped(self: Any, part: str) -> None:
        turns.synchronize()
        lap(self, part)
        seconds = since[0].read()
        if part in names:
            turns.parts.enter()
            turns.parts.leave(names[part], seconds["wall_s"], seconds["cpu_s"])
        since[0] = Clock()

    watch: Any = Stopwatch
    watch.__init__, watch.lap = started, lapped


def _hand_rolled(job: Job, turns: Turns) -> None:
    from hand_rolled import HandRolled

    model, tokenizer, prompts, shape = material(job)
    if job.variant == "lora":
        from peft import get_peft_model

        model = get_peft_model(model, lora_config())
    autocast: AbstractContextManager[Any] = nullcontext()
    if job.device == "cuda":
        autocast = torch.autocast("cuda", dtype=torch.bfloat16)
    loop = HandRolled(
        model, tokenizer, prompts, shape, job.micro, LEARNING_RATE, autocast, turns.parts
    )
    dtype = "bf16 autocast" if job.device == "cuda" else "fp32"
    turns.ready({"micro": job.micro, "dtype": dtype, "learning_rate": LEARNING_RATE})
    while True:
        turns.wait()
        turns.report(loop.step())
