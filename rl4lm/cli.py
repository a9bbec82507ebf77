"""The command line: find the verb, run it, and turn what goes wrong into words and an exit code.

Exit codes: 0 done; 2 bad input or configuration; 1 a failure while running; 130 and 143 after
Ctrl-C and SIGTERM. Nothing heavy is imported before a verb needs it, so that help and
configuration errors answer at once.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from types import FrameType

from rl4lm.commandline.verbs import VERBS, overview, welcome
from rl4lm.errors import (
    ConfigError,
    DataError,
    ModelError,
    OutputError,
    PeerLostError,
    RewardError,
    Rl4lmError,
    SaveError,
    Stopped,
    did_you_mean,
    first_line,
)
from rl4lm.processes import peers
from rl4lm.processes.neighbours import missing_ranks
from rl4lm.processes.signs import FAILED, FOLLOWS, STOPPED

_BAD_INPUT = (ConfigError, DataError, ModelError, OutputError, RewardError)
# What every process meets alike before anything runs; one of them speaks. The others may come up
# in a single process, with its rows or its disk, and must not stay unsaid.
_MET_ALIKE = (ConfigError, DataError, ModelError)

_CAUSE_S = 0.8  # a moment to see that another process has died
_COUNTED_IN_S = 1.0  # the launcher takes who ended in an earlier second for the root of it all


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        print(welcome())
        return 0
    if words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"rl4lm {version('rl4lm')}")
        return 0
    if words[0] not in VERBS:
        _say(f"there is no verb {words[0]!r}{did_you_mean(words[0], VERBS)}\n{overview()}")
        return 2
    return run(lambda: VERBS[words[0]].run(words[1:]))


def run(action: Callable[[], object]) -> int:
    """Run an action as a program: errors of ours become one message and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    if "RANK" in os.environ:  # a connection that breaks is told of without pages of C++
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        action()
    except PeerLostError as error:
        return _end_with_another(str(error))
    except SaveError as error:
        _fail(error)
        return 1
    except _BAD_INPUT as error:
        _fail(error, told=_is_first_process() or not isinstance(error, _MET_ALIKE))
        return 2
    except Rl4lmError as error:
        _fail(error)
        if error.__cause__ is not None:
            sys.excepthook(type(error.__cause__), error.__cause__, error.__cause__.__traceback__)
        return 1
    except KeyboardInterrupt as stop:
        return _stop(stop)
    return 0


def _fail(error: Rl4lmError, told: bool = True) -> None:
    """Say what went wrong here: to the other processes first, which may be waiting."""
    peers.leave(FAILED, first_line(error), told)
    if told:
        _tell_the_launcher(error)
        _say(str(error))


def _tell_the_launcher(error: Rl4lmError) -> None:
    """For the table that torch's launcher ends with, which names who failed first by this."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ and "torch.distributed" in sys.modules:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        try:
            raise type(error)(first_line(error)) from None  # the way here would fill the table
        except Rl4lmError as short:
            get_error_handler().record_exception(short)


def _end_with_another(cause: str) -> int:
    """Another process has failed, and one of those that remain says so."""
    if peers.may_speak():
        _say(cause)
    peers.leave(FOLLOWS)
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        time.sleep(_COUNTED_IN_S)
    return 1


def _stop(stop: KeyboardInterrupt) -> int:
    """A signal; launchers send one, too, where another process has died."""
    number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
    if number == signal.SIGTERM and (cause := peers.failure(_CAUSE_S)) is not None:
        return _end_with_another(cause)
    peers.leave(STOPPED)
    word = "terminated" if number == signal.SIGTERM else "interrupted"
    said = str(stop) or "what was logged and saved so far is kept"
    missing = missing_ranks()
    if missing and not str(stop):
        said += f"; process {missing[0]} was gone before: was it killed, or has it crashed?"
    if _is_first_process() or 0 in missing:
        print(f"rl4lm: {word}; {said}", file=sys.stderr)
    return 128 + number


def _terminate(number: int, frame: FrameType | None) -> None:
    """End at once; what comes while this process is on its way out must not stop it there."""
    if not peers.has_noticed():
        signal.signal(number, signal.SIG_IGN)
        raise Stopped(number)


def _is_first_process() -> bool:
    """Whether to speak of an error that every process meets alike."""
    return int(os.environ.get("RANK", "0")) == 0


def _say(message: str) -> None:
    rank = os.environ.get("RANK")
    prefix = "rl4lm: " if rank is None else f"rl4lm (process {rank}): "
    print(_fitted(f"{prefix}error: {message}"), file=sys.stderr)


def _fitted(message: str) -> str:
    """The message broken between words on a terminal, which would break it anywhere."""
    if not sys.stderr.isatty():
        return message
    width = shutil.get_terminal_size().columns
    wrap = functools.partial(
        textwrap.wrap, width=width, break_long_words=False, break_on_hyphens=False
    )
    lines = [wrap(line) if len(line) > width else [line] for line in message.split("\n")]
    return "\n".join(part for broken in lines for part in broken)
