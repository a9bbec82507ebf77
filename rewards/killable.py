"""Calls that may take for ever, in a process of their own that is killed in time.

    worker = Killable("rewards.formulas", seconds=3.0)
    worker.call("equivalent", "1/2", "0.5")   # JSON goes in and comes out

Libraries for algebra compute what they are given, and cannot be interrupted: a power of powers
hangs in C code, where no signal handler runs. So a process imports the module once, and forks a
worker that performs the calls. The kernel ends a worker that has used up its seconds, and the next
one is forked in milliseconds. Seconds are of processor time: what a row scores must not depend on
how busy a machine is. Linux and macOS.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import weakref
from types import ModuleType
from typing import Any

_START_S = 120.0  # for the imports
_PATIENCE = 10.0  # wall clock over processor time, on a machine that does more besides
_NO_MEMORY = 3  # exit status of a worker that has used up its memory

# Not `python -m`, which would look in the working folder first, for modules of any name.
_PROGRAM = """
import sys
sys.path[:] = {path!r}
from rewards.killable import main
main({channel}, {module!r}, {seconds!r}, {memory_bytes!r})
"""


class Lost(Exception):
    """A call whose worker was killed or has died; `kind` is ``timeouts`` or ``crashes``."""

    def __init__(self, kind: str, how: str) -> None:
        """Take what is counted, and how it came, in words."""
        super().__init__(how)
        self.kind = kind


class Killable:
    """The functions of a module, called in another process that is bounded in time and memory."""

    def __init__(self, module: str, seconds: float, memory_bytes: int = 4 << 30) -> None:
        """Take the limits; nothing is started before the first call.

        Args:
            module: to be imported there; its function `warm_up` is called before all others.
            seconds: of processor time for one call.
            memory_bytes: of address space, the imports included.
        """
        self.seconds = seconds
        self._module = module
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()  # one call at a time
        self._running: _Running | None = None
        self._calls = 0

    @property
    def most_seconds(self) -> float:
        """What a call may take by the clock on the wall, at the very most."""
        return 2 * self.seconds * _PATIENCE

    def call(self, function: str, *arguments: Any) -> Any:
        """What a function of the module returns for these arguments; JSON both.

        Raises:
            Lost: it took too long, or its process died, again when it was called once more.
            RuntimeError: it raised, or there can be no such process.
        """
        with self._lock:
            try:
                return self._answer(function, arguments)
            except Lost as lost:
                if lost.kind == "timeouts":
                    raise
            # Once more: it may have died of something else, between two calls even.
            return self._answer(function, arguments)

    def _answer(self, function: str, arguments: tuple[Any, ...]) -> Any:
        running = self._started()
        self._calls += 1
        try:
            running.send([self._calls, function, arguments])
            while (reply := running.receive(self.seconds * _PATIENCE))["number"] != self._calls:
                if "lost" in reply:
                    raise Lost(reply["kind"], reply["lost"])
        except TimeoutError:
            self._end()
            raise Lost("timeouts", f"timed out after {self.seconds:g} s") from None
        except (OSError, EOFError) as error:
            self._end()
            raise Lost("crashes", f"crashed: {error}") from None
        except BaseException as stopped:
            if not isinstance(stopped, Lost):  # an interrupt: a reply is still to come
                self._end()
            raise
        if "raised" in reply:
            raise RuntimeError(f"{self._module}:{function} raised {reply['raised']}")
        return reply["value"]

    def _started(self) -> _Running:
        if self._running is not None and self._running.owner != os.getpid():
            self._running = None  # this is a fork of the process whose worker it is
        if self._running is None:
            self._running = _Running(self._module, self.seconds, self._memory_bytes)
        return self._running

    def _end(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.end()


class _Running:
    """The process that imports and forks, and the channel to its workers."""

    def __init__(self, module: str, seconds: float, memory_bytes: int) -> None:
        self.owner = os.getpid()
        self._channel, theirs = socket.socketpair()
        program = _PROGRAM.format(
            path=[entry or os.getcwd() for entry in sys.path],
            channel=theirs.fileno(),
            module=module,
            seconds=seconds,
            memory_bytes=memory_bytes,
        )
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a process group to kill, and no Ctrl-C of the terminal
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        finally:
            theirs.close()
        self._lines = self._channel.makefile("rb")
        # Runs at the latest when the interpreter ends.
        self.end = weakref.finalize(self, _end, process, self._channel, self.owner)
        try:
            self.receive(_START_S)
        except (OSError, EOFError) as error:
            self.end()
            raise RuntimeError(
                f"the process of {module} did not start: {error or 'it ended'}; what it said is on "
                "the standard error"
            ) from error

    def send(self, message: Any) -> None:
        self._channel.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_s: float) -> dict[str, Any]:
        self._channel.settimeout(timeout_s)
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise EOFError("it ended")
        reply: dict[str, Any] = json.loads(line)
        return reply


def _end(process: subprocess.Popen[bytes], channel: socket.socket, owner: int) -> None:
    if os.getpid() != owner:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    channel.close()


def main(channel_fd: int, module: str, seconds: float, memory_bytes: int) -> None:
    """Import a module, and fork workers until the channel is closed, each after the last."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=channel_fd)
    os.set_inheritable(channel_fd, False)
    functions = importlib.import_module(module)
    functions.warm_up()
    _tell(channel, {"number": 0})
    while pid := os.fork():
        _, status = os.waitpid(pid, 0)
        if status == 0:
            return
        with contextlib.suppress(ConnectionError):
            _tell(channel, {"number": None, **_how_it_ended(status, seconds)})
    with contextlib.suppress(ConnectionError):
        _serve(channel, functions, seconds, memory_bytes)
    os._exit(0)


def _how_it_ended(status: int, seconds: float) -> dict[str, str]:
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGPROF:
        return {"kind": "timeouts", "lost": f"timed out after {seconds:g} s"}
    if code == _NO_MEMORY:
        return {"kind": "crashes", "lost": "crashed: ran out of memory"}
    return {"kind": "crashes", "lost": f"crashed: exit status {code}"}


def _serve(channel: socket.socket, functions: ModuleType, seconds: float, most: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process, in C code too
    for line in channel.makefile("rb"):
        number, name, arguments = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            reply = {"value": getattr(functions, name)(*arguments)}
        except MemoryError:
            os._exit(_NO_MEMORY)
        except Exception as error:  # noqa: BLE001, raised again by who has called
            reply = {"raised": f"{type(error).__name__}: {error}"[:500]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _tell(channel, {"number": number, **reply})


def _tell(channel: socket.socket, reply: dict[str, Any]) -> None:
    channel.sendall(json.dumps(reply).encode() + b"\n")
