"""The processes of a run: who am I, and the few things that they tell one another.

Built on accelerate for start-up, devices and collectives. The gradient is reduced here and
nowhere else: every backward is local, then one explicit sum over the processes. The loss has been
divided by the completions of the whole step already, so no world size appears in any formula, and
processes may differ in micro-batches or have none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rl4lm.errors import ConfigError
from rl4lm.processes import peers
from rl4lm.processes.allocator import keep_freed_memory
from rl4lm.processes.sharding import is_dealt, refuse_engines, sharding_asked_for

T = TypeVar("T")

_BUCKET_BYTES = 2**25  # what is copied beside the gradients, at most
# The backend's own limit must not be the one that strikes: it knows no cause.
_SLACK_S = 300.0
_NO_LIMIT_S = 20 * 86400.0  # in milliseconds it has to fit 31 bits


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype that fit a bucket together, in order; a larger one alone."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in sorted(tensors, key=lambda t: str(t.dtype)):
        fits = size + tensor.nbytes <= _BUCKET_BYTES
        if bucket and not (fits and tensor.dtype == bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


class World:
    """This process among the processes of a run."""

    def __init__(self, ddp_timeout: float | None = 1800.0) -> None:
        """Join the processes that `accelerate launch` (or torchrun) started; alone otherwise.

        Args:
            ddp_timeout: seconds that a process waits for another one; None = as long as it takes.

        Raises:
            PeerLostError: another process died before all had come up.
        """
        from accelerate import Accelerator, InitProcessGroupKwargs

        refuse_engines()
        keep_freed_memory()
        self._peers: peers.Peers | None = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ:
            self._peers = peers.join(int(os.environ["RANK"]), ddp_timeout)
        limit = _NO_LIMIT_S if ddp_timeout is None else ddp_timeout + _SLACK_S
        handler = InitProcessGroupKwargs(timeout=timedelta(seconds=limit))
        # Without CUDA the CPU is used: Apple's GPUs have no float64, which the estimator needs.
        cpu = not torch.cuda.is_available()
        accelerator = self._together(lambda: Accelerator(cpu=cpu, kwargs_handlers=[handler]))
        self.device: torch.device = accelerator.device
        self.rank: int = accelerator.process_index
        self.size: int = accelerator.num_processes
        # How parameters are dealt over the processes, None where each has all of them.
        self.sharding = sharding_asked_for() if self.size > 1 else None
        self._accelerator = accelerator
        if self.size > 1:  # MPI tells accelerate alone
            self._peers = self._peers or peers.join(self.rank, ddp_timeout)
            self._peers.meet(self.gather_lists)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and screens."""
        return self.rank == 0

    def use_threads(self, threads: int | None) -> None:
        """Deal CPU threads to the processes of this machine; None leaves torch's own choice."""
        if threads is not None:
            neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            torch.set_num_threads(max(1, threads // neighbours))

    def check_divides(self, count: int, what: str) -> None:
        """Insist that `count` things can be dealt evenly to the processes.

        Raises:
            ConfigError: the processes do not divide them.
        """
        if count % self.size:
            below, above = count - count % self.size, count + self.size - count % self.size
            choices = f"{below} or {above}" if below else str(above)
            raise ConfigError(
                f"{what}={count} cannot be dealt to {self.size} processes; "
                f"make it a multiple of {self.size}, such as {choices}"
            )

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate equal-shaped tensors of all processes along the first dimension."""
        if self.size == 1:
            return tensor
        here = tensor.to(self.device)
        return self._together(lambda: self._accelerator.gather(here)).to(tensor.device)

    def most(self, count: int) -> int:
        """The largest of the processes' counts."""
        return int(self.gather(torch.tensor([count])).max())

    def gather_lists(self, items: Sequence[Any]) -> list[Any]:
        """Concatenate lists of plain values of all processes, in the order of the processes."""
        if self.size == 1:
            return list(items)
        from accelerate.utils import gather_object

        return self._together(lambda: list(gather_object(list(items))))

    def collect(self, items: Sequence[Any]) -> list[Any]:
        """`gather_lists` on the main process only; what others get is empty."""
        if self.size == 1:
            return list(items)
        lists: list[Any] | None = [None] * self.size if self.is_main else None
        self._together(partial(torch.distributed.gather_object, list(items), lists))
        return [item for of_process in lists or [] for item in of_process]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes; afterwards all hold equal bits."""
        self.sum([p.grad for p in parameters if p.grad is not None])

    def sum(self, tensors: list[Tensor]) -> list[Tensor]:
        """Replace each tensor, in place, by its sum over the processes; returns them.

        Small ones travel together in buckets. Those that are dealt over the processes are left as
        they are: the way back through the model has summed them.
        """
        if self.size > 1:
            for bucket in _buckets([t for t in tensors if not is_dealt(t)]):
                self._sum_bucket(bucket)
        return tensors

    def _sum_bucket(self, tensors: list[Tensor]) -> None:
        if len(tensors) == 1 and tensors[0].is_contiguous():
            self._together(partial(torch.distributed.all_reduce, tensors[0]))
            return
        flat = torch.cat([t.flatten() for t in tensors])
        self._together(partial(torch.distributed.all_reduce, flat))
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors of every process with those of the main one."""
        if self.size > 1:
            for tensor in tensors:
                self._together(partial(torch.distributed.broadcast, tensor, src=0))

    def wait(self) -> None:
        """Return when every process has come here."""
        self._together(self._accelerator.wait_for_everyone)

    def advise(self, advice: Callable[[], str]) -> None:
        """Say what can be done, in a line, where another process fails."""
        if self._peers is not None:
            self._peers.advice = advice

    def close(self) -> None:
        """Leave the process group, so that the launcher sees a clean end."""
        if self.size > 1:
            peers.part()
            self._accelerator.end_training()

    def _together(self, act: Callable[[], T]) -> T:
        """Do something that all processes do; every word between them passes here.

        Raises:
            PeerLostError: another process is to blame that it broke off.
        """
        return act() if self._peers is None else self._peers.together(act)
