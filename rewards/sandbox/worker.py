"""The parent's handle on one server process."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rewards.sandbox import boot
from rewards.sandbox.errors import RunLost, SandboxUnavailable, printable
from rewards.sandbox.limits import Limits

# The server answers in about a millisecond; a machine that is short of CPU may need longer.
_ANSWER_SECONDS = 15.0
_START_SECONDS = 60.0
_LEAVE_SECONDS = 1.0
_LONGEST_ANSWER = 1 << 16


@dataclass(frozen=True)
class Setup:
    """What every server of a sandbox is started with.

    `runner` is a module of this package or the path of a file, `without` the layers left out;
    both differ from their defaults in tests only.
    """

    limits: Limits
    runner: str = "runner"
    without: frozenset[str] = frozenset()

    def message(self) -> dict[str, object]:
        """Return the first message to a server."""
        return {
            "limits": asdict(self.limits),
            "runner": self.runner,
            "without": sorted(self.without),
            "parent": os.getpid(),
        }


class Worker:
    """One server: started, asked, ended. Used by one thread at a time."""

    def __init__(self, setup: Setup) -> None:
        """Start a server; it is ready when `layers` has returned."""
        if not sys.executable:
            raise SandboxUnavailable(
                "the sandbox starts its own Python interpreter and sys.executable is empty; "
                "run under an ordinary python instead of an embedded one"
            )
        self._owner = os.getpid()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = self._execute(theirs)
        self.runs = 0
        self.lost = False
        self._control.settimeout(_START_SECONDS)
        self._send(setup.message(), ())

    def _execute(self, control: socket.socket) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                boot.command(sys.executable),
                stdin=control.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=boot.environment(),
                cwd="/",
                start_new_session=True,
            )
        except OSError as refused:
            self._control.close()
            raise SandboxUnavailable(f"cannot start {sys.executable}: {refused}") from refused

    def layers(self) -> dict[str, str]:
        """Wait until the server is ready and return what became of each layer.

        Raises:
            SandboxUnavailable: The server did not start; the message has its last words.
        """
        try:
            answer, _ = self._answer()
        except RunLost as lost:
            self.close()
            raise SandboxUnavailable(f"the sandbox's server did not start: {lost}") from lost
        self._control.settimeout(_ANSWER_SECONDS)
        return {str(name): str(state) for name, state in answer["layers"].items()}

    def request(
        self, message: dict[str, object], descriptors: Sequence[int] = ()
    ) -> tuple[dict[str, Any], list[int]]:
        """Send a message, return the server's answer and the descriptors that came with it.

        Raises:
            RunLost: The server is dead or does not answer; it is ended, and so are its runs.
        """
        # Should an interrupt come between question and answer, the two would no longer match.
        self.lost = True
        self._send(message, descriptors)
        answer = self._answer()
        self.lost = False
        return answer

    def _send(self, message: dict[str, object], descriptors: Sequence[int]) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], descriptors)
        except OSError as broken:
            raise self._loss(broken) from broken

    def _answer(self) -> tuple[dict[str, Any], list[int]]:
        try:
            raw, descriptors, _, _ = socket.recv_fds(self._control, _LONGEST_ANSWER, 1)
        except OSError as broken:
            raise self._loss(broken) from broken
        if not raw:
            raise self._loss(None)
        return json.loads(raw), descriptors

    def _loss(self, broken: OSError | None) -> RunLost:
        self.lost = True
        self.process.kill()
        self.process.wait()
        last_words = printable(self.process.stderr.read()) if self.process.stderr else ""
        cause = f"{broken or 'it ended'}, exit status {self.process.returncode}"
        return RunLost(f"server lost ({cause}) {last_words}".rstrip())

    def _end_server(self) -> None:
        # A closed socket is not enough: a process forked meanwhile may hold another copy.
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        try:
            self.process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        """End the server and everything in it; a forked copy of this only lets go of it."""
        if os.getpid() == self._owner:
            self._end_server()
        self._control.close()
        if self.process.stderr:
            self.process.stderr.close()
