"""Ctrl-C and SIGTERM during a run: the first one lets the step in hand end, another one stops."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from rl4lm.errors import PeerLostError, Stopped
from rl4lm.processes import peers

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A launcher hands on the very signal that the terminal has sent to all its processes already.
_ECHO_S = 2.0
# It also ends all processes by SIGTERM because one of them has died: that takes a moment to see.
_CAUSE_S = 0.8


class StopRequest:
    """Takes note of a signal; a context manager around the steps of a run.

    Only the main thread of a process can listen to signals; elsewhere nothing is listened to. What
    is ignored, as a shell has it for its background jobs, stays ignored.
    """

    def __init__(self, speaks: bool = True) -> None:
        """Begin with nothing asked.

        Args:
            speaks: answer a signal with a line on the standard error.
        """
        self.number = 0  # of the signal that was received; 0 = none
        self._speaks = speaks
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if kind is Stopped and (cause := peers.failure()) is not None:
            raise PeerLostError(cause) from None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if peers.has_noticed():
            return  # on the way out already
        if number == signal.SIGTERM and (cause := peers.failure(_CAUSE_S)) is not None:
            raise Stopped(number, cause)
        if not self.number:
            self.number, self._since = number, time.monotonic()
            if self._speaks:
                # Not print: the signal may have come in the middle of one.
                os.write(2, b"\nstopping after this step; the same signal again stops at once\n")
            return
        launched = "RANK" in os.environ
        if not launched or time.monotonic() - self._since > _ECHO_S:
            raise Stopped(number, "stopped at once; the step in hand is lost")
