"""Every error that this package raises on purpose.

One root, so that a caller can catch what is ours; each also inherits the fitting builtin, so that
a caller who knows only Python is served too. A message says what was given, what was expected and
what to do. To add one: inherit the root and the builtin, and say in a line when it is raised.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


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


class _Unscored(Rl4lmError):
    """What a reward did; `sampled` holds the completions that it was asked about, as plain rows."""

    sampled: Sequence[Mapping[str, Any]] = ()


class RewardError(_Unscored, ValueError):
    """A reward that does not resolve, or returns something that is not a reward."""


class RewardFailedError(_Unscored, RuntimeError):
    """A reward function that raised an exception of its own; the cause is chained."""


class OutputError(Rl4lmError, OSError):
    """A place on disk that cannot be written, or that already holds a run."""


class SaveError(OutputError):
    """A file of a run that could not be written while it ran: a full disk, most often."""


class TrainingError(Rl4lmError, RuntimeError):
    """Training cannot go on: a parameter without gradient, a gradient that is not finite."""


class EngineError(Rl4lmError, ConnectionError):
    """A server that draws completions is away, refuses, or answers what cannot be used."""


class HubError(Rl4lmError, ConnectionError):
    """The hub cannot be reached, or does not take what is uploaded."""


class PeerLostError(Rl4lmError, RuntimeError):
    """Another process of the run has died, failed, or does not come; says which one, and why."""


class Stopped(KeyboardInterrupt):
    """A signal that ends a run, wherever it arrives; the text says what was saved.

    An interrupt also where it was SIGTERM: as a SystemExit, inside a reward, it would be taken for
    a `sys.exit` of the reward's own.
    """

    def __init__(self, number: int, text: str = "") -> None:
        """Take the number of the signal, and what to say about it besides its name."""
        super().__init__(text)
        self.number = number


class VerificationError(Rl4lmError, RuntimeError):
    """What was checked is not as it should be: a gradient, or a logged step."""


def first_line(error: Exception) -> str:
    """What another library says of an error, cut to its first line."""
    return str(error).strip().split("\n")[0][:300] or type(error).__name__


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return "; did you mean X?" with the candidate nearest to a misspelt name, or ""."""
    nearest = difflib.get_close_matches(name, list(candidates), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
