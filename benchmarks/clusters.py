"""What `costs.py` is asked about: devices, the work of a step, who holds what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from shapes import LORA_RANK, Shape
from torch import Tensor

from rl4lm.processes.dealing import deal

MASTER, HALF = 4, 2  # bytes of a float32 and of a bfloat16 number


@dataclass(frozen=True)
class Device:
    """Rates of a process's accelerator and of what lies between two of them."""

    flops: float  # of matrix products, in a second, that training reaches
    memory_rate: float  # bytes/s that decoding reaches
    memory: float  # bytes
    link: float  # bytes/s and direction within a node, reached
    node_link: float  # the same of a whole node to others
    per_node: int  # devices
    hop: float  # seconds before the first byte of a message arrives
    token_s: float  # of the host, for each token of sampling

    def rate(self, processes: int) -> float:
        """Bytes/s at which a ring over so many processes goes round."""
        return self.link if processes <= self.per_node else min(self.link, self.node_link)


@dataclass(frozen=True)
class Work:
    """The completions of a step."""

    prompts: int
    samples: int
    prompt_tokens: int
    mean: float  # tokens of a completion before it is cut off
    longest: int
    spread: float  # of the logarithm of a length: as much between prompts as within one

    @property
    def completions(self) -> int:
        """Of a step."""
        return self.prompts * self.samples


@dataclass(frozen=True)
class Mode:
    """Who holds what, and what is trained."""

    name: str
    sharded: bool = False
    adapters: bool = False

    def trained(self, shape: Shape) -> float:
        """A: weights that are trained."""
        if not self.adapters:
            return weights(shape)
        h, kv, i = shape.hidden, shape.kv_width, shape.intermediate
        ends = 2 * (h + h) + 2 * (h + kv) + 3 * (h + i)  # inputs and outputs of a layer's matrices
        return float(shape.layers * LORA_RANK * ends)

    @property
    def bytes_per_token(self) -> int:
        """Of a weight, to be moved for a token of sampling."""
        # Autocast keeps the casts of trained weights, and makes those of frozen ones at every use:
        # float32 read, bfloat16 written and read.
        return MASTER + 2 * HALF if self.adapters else HALF


MODES = (Mode("full"), Mode("LoRA", adapters=True), Mode("FSDP2", sharded=True))


def weights(shape: Shape) -> float:
    """N, the embedding included."""
    heads = 1 if shape.tied else 2
    return float(shape.layers * shape.layer_parameters + heads * shape.head_parameters)


@lru_cache
def dealt_lengths(work: Work, processes: int) -> Tensor:
    """Lengths of completions as the processes have them: float64 [W, P / W, G]."""
    generator = torch.Generator().manual_seed(0)
    sigma = work.spread / math.sqrt(2)
    of_prompt = torch.randn(work.prompts, 1, generator=generator, dtype=torch.float64)

    def drawn() -> Tensor:
        shape = work.prompts, work.samples
        within = torch.randn(shape, generator=generator, dtype=torch.float64)
        logs = math.log(work.mean) - work.spread**2 / 2 + sigma * (of_prompt + within)
        return logs.exp().clamp(1, work.longest)

    expected, lengths = drawn().sum(dim=1).tolist(), drawn()
    return torch.stack([lengths[hand] for hand in deal(expected, processes)])
