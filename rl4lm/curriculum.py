"""Which prompts a step draws: the next of the stream, or of some candidates those nearest to 50 %.

Both are functions of the seed, of how often was sampled before, and of what past samplings earned:
nothing depends on the present one, so that every step's gradient is that of a J over prompts which
were settled before it. All processes see the same rewards and choose alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rl4lm.config import OPTIONS, ReinforceConfig
from rl4lm.data.examples import PromptData, stream_indices
from rl4lm.errors import ConfigError

HALF_LIFE = 30.0  # samplings after which an estimate counts half
PRIOR = 4  # completions that the estimate so far counts as, beside new ones
MOST_ESTIMATES = 2**16  # of prompts, and of groups: those of the ones met last
UNKNOWN = 0.5  # the success of what was never tried, so that it is

# The options that leave every prompt as the stream has it, drawn once.
AS_THEY_COME: Mapping[str, Any] = {
    "dynamic_sampling": 0,
    **{name: OPTIONS[name].default for name in OPTIONS if name.startswith("curriculum")},
}


class Course(Protocol):
    """Chooses prompts."""

    def choose(self, sampling: int, lists: int, count: int) -> list[int]:
        """Rows of the data for a sampling: `lists` times `count` of them, list after list."""

    def note(self, sampling: int, keys: Sequence[int], rewards: Tensor, counts: Tensor) -> None:
        """Learn what prompts have earned.

        Args:
            sampling: which one it was, from 0.
            keys: n rows of the data that were drawn.
            rewards: float64 [n], the mean of each.
            counts: [n], completions of each that a reward applied to; 0 says nothing.
        """

    def metrics(self, sampling: int, keys: Sequence[int]) -> dict[str, float]:
        """Numbers about chosen prompts, before they are drawn."""

    def state_dict(self) -> dict[str, Any]:
        """What later choices depend on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


