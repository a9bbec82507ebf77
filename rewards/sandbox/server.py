"""The fork server: an interpreter of its own that forks one confined child per run.

It is exec'd, never forked from the process that trains, so nothing of that process is in its
memory. It never reads a job: a child gets its pipes and its socket, confines itself and only then
reads what to do. One thread, no state between runs. It ends when its control socket does.

Messages on the control socket, one JSON object each; every one is answered:
    {"limits", "runner", "without", "parent"}   the first; answered by the layers
    {"start", "cpu", "modules", "entry"} + 4 fds   answered by {"pid"} + a pidfd
    {"end": pid}   ends that child if it still runs; answered by how it ended
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import importlib.util
import json
import os
import random
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rewards.sandbox import confinement, kernel, namespaces, preloading
from rewards.sandbox.errors import NOT_CONFINED
from rewards.sandbox.library import find_library
from rewards.sandbox.limits import Limits

CONTROL_AT = RPC_AT = 3
_LONGEST_MESSAGE = 1 << 16
_ORPHAN_CHECK_MS = 2000
Entry = Callable[[int], int]


@dataclass(frozen=True)
class Server:
    """What the server's loop needs; nothing in it changes from run to run."""

    control: socket.socket
    parent: int
    confinement: confinement.Confinement
    entries: dict[str, Entry]

    def serve(self) -> None:
        """Answer messages until the control socket or the parent is gone."""
        while _wait_readable(self.control, self.parent):
            raw, descriptors, _, _ = socket.recv_fds(self.control, _LONGEST_MESSAGE, 4)
            if not raw:
                return
            message = json.loads(raw)
            if "end" in message:
                self.control.send(json.dumps(_end(message["end"])).encode())
            elif len(descriptors) == RPC_AT + 1:
                self._start(message, descriptors)
            else:
                # Short of descriptors, the kernel hands over fewer. A child without its own
                # socket would be left with the server's.
                raise OSError(errno.EMFILE, "descriptors were lost on the way")

    def _start(self, message: dict[str, object], descriptors: Sequence[int]) -> None:
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._run(message, descriptors, server)
        for descriptor in descriptors:
            os.close(descriptor)
        watch = kernel.pidfd_open(pid)
        socket.send_fds(self.control, [json.dumps({"pid": pid}).encode()], [watch])
        os.close(watch)

    def _run(self, message: dict[str, object], descriptors: Sequence[int], server: int) -> None:
        """Be the child: confine, run, and leave without going back into the server's loop."""
        status = 1
        leave = os._exit
        try:
            entry = self.entries[str(message["entry"])]
            self._confine(message, descriptors, server)
            try:
                status = entry(RPC_AT)
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
            finally:
                if sys.exc_info()[0] is not None:
                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
        finally:
            leave(status & 0xFF)

    def _confine(self, message: dict[str, object], descriptors: Sequence[int], server: int) -> None:
        try:
            os.setsid()
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != server:
                os.kill(os.getpid(), signal.SIGKILL)
            for target, source in enumerate(descriptors):
                os.dup2(source, target)
            confinement.close_other_descriptors(self.confinement.ruleset)
            # Python reseeds after a fork; here every run starts from the same numbers.
            random.seed(0)
            preloading.import_named(message["modules"])
            self.confinement.apply(int(str(message["cpu"])))
        except (OSError, ValueError):
            traceback.print_exc()
            sys.stderr.flush()
            os.kill(os.getpid(), NOT_CONFINED)


def _end(pid: int) -> dict[str, object]:
    """Make sure that child `pid` is gone and say how it went."""
    gone = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    # Unreaped, it keeps the number of its group: where no filter forbids to fork, what it has
    # forked goes with it.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if not gone:
        os.kill(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    return {
        "status": status,
        "killed": not gone,
        "cpu": used.ru_utime + used.ru_stime,
        "memory": used.ru_maxrss << 10,
    }


def _wait_readable(control: socket.socket, parent: int) -> bool:
    """Wait for a message; False if the parent is gone (another process may hold the socket)."""
    waiting = select.poll()
    waiting.register(control, select.POLLIN)
    while not waiting.poll(_ORPHAN_CHECK_MS):
        if os.getppid() != parent:
            return False
    return True


def _load_runner(named: str) -> Entry:
    """Return `main` of a module of this package, or of a file (tests only)."""
    if named.endswith(".py"):
        spec = importlib.util.spec_from_file_location("injected_runner", named)
        if spec is None or spec.loader is None:
            raise ImportError(f"no runner at {named}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(f"rewards.sandbox.{named}")
    entry: Entry = module.main
    return entry


def _stand_guard(child: int, parent: int) -> None:
    """Wait, outside the namespaces, for the end of the server or of the parent."""
    watch = select.poll()
    watch.register(kernel.pidfd_open(child), select.POLLIN)
    while not watch.poll(_ORPHAN_CHECK_MS):
        if os.getppid() != parent:
            break
    # The server inside dies with this process. Waiting for one that is gone keeps its CPU time
    # in the parent's account.
    os.waitpid(child, os.WNOHANG)
    os._exit(0)


def _enter_namespaces(parent: int, without: frozenset[str]) -> str:
    """Go on in a child inside new namespaces, if there can be any; returns "on" or "off: why"."""
    if "namespaces" in without:
        return "off: left out"
    try:
        child = namespaces.clone_confined(find_library())
    except OSError as refused:
        return f"off: {refused}"
    if child:
        os.close(CONTROL_AT)
        _stand_guard(child, parent)
    return "on"


def _volunteer_for_oom() -> None:
    """Ask the kernel to end the sandbox before the training when memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # Best effort: a container without /proc is no reason to refuse.


def _take_control() -> socket.socket:
    """Move the control socket from stdin, where the parent put it, out of the way."""
    os.dup2(0, CONTROL_AT, inheritable=False)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return socket.socket(fileno=CONTROL_AT)


def main() -> None:
    """Set the server up as its first message says, answer with the layers, serve."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # An ignored SIGCHLD would be inherited, and then no child could be waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    control = _take_control()
    setup = json.loads(control.recv(_LONGEST_MESSAGE))
    without = frozenset(setup["without"])
    preloading.import_usual()
    entries = {"runner": _load_runner(setup["runner"]), "probes": _load_runner("probes")}
    sys.path_importer_cache.clear()
    _volunteer_for_oom()
    state = _enter_namespaces(setup["parent"], without)
    parent = os.getppid()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    # Keeps the place of the ruleset: no descriptor of a run may ever land there.
    os.dup2(CONTROL_AT, confinement.RULESET_AT, inheritable=False)
    limits = Limits(**setup["limits"])
    confined, layers = confinement.find_layers(limits, find_library(), state, without)
    control.send(json.dumps({"layers": layers}).encode())
    gc.collect()
    gc.freeze()
    Server(control, parent, confined, entries).serve()
    os._exit(0)
