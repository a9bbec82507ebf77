"""What can go wrong with a run in the sandbox, and whose fault it is.

`Ended` is the program's own fault and is scored. `SandboxUnavailable` and `SandboxFailed` are the
machine's fault and are never scored. `RunLost` stays inside the package: the pool answers it by
judging the item once more.
"""

from __future__ import annotations

DETAIL_LENGTH = 300
# The signal (SIGUSR1) that a child dies of if it could not confine itself. No program can: the
# filter leaves it no way to send a signal, not even to itself.
NOT_CONFINED = 10


class Ended(Exception):
    """The run was over before it answered: the program's own fault.

    `reason` is one of "timeout", "output limit", "reply limit", "died", "protocol"; `detail` is
    one line of text for a log.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class SandboxUnavailable(RuntimeError):
    """This machine cannot confine a program; the message names the layer and the remedy."""


class SandboxFailed(RuntimeError):
    """The sandbox itself broke, twice for the same item or in a way that a retry cannot mend."""


class RunLost(Exception):
    """A run ended through no fault of the program: its server died or was killed with it."""


def printable(raw: bytes | str, length: int = DETAIL_LENGTH) -> str:
    """Return the end of untrusted text as one printable line of at most `length` characters."""
    # Only the end is decoded: a flood must not cost the parent a pass over all of it.
    text = raw[-4 * length :]
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    kept = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(kept.split())[-length:]
