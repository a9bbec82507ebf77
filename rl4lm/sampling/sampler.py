"""The seam between training and whatever generates: a `Draw` goes in, a `Rollout` comes out.

`PolicySampler` is this process's own loop over the policy as it is. `rl4lm.sampling.engine` asks a
server, whose weights are its own. Both say of every token what its log-prob was in the distribution
that really drew it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rl4lm.model.policy import Policy
from rl4lm.model.preparing import sampling_mode
from rl4lm.randomness import Stream
from rl4lm.sampling.drawing import Choose, InverseCdf, greedy, keep_most_likely
from rl4lm.sampling.loop import EndRule, Finished, generate
from rl4lm.types import Rollout


@dataclass(frozen=True)
class Chance:
    """What completions are drawn by; the same chance gives the same completions."""

    seed: int  # of the run
    stream: Stream
    step: int
    places: Sequence[int]  # of each prompt in the step's global list, P of them
    temperature: float  # > 0, divides the logits
    first_sample: int = 0  # index of the first completion of each prompt
    top_p: float = 1.0  # nucleus kept; 1 = all, and so always in training
    top_k: int = 0  # most likely tokens kept; 0 = all, and so always in training


@dataclass(frozen=True)
class Draw:
    """Which completions are wanted."""

    prompts: Sequence[Sequence[int]]  # P lists of ids, none empty
    num_generations: int  # G, completions of each prompt
    max_completion_length: int  # tokens after which a completion is cut off
    ends: EndRule
    chance: Chance | None  # None = greedy: the most likely token each time


class Sampler(Protocol):
    """Whatever completes prompts."""

    def __call__(self, draw: Draw, finished: Finished | None = None) -> Rollout:
        """Complete the prompts.

        Args:
            draw: which completions are wanted.
            finished: may be told of completions as they end, each at most once; one that is cut
                off never.

        Returns:
            B = P·G completions on the CPU, the end token included. `sampling_logprobs` are those
            of the distribution that drew them: softmax(logits / temperature) over the full
            vocabulary; of a greedy draw, those at temperature 1.
        """


class PolicySampler:
    """Draws from the policy as it is, in this process."""

    def __init__(self, policy: Policy) -> None:
        """Take what samples."""
        self._policy = policy

    def __call__(self, draw: Draw, finished: Finished | None = None) -> Rollout:
        """See `Sampler`; completions are told of as they end."""
        with sampling_mode(self._policy):
            return generate(
                self._policy,
                draw.prompts,
                _rule(draw),
                num_generations=draw.num_generations,
                max_completion_length=draw.max_completion_length,
                ends=draw.ends,
                finished=finished,
            )


def _rule(draw: Draw) -> Choose:
    """What picks the next token."""
    chance = draw.chance
    if chance is None:
        return greedy
    if len(chance.places) != len(draw.prompts):
        raise ValueError(
            f"places {list(chance.places)} must be one for each of the {len(draw.prompts)} prompts"
        )
    restricted = chance.top_k or chance.top_p < 1
    return InverseCdf(
        seed=chance.seed,
        stream=chance.stream,
        step=chance.step,
        places=chance.places,
        num_generations=draw.num_generations,
        temperature=chance.temperature,
        first_sample=chance.first_sample,
        restrict=keep_most_likely(chance.top_k, chance.top_p) if restricted else None,
    )
