"""The layers of one run: found out once per server, applied in every child before it reads a job.

"rlimits" bound what the run may use, "capabilities" are dropped, "landlock" limits which files can
be opened, "seccomp" limits which system calls exist at all, "namespaces" (around the server) hide
the rest of the machine. Files are confined by the first of three that works: Landlock, the
server's mount namespace, or a filter that lets nothing be opened.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from rewards.sandbox import kernel
from rewards.sandbox.library import NOTHING_OPENED, Library
from rewards.sandbox.limits import Limits
from rewards.sandbox.policy import build_filter

# The server keeps the Landlock ruleset at this descriptor until the child has entered it.
RULESET_AT = 4
_HIGHEST_DESCRIPTOR = 4096
_STACK_BYTES = 64 << 20

# Rights that each Landlock version brought: the files' (from bit 0), the network's, the scopes.
_FILE_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}
_NETWORK_RIGHTS = {4: 0b11}  # TCP bind and connect
_SCOPES = {6: 0b11}  # abstract unix sockets and signals
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3


@dataclass(frozen=True)
class Confinement:
    """What a child puts on itself. `filter` None and `ruleset` False: that layer is off."""

    limits: Limits
    with_rlimits: bool
    ruleset: bool
    filter: bytes | None

    def apply(self, cpu_seconds: int) -> None:
        """Put every layer on this process, for good; the last is the filter.

        Raises:
            OSError: A layer did not come on; the caller must end the process.
        """
        if self.with_rlimits:
            set_rlimits(self.limits, cpu_seconds)
        if self.ruleset:
            kernel.landlock_restrict(RULESET_AT)
            os.close(RULESET_AT)
        if self.filter is not None:
            kernel.install_filter(self.filter)


def set_rlimits(limits: Limits, cpu_seconds: int) -> None:
    """Set hard limits of this process; what it may not have at all is 0."""
    wanted = {
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_STACK: _STACK_BYTES,
        # Nothing is ever written but pipes, and those have no size.
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for kind, value in wanted.items():
        hardest = resource.getrlimit(kind)[1]
        if hardest != resource.RLIM_INFINITY:
            value = min(value, hardest)
        resource.setrlimit(kind, (value, value))


def make_ruleset(library: Library) -> None:
    """Make the Landlock ruleset (only `library` can be read) at `RULESET_AT`.

    Raises:
        OSError: The kernel has no Landlock.
    """
    version = kernel.landlock_version()
    tables = (_FILE_RIGHTS, _NETWORK_RIGHTS, _SCOPES)
    rights = [max((v for k, v in table.items() if k <= version), default=0) for table in tables]
    # Older kernels know a shorter structure.
    words = 1 if version < 4 else 2 if version < 6 else 3
    ruleset = kernel.landlock_ruleset(struct.pack(f"={words}Q", *rights[:words]))
    for path in library.expanded():
        folder = _READ_FOLDER if os.path.isdir(path) else 0
        kernel.landlock_allow(ruleset, path, _READ_FILE | folder)
    for path in library.listed():
        kernel.landlock_allow(ruleset, path, _READ_FOLDER)
    os.dup2(ruleset, RULESET_AT, inheritable=False)
    os.close(ruleset)


def find_layers(
    limits: Limits, library: Library, namespaces: str, without: frozenset[str]
) -> tuple[Confinement, dict[str, str]]:
    """Return what a child of this server can put on, and what became of every layer.

    Drops this process's own capabilities and its way to new privileges on the way, so that every
    child starts without them.

    Args:
        limits: Of every run.
        library: What a program may read.
        namespaces: What became of that layer, decided before: "on" or "off: why".
        without: Layers to leave out; tests only. "files" leaves reading unconfined where neither
            Landlock nor a mount namespace confines it, instead of forbidding to open anything.
    """
    filters = {may: build_filter(kernel.architecture(), may_open=may) for may in (True, False)}
    trials: dict[str, Callable[[], None]] = {
        "capabilities": lambda: _drop_privileges(keep_capabilities=False),
        "rlimits": lambda: set_rlimits(limits, cpu_seconds=1),
        "landlock": lambda: _try_landlock(library),
        "seccomp": lambda: kernel.install_filter(filters[True]),
    }
    layers = {"namespaces": namespaces}
    for name, trial in trials.items():
        layers[name] = "off: left out" if name in without else _tried(trial)
    _drop_privileges(keep_capabilities=layers["capabilities"] != "on")
    if layers["landlock"] == "on":
        make_ruleset(library)
    layers["files"] = _file_layer(layers, without)
    confinement = Confinement(
        limits,
        with_rlimits=layers["rlimits"] == "on",
        ruleset=layers["landlock"] == "on",
        filter=filters[True] if layers["seccomp"] == "on" else None,
    )
    if layers["files"] == NOTHING_OPENED and confinement.filter is not None:
        confinement = replace(confinement, filter=filters[False])
    return confinement, layers


def _file_layer(layers: dict[str, str], without: frozenset[str]) -> str:
    if layers["landlock"] == "on":
        return "on: Landlock"
    if layers["namespaces"] == "on":
        return "on: mount namespace"
    if "files" in without or layers["seccomp"] != "on":
        return "off: neither Landlock nor a mount namespace nor seccomp confines reading"
    return NOTHING_OPENED


def _drop_privileges(*, keep_capabilities: bool) -> None:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if not keep_capabilities:
        kernel.drop_capabilities()


def _try_landlock(library: Library) -> None:
    make_ruleset(library)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.landlock_restrict(RULESET_AT)


def _tried(trial: Callable[[], None]) -> str:
    """Return "on" if `trial` works in a child, which is thrown away, or "off: why"."""
    ready, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        outcome = "on"
        try:
            kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
            trial()
        except (OSError, ValueError) as refused:
            outcome = f"off: {refused}"
        os.write(report, json.dumps(outcome).encode())
        os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)  # The filter forbids to kill.
    os.close(report)
    told = b"".join(iter(lambda: os.read(ready, 4096), b""))
    os.close(ready)
    os.waitpid(pid, 0)
    return str(json.loads(told)) if told else "off: the trial died"


def close_other_descriptors(ruleset: bool) -> None:
    """Close everything but stdin, stdout, stderr, the RPC socket and the ruleset."""
    os.closerange(RULESET_AT + 1 if ruleset else RULESET_AT, _HIGHEST_DESCRIPTOR)
