"""The one sandbox that the rewards of a process share."""

from __future__ import annotations

import atexit
import os
import threading

from rewards.sandbox import Sandbox

_sandboxes: dict[int, Sandbox] = {}  # of this process, by its id; a forked child has its own
_making = threading.Lock()


def shared_sandbox() -> Sandbox:
    """The sandbox of this process: made at the first call, closed when the process ends.

    Raises:
        SandboxUnavailable: this machine cannot confine programs.
    """
    with _making:
        sandbox = _sandboxes.get(os.getpid())
        if sandbox is None:
            sandbox = _sandboxes[os.getpid()] = Sandbox()
            atexit.unregister(_close)  # a forked child inherits the entry
            atexit.register(_close)
    return sandbox


def _close() -> None:
    sandbox = _sandboxes.pop(os.getpid(), None)
    if sandbox is not None:
        sandbox.close()


def _start_over() -> None:
    """In a forked child: the lock may have been held by a thread that is not there any more."""
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_start_over)
