"""The numbers of a step: pure functions from what happened to what is logged.

Names are TRL's where TRL has the number. None means that a number is not defined for this step.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl4lm.types import Example, Experience, Rollout, Scores

_LONG = 1000  # characters of a column's value; a longer one is logged once for each prompt


class Stopwatch:
    """Seconds spent in the parts of a step."""

    def __init__(self) -> None:
        """Start now."""
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, part: str) -> None:
        """Book the time since the last lap under a name."""
        now = time.perf_counter()
        self.seconds[f"time/{part}_s"] = self.seconds.get(f"time/{part}_s", 0.0) + now - self._last
        self._last = now


def pack(rollout: Rollout, scores: Scores, returns: Tensor) -> Tensor:
    """What the other processes need of a step here: float64 [P, G, 6 + K] for K rewards.

    In the last dimension what `Measured` names, in its order, each reward as a column of its own.
    """
    shape = scores.rewards.shape
    columns = [
        returns.reshape(shape),
        scores.rewards,
        scores.valid,
        rollout.lengths.reshape(shape),
        rollout.ended.reshape(shape),
        rollout.sampling_logprobs.sum(dim=1).reshape(shape),
        *scores.parts.values(),
    ]
    return torch.stack([column.double() for column in columns], dim=-1)


class Measured(NamedTuple):
    """The columns of `pack`, of all completions of a step."""

    returns: Tensor  # float64 [P, G], from the start: what the baselines see
    rewards: Tensor  # float64 [P, G], 0 where none applied
    valid: Tensor  # bool [P, G]
    lengths: Tensor  # int64 [P, G], tokens
    ended: Tensor  # bool [P, G]
    logprobs: Tensor  # float64 [P, G], of the whole completion, at sampling time
    parts: Tensor  # float64 [P, G, K], each reward, nan where None


def measured(packed: Tensor) -> Measured:
    """`pack` of all processes, float64 [P, G, 6 + K], by name."""
    returns, rewards, valid, lengths, ended, logprobs = packed[..., :6].unbind(dim=-1)
    return Measured(
        returns, rewards, valid.bool(), lengths.long(), ended.bool(), logprobs, packed[..., 6:]
    )


def rollout_metrics(packed: Tensor, names: Sequence[str]) -> dict[str, float | None]:
    """Numbers about the completions of a step, from `pack` of all processes [P, G, 6 + K]."""
    step = measured(packed)
    rewards = step.rewards[step.valid]
    spread = torch.where(step.valid, step.rewards, math.nan)  # [P, G]
    lengths = step.lengths.double()
    metrics: dict[str, float | None] = {
        "reward": _mean(rewards),
        "reward_std": _std(rewards),
        "frac_reward_zero_std": float(_equal_rows(spread).double().mean()),
        "rewards_not_applicable": float((~step.valid).sum()),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": 1.0 - float(step.ended.double().mean()),
        "entropy": -float(step.logprobs.sum()) / float(lengths.sum()),
    }
    for k, name in enumerate(names):
        values = step.parts[..., k]
        present = values[~values.isnan()]
        metrics[f"rewards/{name}/mean"] = _mean(present)
        metrics[f"rewards/{name}/std"] = _std(present)
    return metrics


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def _std(values: Tensor) -> float | None:
    return float(values.std()) if len(values) > 1 else None


def _equal_rows(rewards: Tensor) -> Tensor:
    """bool [P], True where all rewards that apply are equal: rewards [P, G], nan where none."""
    low = rewards.nan_to_num(nan=math.inf).amin(dim=1)
    high = rewards.nan_to_num(nan=-math.inf).amax(dim=1)
    return low >= high


def completion_rows(step: int, e: Experience) -> list[dict[str, Any]]:
    """The completions of this process as plain rows for the log."""
    rollout, scores, group = e.rollout, e.scores, e.rollout.num_generations
    prompt_ids, completion_ids = rollout.prompt_lists(), rollout.completion_lists()
    rewards, valid = scores.rewards.flatten().tolist(), scores.valid.flatten().tolist()
    parts = {name: values.flatten().tolist() for name, values in scores.parts.items()}
    logprobs = rollout.sampling_logprobs.sum(dim=1).tolist()
    by_token = rollout.sampling_logprobs.tolist()
    from_start = e.advantages if e.advantages.dim() == 1 else e.advantages[:, 0]
    ended, centred = rollout.ended.tolist(), from_start.tolist()
    columns = [_columns(example) for example in e.examples]
    return [
        {
            "step": step,
            "prompt_id": e.examples[i // group].prompt_id,
            "sample": i % group,
            "prompt": e.examples[i // group].prompt,
            "completion": e.texts[i],
            "prompt_ids": prompt_ids[i // group],
            "completion_ids": completion_ids[i],
            "reward": rewards[i] if valid[i] else None,
            "rewards": {name: values[i] for name, values in parts.items()},
            **_token_rewards(e, i),
            "advantage": centred[i],
            "sampling_logprob": logprobs[i],
            "sampling_logprobs": [round(p, 4) for p in by_token[i][: len(completion_ids[i])]],
            "truncated": not ended[i],
            "columns": columns[i // group][i % group > 0],
            **_extras(scores.extra, i),
        }
        for i in range(len(e.texts))
    ]


def unscored_rows(
    examples: Sequence[Example], texts: Sequence[str], ids: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """Completions with what their rewards read, in the form that ``rl4lm score`` takes."""
    group = len(texts) // len(examples)
    return [
        {
            **examples[i // group].columns,
            "prompt_id": examples[i // group].prompt_id,
            "prompt": examples[i // group].prompt,
            "completion": text,
            "completion_ids": list(ids[i]),
        }
        for i, text in enumerate(texts)
    ]


def _columns(example: Example) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of a prompt: all, for its first completion, and the short ones, for the others.

    Test programs, of which a row may have a hundred kilobytes, would be written G times otherwise.
    """
    every = {name: plain_column(value) for name, value in example.columns.items()}
    return every, {n: v for n, v in every.items() if len(json.dumps(v)) <= _LONG}


def plain_column(value: Any) -> Any:
    """A column's value as JSON can say it; a date, say, becomes text."""
    try:
        said = json.dumps(value, default=str, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # keys of a mapping, or a value within itself
        said = json.dumps(str(value), ensure_ascii=False)
    # Half of a surrogate pair is text to Python, and nothing that a file can hold.
    return json.loads(said.encode("utf-8", "replace"))


def _token_rewards(e: Experience, row: int) -> dict[str, list[float]]:
    """What each token of a completion was paid, where rewards are given per token."""
    if e.scores.token_rewards is None:
        return {}
    length = int(e.rollout.completion_mask[row].sum())
    return {"token_rewards": e.scores.token_rewards[row, :length].tolist()}


def _extras(extra: Mapping[str, Sequence[Any]], row: int) -> dict[str, Any]:
    """What rewards logged about a row, as text where JSON cannot say it."""
    plain = (str, int, float, bool, type(None))
    logged = {name: values[row] for name, values in extra.items() if row < len(values)}
    return {n: v if isinstance(v, plain) else str(v) for n, v in logged.items()}


def step_seconds(metrics: Mapping[str, Any]) -> float:
    """How long a step took, from the times of its parts; the wait for others is within them."""
    parts = {k: v for k, v in metrics.items() if k.startswith("time/") and k != "time/idle_s"}
    return math.fsum(parts.values())


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held: of the device, or of the machine on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
