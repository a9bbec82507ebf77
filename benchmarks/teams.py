"""Processes that make a step together, each on a core of its own, one step at a time.

They are started with the environment that `accelerate launch` gives to its processes, and meet over
gloo on this machine.
"""

from __future__ import annotations

import os
import socket
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import yaml
from contenders import Job, answering, our_trainer
from measuring import Clock, peak_rss_bytes
from racing import Worker
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SHARDED = Path(__file__).resolve().parents[1] / "recipes" / "accelerate" / "fsdp2.yaml"
PARTS = ("sample", "score", "centre", "gradient", "reduce", "update")  # of the log's time/*_s
_NAMESPACES = ("c10d", "_c10d_functional")  # of operators that speak with other processes
_NO_MESSAGE = ("wait_tensor", "barrier", "monitored_barrier_")


@dataclass(frozen=True)
class Layout:
    """How many processes, and who holds what of the parameters."""

    name: str
    processes: int
    sharded: bool = False


LAYOUTS = (
    Layout("one process", 1),
    Layout("two, replicated", 2),
    Layout("two, FSDP2", 2, sharded=True),
)


def sharding_settings() -> dict[str, str]:
    """What the launcher makes of recipes/accelerate/fsdp2.yaml."""
    settings = yaml.safe_load(SHARDED.read_text(encoding="utf-8"))["fsdp_config"]
    texts = {
        name.upper(): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in settings.items()
    }
    return {"ACCELERATE_USE_FSDP": "true", **texts}


def environments(layout: Layout) -> list[dict[str, str]]:
    """The variables of each process; none where it is alone."""
    if layout.processes == 1:
        return [{}]
    common = {
        "WORLD_SIZE": str(layout.processes),
        "LOCAL_WORLD_SIZE": str(layout.processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        **(sharding_settings() if layout.sharded else {}),
    }
    return [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), **common} for rank in range(layout.processes)
    ]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Team:
    """The parent's ends of the processes of a layout."""

    def __init__(self, layout: Layout, job: Job, cores: Sequence[int]) -> None:
        """Start them, and wait until all are built.

        Args:
            layout: of the processes.
            job: what each is asked to be; its prompts are those of the whole step.
            cores: the first process has the first one, and so on.
        """
        self._members = [
            Worker(f"{layout.name}, process {rank}", work, job, cores[rank], environment)
            for rank, environment in enumerate(environments(layout))
        ]
        try:
            for member in self._members:
                member.answer()
        except BaseException:  # an interrupt too must leave no process behind
            self.stop()
            raise

    def step(self) -> dict[str, Any]:
        """Have one step made; its seconds are those of the slowest, its parts means over all."""
        answers = self._all("step")
        parts = {part: statistics.fmean(a["parts"][part] for a in answers) for part in PARTS}
        return {
            "wall_s": max(answer["wall_s"] for answer in answers),
            "cpu_s": sum(answer["cpu_s"] for answer in answers),
            "parts_s": parts,
            "idle_s": answers[0]["idle_s"],
            "peak_bytes": [answer["peak_bytes"] for answer in answers],
            "reward": answers[0]["reward"],
            "grad_norm": answers[0]["grad_norm"],
        }

    def collectives(self) -> dict[str, Any]:
        """Have one more step made, and what the first process told the others in it."""
        return self._all("count")[0]

    def stop(self) -> None:
        """End them."""
        for member in self._members:
            member.stop()

    def _all(self, word: str) -> list[dict[str, Any]]:
        for member in self._members:
            member.tell(word)
        return [member.answer() for member in self._members]


def work(pipe: Connection, job: Job, core: int, environment: Mapping[str, str]) -> None:
    """Be a process of a team until the parent ends it."""
    with answering(pipe):
        os.sched_setaffinity(0, {core})
        os.environ |= environment
        torch.set_num_threads(job.threads)
        trainer = our_trainer(job)
        pipe.send({"processes": trainer.world.size})
        while True:
            if pipe.recv() == "count":
                with Collectives() as counted:
                    trainer.learner.step()
                pipe.send(counted.found)
            else:
                pipe.send(_measured_step(trainer))


def _measured_step(trainer: Any) -> dict[str, Any]:
    clock = Clock()
    metrics = trainer.learner.step().metrics
    return {
        **clock.read(),
        "parts": {part: metrics.get(f"time/{part}_s", 0.0) for part in PARTS},
        "idle_s": metrics["time/idle_s"],
        "peak_bytes": peak_rss_bytes(),
        "reward": metrics["reward"],
        "grad_norm": metrics["grad_norm"],
    }


class Collectives(TorchDispatchMode):
    """Counts what is told to other processes while it is entered: {kind: {calls, bytes}}.

    Bytes are those of the whole tensor that a call reduces, gathers or scatters: the same number
    for every way in which the processes may send it around.
    """

    def __init__(self) -> None:
        """Begin with nothing told."""
        super().__init__()
        self.found: dict[str, dict[str, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count a call, and have it done."""
        result = func(*args, **(kwargs or {}))
        name = func.name().partition("::")[2].partition(".")[0]
        if func.namespace in _NAMESPACES and name not in _NO_MESSAGE:
            counted = self.found.setdefault(name.strip("_"), {"calls": 0, "bytes": 0})
            counted["calls"] += 1
            counted["bytes"] += max(
                sum(t.nbytes for t in _tensors(each)) for each in (*args, result)
            )
        return result


def _tensors(nest: Any) -> Iterable[Tensor]:
    """The tensors of a nest of lists and tuples."""
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, list | tuple):
        for each in nest:
            yield from _tensors(each)