class Stream:
    """The endless stream of permutations as it comes."""

    def __init__(self, data: PromptData, seed: int) -> None:
        """Take the data."""
        self._size = len(data)
        self._seed = seed

    def choose(self, sampling: int, lists: int, count: int) -> list[int]:
        """See `Course`."""
        count *= lists
        return stream_indices(self._size, self._seed, sampling * count, count)

    def note(self, sampling: int, keys: Sequence[int], rewards: Tensor, counts: Tensor) -> None:
        """See `Course`; there is nothing to learn."""

    def metrics(self, sampling: int, keys: Sequence[int]) -> dict[str, float]:
        """See `Course`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """See `Course`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Course`."""


class Curriculum:
    """Of a window of the stream, the prompts whose estimated success is nearest to 50 %.

    A prompt's estimate is a mean of what it earned, which fades with time into that of its group,
    as that one does into 50 %: what has not been tried for long is tried again.
    """

    def __init__(self, data: PromptData, seed: int, candidates: int, column: str | None) -> None:
        """Begin with no estimate.

        Args:
            data: the prompts.
            seed: of the run.
            candidates: prompts of the stream that one is chosen from, K.
            column: prompts with the same value in it are a group; None = there are no groups.
        """
        self._data = data
        self._seed = seed
        self._candidates = candidates
        self._column = column
        self._own: dict[int, tuple[float, int]] = {}  # row -> success, and as of which sampling
        self._groups: dict[str | None, tuple[float, int]] = {}  # value of the column -> the same

    def choose(self, sampling: int, lists: int, count: int) -> list[int]:
        """See `Course`: each list is of a window of its own, nearest first, ties by the stream."""
        window = self._candidates * count
        first = sampling * lists * window
        chosen: list[int] = []
        for start in range(first, first + lists * window, window):
            keys = stream_indices(len(self._data), self._seed, start, window)
            distance = {key: abs(self.estimate(key, sampling) - 0.5) for key in set(keys)}
            chosen += sorted(keys, key=distance.__getitem__)[:count]
        return chosen

    def estimate(self, key: int, sampling: int) -> float:
        """The expected success of a row of the data, as far as known before a sampling."""
        group = _faded(self._groups.get(self._group(key)), UNKNOWN, sampling)
        return _faded(self._own.get(key), group, sampling)

    def note(self, sampling: int, keys: Sequence[int], rewards: Tensor, counts: Tensor) -> None:
        """See `Course`; groups learn before their prompts, and both from the same completions."""
        success = rewards.clamp(0.0, 1.0)
        drawn = [
            (key, value, count)
            for key, value, count in zip(keys, success.tolist(), counts.tolist(), strict=True)
            if count
        ]
        grouped = [(self._group(key), value, count) for key, value, count in drawn]
        for name, earned in _summed([row for row in grouped if row[0] is not None]).items():
            before = _faded(self._groups.get(name), UNKNOWN, sampling)
            _remember(self._groups, name, _updated(before, *earned), sampling)
        for key, earned in _summed(drawn).items():
            _remember(self._own, key, _updated(self.estimate(key, sampling), *earned), sampling)

    def _group(self, key: int) -> str | None:
        if self._column is None:
            return None
        return str(self._data.example(key).columns[self._column])

    def metrics(self, sampling: int, keys: Sequence[int]) -> dict[str, float]:
        """See `Course`."""
        estimates = [self.estimate(key, sampling) for key in keys]
        return {
            "curriculum/expected_success": sum(estimates) / len(estimates),
            "curriculum/met_before": sum(key in self._own for key in keys) / len(keys),
        }

    def state_dict(self) -> dict[str, Any]:
        """See `Course`."""
        return {
            "keys": torch.tensor(list(self._own), dtype=torch.int64),
            "own": _as_tensor(self._own),
            "names": list(self._groups),
            "groups": _as_tensor(self._groups),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Course`; a run that had no curriculum has left nothing to go on from."""
        if not state:
            return
        self._own = dict(zip(state["keys"].tolist(), _as_pairs(state["own"]), strict=True))
        self._groups = dict(zip(state["names"], _as_pairs(state["groups"]), strict=True))


def make_course(config: ReinforceConfig, data: PromptData) -> Course:
    """What chooses the prompts, by the options.

    Raises:
        ConfigError: the data have no such column.
    """
    if config.curriculum == "none":
        return Stream(data, config.seed)
    column: str | None = config.curriculum_column
    if column not in data.columns:
        if column != OPTIONS["curriculum_column"].default:
            raise ConfigError(
                f"curriculum_column={column} is no column of the training data, which have: "
                f"{', '.join(data.columns)}; name one of them, or leave it out"
            )
        column = None
    return Curriculum(data, config.seed, config.curriculum_candidates, column)


def _faded(known: tuple[float, int] | None, otherwise: float, sampling: int) -> float:
    """An estimate on its way to what is assumed without it."""
    if known is None:
        return otherwise
    value, seen = known
    return otherwise + (value - otherwise) * 0.5 ** ((sampling - seen) / HALF_LIFE)


def _remember(known: dict[Any, tuple[float, int]], name: Any, value: float, sampling: int) -> None:
    """Note an estimate as the latest one; the oldest goes where there is no room."""
    known.pop(name, None)
    known[name] = value, sampling
    if len(known) > MOST_ESTIMATES:
        del known[next(iter(known))]


def _updated(before: float, total: float, count: float) -> float:
    """The mean of new completions and of an estimate that counts as `PRIOR` of them."""
    return (PRIOR * before + total) / (PRIOR + count)


def _summed(drawn: Sequence[tuple[Any, float, float]]) -> dict[Any, tuple[float, float]]:
    """Name -> what its completions earned in all, and how many there are."""
    sums: dict[Any, tuple[float, float]] = {}
    for name, value, count in drawn:
        total, number = sums.get(name, (0.0, 0.0))
        sums[name] = total + value * count, number + count
    return sums


def _as_tensor(estimates: Mapping[Any, tuple[float, int]]) -> Tensor:
    """float64 [n, 2]: success, and as of which sampling."""
    return torch.tensor(list(estimates.values()), dtype=torch.float64).reshape(-1, 2)


def _as_pairs(estimates: Tensor) -> list[tuple[float, int]]:
    return [(value, int(seen)) for value, seen in estimates.tolist()]
