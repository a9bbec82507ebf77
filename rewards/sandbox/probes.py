"""What a confined child tries for the self-test, in place of a program.

Each probe does what a hostile program would do, in a form that harms nothing if it works. It
answers why it was stopped, or None if nothing stopped it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import socket
from collections.abc import Callable, Mapping

from rewards.sandbox import kernel

# What a filter answers, as opposed to a kernel that looked at the arguments and declined.
_REFUSED = (errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOSYS, errno.EAGAIN)

Facts = Mapping[str, object]
Probe = Callable[[Facts], object]


def _socket(facts: Facts) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


def _fork(facts: Facts) -> None:
    if os.fork() == 0:
        os._exit(0)
    os.wait()


def _exec(facts: Facts) -> None:
    os.execv("/nonexistent/program", ["program"])


def _read(facts: Facts) -> None:
    os.close(os.open(str(facts["canary"]), os.O_RDONLY))


def _write(facts: Facts) -> None:
    path = f"{facts['canary']}.written"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    os.unlink(path)


def _chmod(facts: Facts) -> None:
    os.chmod(str(facts["canary"]), 0o600)


def _signal_parent(facts: Facts) -> None:
    os.kill(int(str(facts["parent"])), 0)


def _signal_by_fcntl(facts: Facts) -> None:
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())


def _memory(facts: Facts) -> None:
    mmap.mmap(-1, int(str(facts["memory_bytes"]))).close()


def _descriptors(facts: Facts) -> None:
    copies: list[int] = []
    try:
        for _ in range(int(str(facts["open_files"]))):
            copies.append(os.dup(0))
    finally:
        for copy in copies:
            os.close(copy)


def _ptrace(facts: Facts) -> None:
    kernel.call("ptrace", 0, 0, 0, 0)


def _io_uring(facts: Facts) -> None:
    kernel.call("io_uring_setup", 1, None)


def _bpf(facts: Facts) -> None:
    kernel.call("bpf", 0, None, 0)


def _namespace(facts: Facts) -> None:
    kernel.call("unshare", 0)


def _inherited(facts: Facts) -> None:
    for descriptor in range(4, 256):
        try:
            os.fstat(descriptor)
        except OSError:
            continue
        return
    raise PermissionError(errno.EBADF, "only stdin, stdout, stderr and the RPC socket are open")


def _environment(facts: Facts) -> None:
    expected = facts["environment"]
    # LC_CTYPE is what Python itself adds.
    if isinstance(expected, list) and set(os.environ) <= {*expected, "LC_CTYPE"}:
        raise PermissionError(errno.ENOENT, "the environment is the sandbox's own")


# name -> (the layer that must stop it, what to try).
PROBES: dict[str, tuple[str, Probe]] = {
    "open a socket": ("seccomp", _socket),
    "fork": ("seccomp", _fork),
    "execute a program": ("seccomp", _exec),
    "write a file": ("seccomp", _write),
    "change a file's mode": ("seccomp", _chmod),
    "signal the parent": ("seccomp", _signal_parent),
    "signal by fcntl": ("seccomp", _signal_by_fcntl),
    "ptrace": ("seccomp", _ptrace),
    "io_uring": ("seccomp", _io_uring),
    "bpf": ("seccomp", _bpf),
    "make a namespace": ("seccomp", _namespace),
    "read a file outside the library": ("files", _read),
    "take more memory than allowed": ("rlimits", _memory),
    "open more files than allowed": ("rlimits", _descriptors),
    "find an inherited descriptor": ("process", _inherited),
    "see the parent's environment": ("process", _environment),
}


def _stopped_by(layer: str, probe: Probe, facts: Facts) -> str | None:
    try:
        probe(facts)
    except OSError as refused:
        if layer == "seccomp" and refused.errno not in _REFUSED:
            return None
        return str(refused)
    return None


def main(rpc: int) -> int:
    """Answer the first request with what stopped each probe; the job has the facts."""
    with socket.socket(fileno=rpc) as connection, connection.makefile("rwb") as lines:
        facts = json.loads(lines.readline())
        lines.readline()  # Only bytes that were asked for are taken.
        answers = {
            name: _stopped_by(layer, probe, facts) for name, (layer, probe) in PROBES.items()
        }
        lines.write(json.dumps(answers).encode() + b"\n")
    return 0
