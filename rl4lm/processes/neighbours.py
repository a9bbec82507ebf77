"""The processes of a run on this machine: who they are, and whether they are still there.

What is gone here is seen at once, by process ids; no message has to arrive. A process id that was
given to another process since does not count, because the time of its start is compared too.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Identity:
    """A process among all those of a run."""

    rank: int
    pid: int
    started: str  # in the clock of its machine; "" where the system does not tell
    machine: str  # the same for processes that see one another's process ids
    host: str  # its name, for people

    def __str__(self) -> str:
        return f"process {self.rank} (pid {self.pid} on {self.host})"


def identity(rank: int) -> Identity:
    """This very process."""
    host = socket.gethostname()
    parts = [host]
    with contextlib.suppress(OSError):
        parts.append((_PROC / "sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink(_PROC / "self/ns/pid"))
    return Identity(rank, os.getpid(), _state(os.getpid())[1], " ".join(parts), host)


def is_gone(who: Identity) -> bool:
    """Whether a process of this machine has ended, whoever may have its number now."""
    if (_PROC / "self/stat").exists():
        state, started = _state(who.pid)
        return state in ("", "Z", "X") or started != who.started
    try:
        os.kill(who.pid, 0)
    except ProcessLookupError:
        return True
    return False


def _state(pid: int) -> tuple[str, str]:
    """The state and the time of start of a process, as Linux tells them; "" where it does not."""
    try:
        # The name of the program, in brackets, may hold anything.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


def missing_ranks() -> list[int]:
    """Ranks that the launcher has started beside this process and that are not there any more.

    For the time in which the processes do not know one another yet. They are told by their
    environment; empty where there is no launcher of torch's kind, or no /proc to look at.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return []
    present = set(_started_by(_launcher()))
    if int(os.environ["RANK"]) not in present:
        return []
    first = int(os.environ["RANK"]) - int(os.environ["LOCAL_RANK"])
    return sorted(set(range(first, first + int(os.environ["LOCAL_WORLD_SIZE"]))) - present)


def _launcher() -> int:
    """The nearest ancestor that has no rank itself, as a wrapper such as numactl would have."""
    pid = os.getppid()
    while pid > 1 and _rank_of(pid) is not None:
        pid = _parent(pid)
    return pid


def _started_by(launcher: int) -> Iterator[int]:
    """The ranks of the living children of a process."""
    for entry in _PROC.glob("[0-9]*"):
        pid = int(entry.name)
        if _parent(pid) == launcher and (rank := _rank_of(pid)) is not None:
            yield rank


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return int(fields[1])
    return 0


def _rank_of(pid: int) -> int | None:
    """The rank in the environment of a process; None where it has none, or is gone."""
    with contextlib.suppress(OSError):
        for setting in (_PROC / str(pid) / "environ").read_bytes().split(b"\0"):
            if setting.startswith(b"RANK="):
                return int(setting[5:])
    return None
