"""One more token for every row of a batch: run once, captured once, and from then on replayed.

A token of a small model is hundreds of kernels, and a GPU waits for Python to launch them. A CUDA
graph launches all of them at once, but at the shapes and addresses of its capture: nothing that
Python decided then is decided again. So whatever changes from token to token lies in tensors that
stay where they are: the tokens, their positions, and the front at which keys and values are
written. The capture itself is handed in; everything else is the same on a machine without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]  # tokens [b], positions [b] -> logits [b, V]
Run = Callable[[], Tensor]
Capture = Callable[[Run], Run]  # what replays a step, into the same memory each time


class Front:
    """Where the next token of every row is written, known to the host and to the device."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        """Begin before the first of `capacity` tokens."""
        self.capacity = capacity
        self.length = 0  # tokens written of each row
        self.at = torch.zeros(1, dtype=torch.int64, device=device)  # the place of the next one
        # float [1, 1, 1, capacity], added to scores: 0 on what is written and on the next one
        self.hidden = torch.full((1, 1, 1, capacity), -torch.inf, device=device)

    def show(self) -> None:
        """Tell the device where the next token goes; nobody waits for it."""
        if self.length == self.capacity:
            raise IndexError(f"a cache made for {self.capacity} drawn tokens is full")
        self.at.fill_(self.length)
        self.hidden[..., self.length].zero_()


class Replay:
    """The step of a batch, captured once for as long as its rows stay."""

    def __init__(self, capture: Capture, front: Front) -> None:
        """Begin with nothing captured.

        Args:
            capture: makes of a step what replays it, for example `cuda_graph`.
            front: moves on by one with every step.
        """
        self._capture = capture
        self._front = front
        self._inputs: tuple[Tensor, Tensor] | None = None  # int64 [b], tokens and positions
        self._again: Run | None = None

    def forget(self) -> None:
        """Drop what was captured, before other rows or other memory take the place of these."""
        self._inputs, self._again = None, None

    def __call__(self, step: Step, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [b, V] of a step on these inputs, both [b]; they are good until the next one.

        Args:
            step: always the same; it writes at the front.
            tokens: int64 [b].
            positions: int64 [b].

        Raises:
            IndexError: the front is at the end of its room.
            RuntimeError: the step cannot be captured.
        """
        self._front.show()
        logits = self._logits(step, tokens, positions)
        self._front.length += 1
        return logits

    def _logits(self, step: Step, tokens: Tensor, positions: Tensor) -> Tensor:
        if self._inputs is None:
            # Not captured yet: kernels load, and autocast casts weights, when they are first used.
            self._inputs = tokens.clone(), positions.clone()
            return step(*self._inputs)
        for held, given in zip(self._inputs, (tokens, positions), strict=True):
            held.copy_(given)
        if self._again is None:
            self._again = self._capture(partial(step, *self._inputs))
        return self._again()


def cuda_graph(step: Run) -> Run:
    """Capture a step as a CUDA graph. It does not run then; what is returned runs it.

    No run on a GPU has confirmed this function yet; `rl4lm.preflight.probe` compares what it
    replays with the model's own forward pass before it is relied on.
    """
    graph = torch.cuda.CUDAGraph()
    pool = _keeper(torch.cuda.current_device()).pool()
    # A capture that fails leaves its own stream current; the outer context gives ours back. Only
    # this thread is watched: rewards may be at work on the device in others.
    with (
        torch.cuda.stream(torch.cuda.current_stream()),
        torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
    ):
        logits = step()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


@cache
def _keeper(device: int) -> torch.cuda.CUDAGraph:
    """A graph in whose memory pool all others of a device are captured, one after another.

    Graphs come and go with batches, and a pool may not be used again once its last one has gone.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        torch.zeros(1, device=f"cuda:{device}")  # a graph of nothing at all is warned of
    return graph
