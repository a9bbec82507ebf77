"""Ends a process whose main thread does not come to its end by itself."""

from __future__ import annotations

import faulthandler
import functools
import os
import signal
import sys
import threading
from typing import NoReturn, TextIO

_SPOKEN_S = 3.0  # for the last words, should the screen not take them


def interrupt_the_main_thread() -> None:
    """By the signal that ends a run anyway; its handlers ask `peers` for the cause.

    A real one: what only sets a flag of Python's would not wake a call that sleeps.
    """
    if callable(signal.getsignal(signal.SIGTERM)):
        ident = threading.main_thread().ident
        assert ident is not None
        signal.pthread_kill(ident, signal.SIGTERM)


def end_at_last(limit_s: float) -> None:
    """After a failure: should Python's own end hang in what is left of the connections.

    The launcher may be ending all by now; that shall not change the exit code.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.dump_traceback_later(limit_s, exit=True, file=_nowhere())


def end_now(last_words: str) -> NoReturn:
    """Say something on the standard error, and end the process with exit code 1."""
    # Whatever holds the main thread may hold the screen, too.
    faulthandler.dump_traceback_later(_SPOKEN_S, exit=True, file=_nowhere())
    show = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar has hidden the cursor
    os.write(2, (show + last_words).encode())
    sys.stdout.flush()
    os._exit(1)


@functools.cache
def _nowhere() -> TextIO:
    """For the traceback that comes with a time limit; it has to stay open."""
    return open(os.devnull, "w", encoding="utf-8")
