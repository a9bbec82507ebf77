"""What runs in the worker process of a named reward: read a call, perform it, send the answer.

The worker imports no torch unless the reward does. It ends when the trainer closes the channel, and
is killed, with whatever it has started, when the trainer is gone in any other way.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import hashlib
import json
import os
import pickle
import random
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rl4lm.errors import RewardError
from rl4lm.rewarding.calls import Answer, Call
from rl4lm.rewarding.lookup import resolve
from rl4lm.rewarding.performing import Raised, perform

_LENGTH = struct.Struct("!Q")
_LARGEST = 1 << 34  # bytes of a frame; a length above it is noise
_PIECE = 1 << 20

# The kinds of a reply; READY and UNRESOLVED come once, of their own accord.
READY, UNRESOLVED = "ready", "unresolved"
ANSWERED, REFUSED, RAISED, NO_MEMORY = "answered", "refused", "raised", "no memory"


def send(channel: socket.socket, frame: bytes) -> None:
    """Send a frame, within the time limit of the channel."""
    channel.sendall(_LENGTH.pack(len(frame)) + frame)


def receive(channel: socket.socket, deadline: float | None = None) -> bytes:
    """The next frame.

    Raises:
        EOFError: the other side has closed the channel.
        TimeoutError: it is later than `deadline`, by the clock of `time.monotonic`.
        ValueError: what comes is no frame.
    """
    (length,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size, deadline))
    if length > _LARGEST:
        raise ValueError(f"a frame of {length} bytes")
    return bytes(_exactly(channel, length, deadline))


def _exactly(channel: socket.socket, count: int, deadline: float | None) -> bytearray:
    found = bytearray()
    while len(found) < count:
        if deadline is not None:
            channel.settimeout(max(deadline - time.monotonic(), 1e-6))
        piece = channel.recv(min(count - len(found), _PIECE))
        if not piece:
            raise EOFError
        found += piece
    return found


def main(channel_fd: int, lifeline_fd: int, name: str) -> None:
    """Serve one reward until the channel is closed.

    Args:
        channel_fd: of a stream socket to the trainer.
        lifeline_fd: read end of a pipe that nobody writes to; the trainer holds the other end.
        name: of the reward, as the trainer looked it up.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which ends this
    faulthandler.enable()  # says on stderr where a reward has crashed
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # not replaced yet
    channel = socket.socket(fileno=channel_fd)
    for fd in (channel_fd, lifeline_fd):
        os.set_inheritable(fd, False)  # processes that the reward starts would keep them open
    _end_with_the_trainer(lifeline_fd)
    _be_the_first_to_go()
    try:
        function = resolve(name)
    except RewardError as error:
        send(channel, pickle.dumps((0, UNRESOLVED, str(error))))
        return
    send(channel, pickle.dumps((0, READY, "")))
    with contextlib.suppress(EOFError, ConnectionError):
        _serve(channel, function)


def _serve(channel: socket.socket, function: Callable[..., Any]) -> None:
    served_by = os.getpid()
    while True:
        number, call = pickle.loads(receive(channel))
        kind, payload = _reply(function, call)
        if os.getpid() != served_by:
            os._exit(1)  # the reward has forked and come back twice; only one may answer
        send(channel, pickle.dumps((number, kind, payload), pickle.HIGHEST_PROTOCOL))


def _reply(function: Callable[..., Any], call: Call) -> tuple[str, Any]:
    _seed_generators(call)
    try:
        return ANSWERED, _plain(perform(function, call))
    except RewardError as refusal:
        return REFUSED, str(refusal)
    except Raised as failure:
        cause = failure.__cause__ or failure
        if isinstance(cause, MemoryError):
            return NO_MEMORY, ""
        return RAISED, (str(failure), _traceback(cause))
    except MemoryError:
        return NO_MEMORY, ""
    except BaseException as error:  # noqa: BLE001, KeyboardInterrupt of the reward's own, say
        return RAISED, (f"raised {type(error).__name__}: {error}", _traceback(error))


def _seed_generators(call: Call) -> None:
    """Have a reward that draws random numbers draw the same about the same rows of a step again.

    The global generators of Python, and of numpy and torch where the reward has imported them, are
    seeded by the run's seed, the step and the rows of the call, so that a resumed run goes on as
    it would have gone on.
    """
    if call.draws_by is None:
        return
    key = json.dumps([call.draws_by, list(call.prompt_ids), list(call.numbers)])
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def _plain(answer: Answer) -> Answer:
    """With notes that any process can read, as the log would write them."""
    return replace(answer, extra={n: _plain_notes(values) for n, values in answer.extra.items()})


def _plain_notes(values: Sequence[Any]) -> list[Any]:
    def plain(value: Any) -> Any:
        kinds = [kind for kind in (bool, int, float) if isinstance(value, kind)]
        return value if value is None else kinds[0](value) if kinds else str(value)

    return [plain(value) for value in values]


def _end_with_the_trainer(lifeline: int) -> None:
    """Have this process group killed when the other end of the pipe is closed.

    Not by PR_SET_PDEATHSIG, which looks at the thread that has started this process instead of at
    the trainer, and spares what the reward has started.
    """
    try:  # the kernel does it, whatever Python is busy with; Linux only
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | fcntl.FASYNC)
    except (AttributeError, OSError):
        watch = threading.Thread(target=_kill_the_group_at_the_end, args=(lifeline,), daemon=True)
        watch.start()
    if select.select([lifeline], [], [], 0)[0]:  # it was over before anyone listened
        os.killpg(0, signal.SIGKILL)


def _kill_the_group_at_the_end(lifeline: int) -> None:
    select.select([lifeline], [], [])
    os.killpg(0, signal.SIGKILL)


def _be_the_first_to_go() -> None:
    """Where memory runs out, Linux shall take the worker and not the trainer."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
