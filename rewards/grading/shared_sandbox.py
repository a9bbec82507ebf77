"""The sandboxes that the rewards of a process share: one for each choice of limits."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from rewards.sandbox import Limits, Sandbox
from rewards.sandbox.pool import Isolation


@dataclass(frozen=True)
class Settings:
    """What a sandbox is made with."""

    limits: Limits = field(default_factory=Limits)
    isolation: Isolation = "sandbox"


# Of this process, by its id; a forked child has its own.
_sandboxes: dict[tuple[int, Settings], Sandbox] = {}
_making = threading.Lock()
_settings = ContextVar("settings", default=Settings())  # noqa: B039 - frozen


@contextmanager
def sandbox_settings(settings: Settings) -> Iterator[None]:
    """Inside, on this thread, `shared_sandbox` returns a sandbox of these settings."""
    before = _settings.set(settings)
    try:
        yield
    finally:
        _settings.reset(before)


def shared_sandbox() -> Sandbox:
    """The sandbox of this process: made at the first call, closed when the process ends.

    Raises:
        SandboxUnavailable: this machine cannot confine programs.
    """
    settings = _settings.get()
    with _making:
        sandbox = _sandboxes.get((os.getpid(), settings))
        if sandbox is None:
            sandbox = Sandbox(limits=settings.limits, isolation=settings.isolation)
            _sandboxes[os.getpid(), settings] = sandbox
            atexit.unregister(_close)  # a forked child inherits the entry
            atexit.register(_close)
    return sandbox


def _close() -> None:
    for key in [key for key in _sandboxes if key[0] == os.getpid()]:
        _sandboxes.pop(key).close()


def _start_over() -> None:
    """In a forked child: the lock may have been held by a thread that is not there any more."""
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_start_over)
