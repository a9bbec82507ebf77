"""Start the worker process of a named reward, talk to it, and end it.

The worker is exec'd, never forked from the trainer, which has threads, a device and secrets in its
memory. Calls and replies go over a socket, as pickles: a reward is the user's own code.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from typing import Any

from rl4lm.errors import RewardFailedError
from rl4lm.rewarding.worker import READY, receive, send

_START_S = 120.0  # for the reward's imports, which took the trainer some time as well
_LEAVE_S = 1.0  # for what a reward has to do at its end

# Not `python -m`, which would look in the working folder first, for modules of any name.
_PROGRAM = """
import sys
sys.path[:] = {path!r}
from rl4lm.rewarding.worker import main
main({channel}, {lifeline}, {name!r})
"""


class WorkerLost(Exception):
    """A worker that had to be killed, or has died, without an answer."""

    def __init__(self, kind: str, how: str) -> None:
        """Take what is counted, ``timeouts`` or ``crashes``, and how it came, in words."""
        super().__init__(how)
        self.kind = kind


class Worker:
    """A running worker process, and the channel to it."""

    def __init__(self, name: str, path: list[str], folder: str) -> None:
        """Start the process; it tells when it is ready."""
        self._name = name
        self._ready = False
        self._owner = os.getpid()
        self._channel, theirs = socket.socketpair()
        their_end, lifeline = os.pipe()
        program = _PROGRAM.format(path=path, channel=theirs.fileno(), lifeline=their_end, name=name)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a reward prints is for people, not for who reads the results
                pass_fds=(theirs.fileno(), their_end),
                start_new_session=True,  # a process group to kill, and no Ctrl-C of the terminal
            )
        except OSError:
            self._channel.close()
            os.close(lifeline)
            raise
        finally:
            theirs.close()
            os.close(their_end)
        # Runs at the latest when the interpreter ends.
        self._end = weakref.finalize(
            self, _end, self._process, self._channel, lifeline, self._owner
        )
        self._deadline = time.monotonic() + _START_S

    def is_mine(self) -> bool:
        """Whether this very process has started it."""
        return self._owner == os.getpid()

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._end.alive and self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Return when the worker has found its reward.

        Raises:
            RewardFailedError: it cannot find it.
            WorkerLost: it has died, or it takes too long.
        """
        if self._ready:
            return
        with self._lost_if_silent(_START_S):
            _, kind, reason = pickle.loads(receive(self._channel, self._deadline))
        if kind != READY:
            raise RewardFailedError(
                f"the reward {self._name!r} was found here, but not by its own process: {reason}"
            )
        self._ready = True

    def exchange(self, frame: bytes, timeout_s: float | None) -> tuple[int, str, Any]:
        """Send a call and return the reply: number of the call, kind, payload.

        Raises:
            WorkerLost: there was no reply in time, or nothing that can be read.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._channel.settimeout(timeout_s)
        with self._lost_if_silent(timeout_s):
            send(self._channel, frame)
            number, kind, payload = pickle.loads(receive(self._channel, deadline))
        return number, kind, payload

    @contextlib.contextmanager
    def _lost_if_silent(self, limit: float | None) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise WorkerLost("timeouts", f"timed out after {limit:g} s") from error
        except (EOFError, OSError) as error:
            raise WorkerLost("crashes", f"crashed: {self._how_it_ended()}") from error
        except Exception as error:
            raise WorkerLost("crashes", "crashed: its reply cannot be read") from error

    def _how_it_ended(self) -> str:
        # The signal comes too late for a process that has died, and leaves its status as it is.
        self._end()
        status = self._process.wait()
        if status >= 0:
            return f"exit status {status}"
        names = {s.value: s.name for s in signal.Signals}
        hint = ", perhaps for want of memory" if status == -signal.SIGKILL else ""
        return f"killed by {names.get(-status, f'signal {-status}')}{hint}"

    def end(self, at_once: bool) -> None:
        """End it, with all that it has started; unless `at_once`, it may clean up behind itself."""
        if self._ready and not at_once and self._end.alive and self.is_mine():
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_WR)
                self._channel.settimeout(_LEAVE_S)
                self._channel.recv(1)
        self._end()


def _end(
    process: subprocess.Popen[bytes], channel: socket.socket, lifeline: int, owner: int
) -> None:
    if os.getpid() != owner:
        return  # a copy of the trainer that was forked has no say in it
    # Before it is reaped: until then nobody else can have its number.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with contextlib.suppress(OSError):
        channel.shutdown(socket.SHUT_RDWR)  # not closed: another thread may be reading
    os.close(lifeline)
