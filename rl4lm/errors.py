"""Every error that this package raises on purpose.

One root, so that a caller can catch what is ours; each also inherits the fitting builtin, so that
a caller who knows only Python is served too. A message says what was given, what was expected and
what to do. To add one: inherit the root and the builtin, and say in a line when it is raised.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Rl4lmError(Exception):
    """The root of all errors of this package."""


class ConfigError(Rl4lmError, ValueError):
    """An option, or a combination of options, that cannot be meant; nothing has been started."""


class DataError(Rl4lmError, ValueError):
    """Prompts that cannot be read or used: missing file, empty set, absent column."""


class MissingSplitError(DataError):
    """A data set that has other splits than the one asked for."""


class ModelError(Rl4lmError, ValueError):
    """A checkpoint that cannot be loaded, or that the generation loop cannot serve."""


class RewardError(Rl4lmError, ValueError):
    """A reward that does not resolve, or returns something that is not a reward."""


class RewardFailedError(Rl4lmError, RuntimeError):
    """A reward function that raised an exception of its own; the cause is chained."""


class OutputError(Rl4lmError, OSError):
    """A place on disk that cannot be written, or that already holds a run."""


class TrainingError(Rl4lmError, RuntimeError):
    """Training cannot go on: a parameter without gradient, a gradient that is not finite."""


class VerificationError(Rl4lmError, RuntimeError):
    """What was checked is not as it should be: a gradient, or a logged step."""


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return "; did you mean X?" with the candidate nearest to a misspelt name, or ""."""
    nearest = difflib.get_close_matches(name, list(candidates), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
