"""The values that flow between the rooms, and the legend of dimension letters.

Every shape comment in this package uses these letters:

    P  prompts in a step            Q  prompt length        V  vocabulary
    G  samples (generations) of a prompt                    H  hidden size
    B  completions, B = P·G         T  completion length

Row i of a ``[B, …]`` tensor answers prompt ``i // G``. All dataclasses are frozen: a stage returns
a new value and nothing is filled in later. Masks are made with the tokens and carried; they are
never recomputed from ids, because ``pad == eos`` is common.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Message = Mapping[str, str]  # {"role": ..., "content": ...}
Completion = str | Sequence[Message]  # text, as it is sampled, or messages, as in a file


@dataclass(frozen=True)
class Example:
    """One row of the data: a prompt, and the columns that its rewards read."""

    prompt_id: str  # stable within the data set
    prompt: str | Sequence[Message]  # text, or chat messages before the chat template
    columns: Mapping[str, Any]  # every other column of the row


@dataclass(frozen=True)
class Rollout:
    """B completions of P prompts, as token ids; row i answers prompt ``i // G``."""

    prompt_ids: Tensor  # int64 [P, Q], left-padded
    prompt_mask: Tensor  # bool  [P, Q], True on real tokens
    completion_ids: Tensor  # int64 [B, T], right-padded
    completion_mask: Tensor  # bool  [B, T], True on every sampled token, the end token included
    sampling_logprobs: Tensor  # float [B, T], log π at sampling time, 0 outside the mask;
    #                            nan where the completion was handed in and not drawn here
    ended: Tensor  # bool  [B], False where the length limit cut the completion off

    def __post_init__(self) -> None:
        """Check ranks and sizes against one another."""
        if self.prompt_ids.shape != self.prompt_mask.shape or self.prompt_ids.dim() != 2:
            raise ValueError(
                f"prompt_ids {tuple(self.prompt_ids.shape)} and prompt_mask "
                f"{tuple(self.prompt_mask.shape)} must both be [P, Q]"
            )
        for name in ("completion_mask", "sampling_logprobs"):
            if getattr(self, name).shape != self.completion_ids.shape:
                raise ValueError(
                    f"{name} {tuple(getattr(self, name).shape)} must have the shape [B, T] of "
                    f"completion_ids {tuple(self.completion_ids.shape)}"
                )
        if self.ended.shape != self.completion_ids.shape[:1]:
            raise ValueError(
                f"ended {tuple(self.ended.shape)} must be [B] with B={len(self.completion_ids)}"
            )
        if len(self.prompt_ids) == 0 or len(self.completion_ids) % len(self.prompt_ids):
            raise ValueError(
                f"{len(self.completion_ids)} completions cannot be dealt evenly to "
                f"{len(self.prompt_ids)} prompts"
            )

    @property
    def num_generations(self) -> int:
        """G, the number of completions of each prompt."""
        return len(self.completion_ids) // len(self.prompt_ids)

    @property
    def lengths(self) -> Tensor:
        """Sampled tokens of each completion, int64 [B], the end token included."""
        return self.completion_mask.sum(dim=1)

    @property
    def prompt_lengths(self) -> Tensor:
        """Real tokens of each prompt, int64 [P]."""
        return self.prompt_mask.sum(dim=1)

    def completion_lists(self) -> list[list[int]]:
        """The sampled ids of each completion without padding, B lists."""
        ids = self.completion_ids.tolist()
        return [row[:length] for row, length in zip(ids, self.lengths.tolist(), strict=True)]

    def prompt_lists(self) -> list[list[int]]:
        """The ids of each prompt without padding, P lists."""
        ids = self.prompt_ids.tolist()
        return [
            row[len(row) - length :]
            for row, length in zip(ids, self.prompt_lengths.tolist(), strict=True)
        ]

    @classmethod
    def from_lists(
        cls,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        num_generations: int = 1,
        ended: Sequence[bool] | None = None,
    ) -> Rollout:
        """Build a rollout from lists of ids, one list per completion in both arguments.

        Args:
            prompt_ids: B lists; the ``num_generations`` rows of a prompt stand side by side and
                must be equal.
            completion_ids: B lists of sampled ids, the end token included where there is one.
            num_generations: G, completions per prompt.
            ended: B flags, False where the completion was cut off; ``None`` means that all ended.

        Returns:
            A rollout whose ``sampling_logprobs`` are nan inside the mask: nobody measured them.

        Raises:
            ValueError: unequal lengths, an empty prompt or completion, B not a multiple of G, or
                rows of one prompt that differ.
        """
        rows = len(completion_ids)
        flags = [True] * rows if ended is None else list(ended)
        if not rows == len(prompt_ids) == len(flags):
            raise ValueError(
                f"prompt_ids ({len(prompt_ids)}), completion_ids ({rows}) and ended "
                f"({len(flags)}) must have one entry per completion"
            )
        if num_generations < 1 or rows == 0 or rows % num_generations:
            raise ValueError(
                f"{rows} completions are not a positive multiple of "
                f"num_generations={num_generations}"
            )
        prompts = _prompts_of(prompt_ids, completion_ids, num_generations)
        padded_prompts, prompt_mask = pad_left(prompts)
        padded_completions, completion_mask = pad_right(completion_ids)
        unknown = torch.full(completion_mask.shape, float("nan"))
        return cls(
            prompt_ids=padded_prompts,
            prompt_mask=prompt_mask,
            completion_ids=padded_completions,
            completion_mask=completion_mask,
            sampling_logprobs=unknown.masked_fill(~completion_mask, 0.0),
            ended=torch.tensor(flags, dtype=torch.bool),
        )


def _prompts_of(
    prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], group: int
) -> list[list[int]]:
    """The P prompts of B rows in which each stands G times; refuses rows that do not answer one."""
    prompts = [list(prompt) for prompt in prompt_ids[::group]]
    for i, prompt in enumerate(prompt_ids):
        if list(prompt) != prompts[i // group]:
            raise ValueError(
                f"row {i} has another prompt than row {i - i % group}; the "
                f"num_generations={group} rows of a prompt must stand side by side"
            )
        if not prompt or not completion_ids[i]:
            raise ValueError(f"row {i} has an empty prompt or an empty completion")
    return prompts


def pad_right(rows: Sequence[Sequence[int]], fill: int = 0) -> tuple[Tensor, Tensor]:
    """Pad lists of ids on the right: ids int64 [B, L] and mask bool [B, L], True on real ids."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.int64)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width) < lengths[:, None]


def pad_left(rows: Sequence[Sequence[int]], fill: int = 0) -> tuple[Tensor, Tensor]:
    """Pad lists of ids on the left: ids int64 [P, Q] and mask bool [P, Q], True on real ids."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*[fill] * (width - len(row)), *row] for row in rows], dtype=torch.int64)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width) >= width - lengths[:, None]


@dataclass(frozen=True)
class Scores:
    """What the rewards said about the B completions of one process, in the order of the rows."""

    rewards: Tensor  # float64 [P, G], the weighted sum over rewards and tokens; 0 where not valid
    valid: Tensor  # bool [P, G], False where every reward of the row is None
    parts: Mapping[str, Tensor]  # reward name -> float64 [P, G], unweighted, nan where None
    token_rewards: Tensor | None = None  # float64 [B, T], `rewards` dealt to the tokens that earned
    #                      it; None where no reward is given per token
    extra: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # log_extra: name -> B values
    metrics: Mapping[str, float] = field(default_factory=dict)  # log_metric: name -> value
    lost: Collection[int] = ()  # of the B rows, those at which a reward hung or crashed


@dataclass(frozen=True)
class Drawing:
    """What it took to gather an experience, over all processes."""

    completions: int  # drawn, those of dropped groups included
    tokens: int  # of these completions
    metrics: Mapping[str, float | None] = field(
        default_factory=dict
    )  # of what was drawn and chosen


@dataclass(frozen=True)
class Experience:
    """What optimizer steps learn from: completions of this process with their advantages.

    Everything here is a constant of those steps.
    """

    examples: Sequence[Example]  # P of them
    rollout: Rollout
    texts: Sequence[str]  # B of them
    scores: Scores
    measures: Tensor  # float64 [P, G, 6 + K] of the whole step, see `rl4lm.metrics.pack`
    returns: Tensor  # float64 [B], or [B, T] where tokens are paid one by one
    advantages: Tensor  # like returns, less the baseline, times w/s of `shaping`; 0 where no
    #                     reward applied
    weights: Tensor  # float64 [B], w of `shaping`: what each completion counts in the loss
    policy_logprobs: Tensor  # float [B, T], log π of the policy that sampled; where there is a KL
    #                          by the same kind of pass as the reference's, else as sampled
    reference_logprobs: Tensor  # float [B, T], log π_ref; [B, 0] where there is no KL
    num_completions: int  # N, of the whole step over all processes
    places: Sequence[int]  # P of them: where this process's prompts stand in the step
    keys: Sequence[int]  # P of them: the rows of the data that they come from
    drawing: Drawing


@dataclass(frozen=True)
class TrainState:
    """What training knows besides weights, optimizer and schedule; picklable plain values."""

    step: int = 0  # optimizer steps finished, skipped ones included
    samples: int = 0  # completions drawn for training, over all processes
    tokens: int = 0  # completion tokens drawn for training, over all processes
    skipped_steps: int = 0  # without an update: no advantage, or a gradient that is not finite
    baseline_state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepStats:
    """What one step produced: the numbers for the log and the rows for the completions file."""

    step: int
    metrics: Mapping[str, float | None]  # None where undefined
    completions: Sequence[Mapping[str, Any]]  # rows of this process, see docs/architecture.md
    places: Sequence[int]  # where the prompt of each row stands in the step's list
