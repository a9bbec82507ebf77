"""The parent's ends of a run's pipes and socket: feeding, reading, and the caps on both."""

from __future__ import annotations

import contextlib
import os
import select
import socket

from rewards.sandbox.errors import Ended
from rewards.sandbox.limits import Limits

_CHUNK = 1 << 16


class Pipes:
    """Standard input, output and error of one run, and its RPC socket; nothing here blocks."""

    def __init__(self, limits: Limits, job: bytes, stdin: bytes) -> None:
        """Make the pipes; `given` are the child's ends, the parent's are kept inside.

        Args:
            limits: How much may be written.
            job: The first line that is sent on the RPC socket.
            stdin: All that standard input has.
        """
        self._limits = limits
        self._outgoing = bytearray(job + b"\n")
        self._incoming = bytearray()
        self._searched = 0
        self._stdin = memoryview(stdin)
        given_stdin, self._stdin_at = os.pipe()
        self._stdout_at, given_stdout = os.pipe()
        self._stderr_at, given_stderr = os.pipe()
        self._rpc, given_rpc = socket.socketpair()
        self.given = [given_stdin, given_stdout, given_stderr, given_rpc.detach()]
        self._open = {self._stdin_at, self._stdout_at, self._stderr_at}
        for descriptor in self._open:
            os.set_blocking(descriptor, False)
        self._rpc.setblocking(False)
        self._written = {self._stdout_at: bytearray(), self._stderr_at: bytearray()}
        self.hung_up = False
        if not stdin:
            self._close(self._stdin_at)
        self._push()

    @property
    def stdout(self) -> bytes:
        """What the run has written on standard output, as far as it has been read."""
        return bytes(self._written[self._stdout_at])

    @property
    def stderr(self) -> bytes:
        """What the run has written on standard error, as far as it has been read."""
        return bytes(self._written[self._stderr_at])

    def close_given(self) -> None:
        """Close the child's ends, after the child has its copies."""
        for descriptor in self.given:
            os.close(descriptor)
        self.given = []

    def send(self, line: bytes) -> None:
        """Queue one line for the RPC socket.

        Raises:
            Ended: Bytes came before anything was asked.
        """
        if not self._outgoing:
            # A closed socket shows when the answer is read.
            with contextlib.suppress(BlockingIOError, ConnectionResetError):
                self._incoming += self._rpc.recv(_CHUNK)
        if self._incoming:
            raise Ended("protocol", "bytes on the socket before the request was sent")
        self._outgoing += line + b"\n"
        self._push()

    def take_line(self) -> bytes | None:
        """Return the line that has come in, or None while there is none.

        Raises:
            Ended: The line is longer than allowed.
        """
        # Only what is new is searched: bytes that dribble in must not cost a pass over all each.
        end = self._incoming.find(b"\n", self._searched)
        self._searched = len(self._incoming) if end < 0 else end
        if self._searched > self._limits.reply_bytes:
            raise Ended("reply limit", f"more than {self._limits.reply_bytes} bytes in a line")
        if end < 0:
            return None
        line = bytes(self._incoming[:end])
        del self._incoming[: end + 1]
        self._searched = 0
        return line

    def step(self, seconds: float, watch: int | None = None) -> bool:
        """Wait at most `seconds` until something happens, and deal with it.

        Without `watch`, answers on the RPC socket are read. With it, they are not, and the end of
        the process that this pidfd stands for is waited for as well: True when it is gone.

        Raises:
            Ended: More was written than allowed.
        """
        happened = [descriptor for descriptor, _ in self._poll(watch).poll(seconds * 1000 + 1)]
        for descriptor in happened:
            # Only what is open: the number of a closed pipe may be that of the pidfd by now.
            if descriptor in self._open:
                self._feed() if descriptor == self._stdin_at else self._read(descriptor)
            elif descriptor != watch:
                self._push()
                if watch is None:
                    self._receive()
        return watch in happened

    def drain(self) -> None:
        """Read what is left of output after the end of the process.

        Raises:
            Ended: More was written than allowed.
        """
        for descriptor in self._written:
            while descriptor in self._open and self._read(descriptor):
                pass

    def close(self) -> None:
        """Close the parent's ends."""
        for descriptor in tuple(self._open):
            self._close(descriptor)
        self._rpc.close()

    def _poll(self, watch: int | None) -> select.poll:
        waiting = select.poll()
        for descriptor in self._open:
            sending = descriptor == self._stdin_at
            waiting.register(descriptor, select.POLLOUT if sending else select.POLLIN)
        sending = bool(self._outgoing)
        if watch is None or sending:
            events = (select.POLLIN if watch is None else 0) | (select.POLLOUT if sending else 0)
            waiting.register(self._rpc, events)
        if watch is not None:
            waiting.register(watch, select.POLLIN)
        return waiting

    def _push(self) -> None:
        try:
            if self._outgoing:
                del self._outgoing[: self._rpc.send(self._outgoing)]
        except BlockingIOError:
            pass  # The child is not reading; the deadline bounds that.
        except (BrokenPipeError, ConnectionResetError):
            self._outgoing.clear()

    def _receive(self) -> None:
        try:
            received = self._rpc.recv(_CHUNK)
        except BlockingIOError:
            return
        except ConnectionResetError:
            received = b""
        self._incoming += received
        self.hung_up = not received

    def _read(self, descriptor: int) -> bool:
        """Read what stdout or stderr has; False if there is nothing more for now."""
        try:
            received = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return False
        if not received:
            self._close(descriptor)
            return False
        self._written[descriptor] += received
        if sum(map(len, self._written.values())) > self._limits.output_bytes:
            raise Ended("output limit", f"more than {self._limits.output_bytes} bytes written")
        return True

    def _feed(self) -> None:
        try:
            self._stdin = self._stdin[os.write(self._stdin_at, self._stdin[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._stdin = self._stdin[:0]
        if not self._stdin:
            self._close(self._stdin_at)

    def _close(self, descriptor: int) -> None:
        self._open.discard(descriptor)
        os.close(descriptor)
