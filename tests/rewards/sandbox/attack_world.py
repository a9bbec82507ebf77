"""What the programs of `tests/attacks` are let loose on, and what they did to it.

A `World` has files, listeners and a process that must come to no harm. `damage` says what was done
since the last time, and repairs it, so that one program's damage is not held against the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

_FILES = ("secret.txt", "victim.txt", "victim2.txt", "victim3.txt")
_FOLDERS = ("/", "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", os.path.dirname(os.__file__))
_SIGNALS = [signal.SIGURG, signal.SIGUSR1, signal.SIGUSR2, signal.SIGIO, signal.SIGCONT]
_PR_SET_CHILD_SUBREAPER = 36


class World:
    """Canary files, listeners, and this very process, which programs may try to harm."""

    def __init__(self) -> None:
        # Orphans become children of this process instead of getting out of sight.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.folder = Path(tempfile.mkdtemp(prefix="attacks-"))
        self.mark = f"planted-{os.getpid()}"
        self._heard: list[str] = []
        self._sockets = list(self._listeners())
        self._make_files()
        for number in _SIGNALS:
            signal.signal(number, lambda number, frame: self._heard.append(f"signal {number}"))
        os.environ["HF_TOKEN"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "a secret"
        self._state = self._process_state()
        self._objects = _ipc_objects()
        self._servers: set[int] = set()

    def names(self, project: Path) -> dict[str, str]:
        """What stands for the places of this world in a program."""
        ports = [str(listener.getsockname()[1]) for listener in self._sockets[:2]]
        packages = [path for path in sys.path if path.endswith("-packages")]
        return {
            "@CANARY@": str(self.folder),
            "@MARK@": self.mark,
            "@PARENT@": str(os.getpid()),
            "@TCP@": ports[0],
            "@UDP@": ports[1],
            "@PROJECT@": str(project),
            "@PACKAGES@": repr(packages or ["/usr/lib/python3/dist-packages"]),
            "@NULL@": "\0",
        }

    def settle(self) -> None:
        """Take the processes that run now as the sandbox's own."""
        self._servers = _descendants()

    def damage(self) -> list[str]:
        """What was done since the last call; it is undone."""
        found = [*self._heard, *self._changed_files(), *self._planted_files(), *self._strays()]
        self._heard.clear()
        if (state := self._process_state()) != self._state:
            found.append("limits, priority or cores of the judging process")
            self._state = state
        if ctypes.CDLL(None).mq_unlink(f"/{self.mark}".encode()) == 0:
            found.append("message queue")
        for kind, identifier in _ipc_objects() - self._objects:
            found.append(f"System V {kind} {identifier}")
            subprocess.run(["ipcrm", f"-{kind[0]}", identifier], check=False)
        return found

    def close(self) -> None:
        """Remove everything."""
        for listener in self._sockets:
            listener.close()
        shutil.rmtree(self.folder)

    def _make_files(self) -> None:
        for name in _FILES:
            (self.folder / name).write_text(name)
        (self.folder / "empty").mkdir(exist_ok=True)
        self._before = self._files()

    def _files(self) -> dict[str, tuple[object, ...]]:
        told = {}
        for path in self.folder.iterdir():
            status = path.lstat()
            content = path.read_text() if path.is_file() else ""
            times = (status.st_mtime_ns, status.st_ctime_ns) if path.is_file() else ()
            told[path.name] = (status.st_mode, status.st_uid, status.st_gid, content, *times)
        return told

    def _changed_files(self) -> Iterator[str]:
        now = self._files()
        names = {name for name in {*now, *self._before} if now.get(name) != self._before.get(name)}
        if not names:
            return
        yield from (f"file {name}" for name in sorted(names))
        for name in {*names, "stolen.txt"}:
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                (self.folder / name).unlink()
        self._make_files()

    def _planted_files(self) -> Iterator[str]:
        for folder in {*_FOLDERS, os.path.expanduser("~"), os.getcwd()}:
            if not os.access(folder, os.R_OK):
                continue
            for name in os.listdir(folder):
                if name.startswith(self.mark):
                    path = Path(folder, name)
                    path.rmdir() if path.is_dir() else path.unlink()
                    yield f"planted {path}"

    def _strays(self) -> Iterator[str]:
        for pid in _descendants() - self._servers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            yield f"process {pid} is left"

    def _process_state(self) -> tuple[object, ...]:
        limits = [resource.getrlimit(kind) for kind in range(16)]
        return limits, os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)

    def _listeners(self) -> Iterator[socket.socket]:
        stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
        for name, family, kind, address in (
            ("TCP", socket.AF_INET, stream, ("127.0.0.1", 0)),
            ("UDP", socket.AF_INET, datagram, ("127.0.0.1", 0)),
            ("unix socket", socket.AF_UNIX, stream, str(self.folder / "sock")),
            ("abstract socket", socket.AF_UNIX, stream, "\0" + self.mark),
        ):
            listener = socket.socket(family, kind)
            listener.bind(address)
            if kind == stream:
                listener.listen()
            threading.Thread(target=self._listen, args=(listener, name), daemon=True).start()
            yield listener

    def _listen(self, listener: socket.socket, name: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                if listener.type == socket.SOCK_DGRAM:
                    listener.recv(100)
                else:
                    listener.accept()[0].close()
                self._heard.append(f"{name} was reached")


def _ipc_objects() -> set[tuple[str, str]]:
    """System V objects, as (kind, identifier)."""
    found = set()
    for kind, file in (("memory", "shm"), ("queue", "msg"), ("semaphore", "sem")):
        with contextlib.suppress(OSError), open(f"/proc/sysvipc/{file}") as lines:
            found |= {(kind, line.split()[1]) for line in list(lines)[1:]}
    return found


def _descendants() -> set[int]:
    """Processes that have this one among their ancestors, but for the ones that have ended."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
                parents[int(name)] = int(fields[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}
