"""Evaluation: completions of fixed prompts, greedy and by chance, scored by rewards and metrics.

Its own random stream, its own decoding, the same policy and rewards as training. Returns numbers,
prints nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rl4lm.data.examples import PromptData
from rl4lm.evaluation.outcomes import ACCURACY, Record, in_order, outcomes, summarize
from rl4lm.metrics import plain_column
from rl4lm.model.policy import Policy
from rl4lm.processes.world import World
from rl4lm.randomness import Stream
from rl4lm.rewarding.lookup import NamedReward
from rl4lm.sampling.loop import EndRule
from rl4lm.sampling.sampler import Chance, Draw, PolicySampler, Sampler
from rl4lm.scoring import RewardContext, Scorer
from rl4lm.text import TextCodec
from rl4lm.types import Example, Rollout, Scores

_BATCH = 256  # completions decoded at once


@dataclass(frozen=True)
class Exam:
    """A data set to evaluate on, and who judges the completions."""

    label: str  # what its numbers are filed under; "" for the first one
    data: PromptData
    scorer: Scorer  # the rewards of training
    accuracy: NamedReward | None  # 1 for a right answer; None where the rows have no answers
    metrics: Sequence[NamedReward] = ()  # further ones, which no training sees


@dataclass(frozen=True)
class Chances:
    """How completions are drawn besides the greedy ones."""

    num_generations: int  # n, of each prompt
    temperature: float  # > 0, divides the logits
    top_p: float = 1.0  # nucleus kept; 1 = all
    top_k: int = 0  # most likely tokens kept; 0 = all


@dataclass(frozen=True)
class Evaluation:
    """What is done with every data set."""

    samples: int  # prompts, the first ones of the data
    max_completion_length: int  # tokens
    ends: EndRule
    chances: Chances | None = None  # None = greedy completions only
    pass_at_k: Sequence[int] = ()  # each at most num_generations
    pass_threshold: float = 1.0  # a completion with this score, or more, passes
    by: Sequence[str] = ()  # columns that the numbers are given by, where the data have them
    confidence: float = 0.95  # of the intervals
    seed: int = 0  # of completions by chance, and of resamples


@dataclass(frozen=True)
class Evaluated:
    """What came of it."""

    metrics: dict[str, float]  # see `rl4lm.evaluation.outcomes.summarize`
    outcomes: dict[str, list[float]]  # a value for each prompt, nan where it does not apply
    prompts: str  # a hash of the prompts; outcomes of the same prompts can be compared
    rows: list[dict[str, Any]]  # a row for each completion, as files have it


def evaluate(
    policy: Policy,
    exams: Sequence[Exam],
    what: Evaluation,
    context: RewardContext,
    world: World,
) -> Evaluated:
    """Complete the first prompts of data sets and say how good the completions are.

    Args:
        policy: what is evaluated.
        exams: the data sets; the numbers of the first go by their own names, those of another by
            ``<label>/<name>``.
        what: which completions, and what is made of them.
        context: where training stands, for rewards that ask.
        world: the processes, which the prompts are dealt over.
    """
    with policy.shards.gathered():  # once: the processes may differ in batches
        return evaluate_completions(
            PolicySampler(policy), policy.codec, exams, what, context, world
        )


def evaluate_completions(
    sampler: Sampler,
    codec: TextCodec,
    exams: Sequence[Exam],
    what: Evaluation,
    context: RewardContext,
    world: World,
) -> Evaluated:
    """`evaluate`, wherever the completions come from.

    Args:
        sampler: completes the prompts.
        codec: between text and the sampler's token ids.
        exams, what, context, world: as there.
    """
    parts = [_examined(sampler, codec, exam, what, context, world) for exam in exams]
    named = [
        (f"{exam.label}/" if exam.label else "", part)
        for exam, part in zip(exams, parts, strict=True)
    ]
    return Evaluated(
        metrics={prefix + name: v for prefix, p in named for name, v in p.metrics.items()},
        outcomes={prefix + name: v for prefix, p in named for name, v in p.outcomes.items()},
        prompts="-".join(part.prompts for part in parts),
        rows=[row for part in parts for row in part.rows],
    )


def _examined(
    sampler: Sampler,
    codec: TextCodec,
    exam: Exam,
    what: Evaluation,
    context: RewardContext,
    world: World,
) -> Evaluated:
    """The evaluation on one data set."""
    examples = _prompts(exam, what)
    mine: list[Record] = []
    for batch in _batches(range(len(examples))[world.rank :: world.size], what.chances):
        asked = [examples[place] for place in batch.places]
        draw = _draw(batch, codec.encode([each.prompt for each in asked]), what)
        mine += _records(codec, exam, batch, asked, sampler(draw), context)
    records = in_order(world.gather_lists(mine))
    values = outcomes(records, len(examples), what.pass_at_k, what.pass_threshold)
    columns = {
        ("" if len(what.by) == 1 else f"{name}="): [example.columns[name] for example in examples]
        for name in what.by
        if name in exam.data.columns
    }
    return Evaluated(
        metrics=summarize(records, values, columns, what.confidence, what.seed),
        outcomes=values,
        prompts=_hash(examples),
        rows=[_row(exam.label, examples[record["place"]], record) for record in records],
    )


def _prompts(exam: Exam, what: Evaluation) -> list[Example]:
    return exam.data.examples(range(min(what.samples, len(exam.data))))


def prompts_of(exams: Sequence[Exam], what: Evaluation) -> str:
    """`Evaluated.prompts` of an evaluation that is yet to be made."""
    return "-".join(_hash(_prompts(exam, what)) for exam in exams)


@dataclass(frozen=True)
class _Batch:
    """Completions that are drawn at once."""

    places: Sequence[int]  # of the prompts
    first: int  # index of the first sample of each
    count: int  # samples of each
    chances: Chances | None


def _batches(places: Sequence[int], chances: Chances | None) -> Iterator[_Batch]:
    """Greedy completions, then those by chance; at most `_BATCH` of them at once."""
    for k in range(0, len(places), _BATCH):
        yield _Batch(places[k : k + _BATCH], 0, 1, None)
    if chances is None:
        return
    size = max(1, _BATCH // chances.num_generations)
    for k in range(0, len(places), size):
        for first in range(0, chances.num_generations, _BATCH):
            count = min(_BATCH, chances.num_generations - first)
            yield _Batch(places[k : k + size], first, count, chances)


def _draw(batch: _Batch, prompts: Sequence[Sequence[int]], what: Evaluation) -> Draw:
    """What the sampler is asked for; the numbers are the same in every evaluation of a prompt."""
    chances = batch.chances
    chance = None
    if chances is not None:
        chance = Chance(
            seed=what.seed,
            stream=Stream.EVALUATION,
            step=0,
            places=batch.places,
            temperature=chances.temperature,
            first_sample=batch.first,
            top_p=chances.top_p,
            top_k=chances.top_k,
        )
    return Draw(
        prompts=prompts,
        num_generations=batch.count,
        max_completion_length=what.max_completion_length,
        ends=what.ends,
        chance=chance,
    )


def _records(
    codec: TextCodec,
    exam: Exam,
    batch: _Batch,
    examples: Sequence[Example],
    rollout: Rollout,
    context: RewardContext,
) -> list[Record]:
    """One plain record per completion, so that processes can exchange them."""
    ids = rollout.completion_lists()
    texts = codec.decode(ids)
    scores = exam.scorer(examples, texts, ids, context)
    judged = {name: scores.parts[name] for name in exam.scorer.names}
    asked = [(f"metrics/{metric.name}", metric) for metric in exam.metrics]
    asked += [] if exam.accuracy is None else [(ACCURACY, exam.accuracy)]
    measured = {n: _measured(exam, m, scores, examples, texts, ids, context) for n, m in asked}
    rewards = scores.rewards.where(scores.valid, math.nan)
    return [
        {
            "place": batch.places[i // batch.count],
            "sample": batch.first + i % batch.count,
            "greedy": batch.chances is None,
            "completion": texts[i],
            "completion_ids": ids[i],
            "reward": float(rewards.flatten()[i]),
            "rewards": {name: float(values.flatten()[i]) for name, values in judged.items()},
            "metrics": {name: float(values.flatten()[i]) for name, values in measured.items()},
            "ended": bool(rollout.ended[i]),
        }
        for i in range(len(texts))
    ]


def _measured(
    exam: Exam,
    metric: NamedReward,
    scores: Scores,
    examples: Sequence[Example],
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    context: RewardContext,
) -> Tensor:
    """What a metric says, [P, G]; one that is a reward too has said it."""
    if metric in exam.scorer.rewards:
        return scores.parts[metric.name]
    judge = exam.scorer.beside(metric)
    return judge(examples, texts, ids, context).parts[metric.name]


def _hash(examples: Sequence[Example]) -> str:
    text = json.dumps([example.prompt for example in examples], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _row(label: str, example: Example, record: Record) -> dict[str, Any]:
    """A completion as a file has it: what ``rl4lm score`` reads, and what was found."""
    columns = {name: plain_column(value) for name, value in example.columns.items()}
    return {
        **columns,
        "dataset": label,
        "prompt_id": example.prompt_id,
        "prompt": example.prompt,
        "greedy": record["greedy"],
        "sample": record["sample"],
        "completion": record["completion"],
        "completion_ids": record["completion_ids"],
        "reward": record["reward"],
        "rewards": record["rewards"],
        "metrics": record["metrics"],
        "truncated": not record["ended"],
    }
