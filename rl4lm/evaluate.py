"""Evaluation: greedy completions of fixed prompts, scored by the rewards and by exact match.

Its own random stream, its own decoding, the same policy and rewards as training. Returns numbers,
prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from rl4lm.data import PromptData
from rl4lm.policy import Policy
from rl4lm.reward_lookup import NamedReward
from rl4lm.sampler import Draw, PolicySampler, Sampler
from rl4lm.sampling import EndRule
from rl4lm.scoring import RewardContext, Scorer
from rl4lm.text import TextCodec
from rl4lm.types import Example, Rollout
from rl4lm.world import World

_BATCH_PROMPTS = 256  # prompts decoded at once
_GROUP_COLUMN = "family"  # accuracy is also given per value of this column


def evaluate(
    policy: Policy,
    data: PromptData,
    scorer: Scorer,
    accuracy: NamedReward | None,
    *,
    samples: int,
    max_completion_length: int,
    ends: EndRule,
    context: RewardContext,
    world: World,
) -> dict[str, float]:
    """Complete the first prompts of a split greedily and say how good the completions are.

    Args:
        policy: what is evaluated.
        data: the prompts; the first `samples` of them are used, dealt over the processes.
        scorer: the rewards of training.
        accuracy: a reward that is 1 for a right answer, or None.
        samples: how many prompts.
        max_completion_length: tokens.
        ends: what ends a completion.
        context: where training stands, for rewards that ask.
        world: the processes.

    Returns:
        ``reward``, ``rewards/<name>/mean``, ``ended`` (share), ``mean_length`` (tokens),
        ``samples``; with `accuracy` also ``accuracy``, its standard error ``accuracy_stderr``,
        and ``accuracy/<family>`` where the rows have the column ``family``.
    """
    with policy.shards.gathered():  # once: the processes may differ in batches
        return evaluate_completions(
            PolicySampler(policy),
            policy.codec,
            data,
            scorer,
            accuracy,
            samples=samples,
            max_completion_length=max_completion_length,
            ends=ends,
            context=context,
            world=world,
        )


def evaluate_completions(
    sampler: Sampler,
    codec: TextCodec,
    data: PromptData,
    scorer: Scorer,
    accuracy: NamedReward | None,
    *,
    samples: int,
    max_completion_length: int,
    ends: EndRule,
    context: RewardContext,
    world: World,
) -> dict[str, float]:
    """`evaluate`, wherever the completions come from.

    Args:
        sampler: completes the prompts, greedily.
        codec: between text and the sampler's token ids.
        data, scorer, accuracy, samples, max_completion_length, ends, context, world: as there.
    """
    wanted = range(min(samples, len(data)))[world.rank :: world.size]
    records: list[dict[str, Any]] = []
    for indices in _batches(wanted):
        examples = data.examples(indices)
        draw = Draw(
            prompts=codec.encode([example.prompt for example in examples]),
            num_generations=1,
            max_completion_length=max_completion_length,
            ends=ends,
            chance=None,
        )
        records += _records(codec, examples, sampler(draw), scorer, accuracy, context)
    return summarize(world.gather_lists(records), scorer.names)


def _batches(indices: Sequence[int]) -> Iterator[Sequence[int]]:
    return (indices[k : k + _BATCH_PROMPTS] for k in range(0, len(indices), _BATCH_PROMPTS))


def _records(
    codec: TextCodec,
    examples: Sequence[Example],
    rollout: Rollout,
    scorer: Scorer,
    accuracy: NamedReward | None,
    context: RewardContext,
) -> list[dict[str, Any]]:
    """One plain record per completion, so that processes can exchange them."""
    ids = rollout.completion_lists()
    texts = codec.decode(ids)
    scores = scorer(examples, texts, ids, context)
    right = torch.full((len(examples), 1), math.nan, dtype=torch.float64)
    if accuracy is not None and accuracy in scorer.rewards:
        right = scores.parts[accuracy.name]
    elif accuracy is not None:
        judge = scorer.beside(accuracy)
        right = judge(examples, texts, ids, context).parts[accuracy.name]
    return [
        {
            "group": example.columns.get(_GROUP_COLUMN),
            "reward": float(scores.rewards[i, 0]) if scores.valid[i, 0] else math.nan,
            "parts": {name: float(values[i, 0]) for name, values in scores.parts.items()},
            "accuracy": float(right[i, 0]),
            "ended": float(rollout.ended[i]),
            "length": len(ids[i]),
        }
        for i, example in enumerate(examples)
    ]


def summarize(records: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """Means over records; what applies to no record is left out."""
    result = {"samples": float(len(records))}
    result["reward"] = _mean([r["reward"] for r in records])
    for name in names:
        result[f"rewards/{name}/mean"] = _mean([r["parts"][name] for r in records])
    right = [r["accuracy"] for r in records if not math.isnan(r["accuracy"])]
    if right:
        share = _mean(right)
        result["accuracy"] = share
        result["accuracy_stderr"] = math.sqrt(max(share * (1 - share), 0.0) / len(right))
        for group in sorted({str(r["group"]) for r in records if r["group"] is not None}):
            members = [r["accuracy"] for r in records if str(r["group"]) == group]
            result[f"accuracy/{group}"] = _mean(members)
    result["ended"] = _mean([r["ended"] for r in records])
    result["mean_length"] = _mean([r["length"] for r in records])
    return result


def _mean(values: Sequence[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan
