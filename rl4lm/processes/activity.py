"""What this process is doing just now: noted for the others, who may have to wait for it.

A note costs a few assignments. Nobody reads it in a run of one process.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SAVING = "saving"


@dataclass
class _Now:
    what: str = "starting"
    step: int | None = None
    since: float = field(default_factory=time.monotonic)
    waiting_since: float | None = None  # in a collective; None = not in one
    asked: dict[object, tuple[str, float]] = field(default_factory=dict)  # rewards; since when


_now = _Now()


def doing(what: str, step: int | None = None) -> None:
    """Note what begins here: a word such as "sampling", and the step that it belongs to."""
    _now.what, _now.step, _now.since = what, step, time.monotonic()


@contextlib.contextmanager
def asking(reward: str) -> Iterator[None]:
    """While a reward is asked; several may be, on threads of their own."""
    key = object()
    _now.asked[key] = (reward, time.monotonic())
    try:
        yield
    finally:
        del _now.asked[key]


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """While the main thread is in something that all processes do together."""
    _now.waiting_since = time.monotonic()
    try:
        yield
    finally:
        _now.waiting_since = None


def waited_s() -> float | None:
    """Seconds since the main thread began to wait for others; None while it does not."""
    since = _now.waiting_since
    return None if since is None else time.monotonic() - since


def is_saving() -> bool:
    """Whether a checkpoint is being written, which should not be cut off without need."""
    return _now.what == SAVING


def note() -> dict[str, Any]:
    """All of it, as plain values."""
    # A copy: other threads add and remove rewards.
    asked = sorted(dict(_now.asked).values(), key=lambda each: each[1])
    waited = waited_s()
    what, since = (
        (f"scoring with the reward {asked[0][0]!r}", asked[0][1])
        if asked
        else (_now.what, _now.since)
    )
    return {
        "what": what,
        "step": _now.step,
        "for_s": time.monotonic() - since,
        "waiting": waited is not None,
    }


def phrase(noted: dict[str, Any] | None) -> str:
    """A note in words that follow the name of a process, such as "sampling in step 3"."""
    if noted is None:
        return "starting"
    step = "" if noted["step"] is None else f" in step {noted['step']}"
    return f"{noted['what']}{step}"
