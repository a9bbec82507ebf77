"""A parent that is killed leaves nothing behind; a big parent with threads is never forked."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUNNER = str(Path(__file__).with_name("evaluating_runner.py"))

_PARENT = """
import json, os, sys, threading
from rewards.sandbox import Sandbox
sandbox = Sandbox(2, _runner={runner!r}, _without=frozenset({without!r}))
ballast = bytearray(os.urandom(1 << 20) * 64)
for _ in range(20):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
def judge(runner, item):
    with runner.start(json.dumps("x = 1").encode(), seconds=60) as session:
        if item == 0:
            return session.ask(b"x")
        os.write(1, b"busy\\n")
        return session.ask(b"__import__('time').sleep(50)")
assert sandbox.map(judge, [0]) == [b"1"]
{fork}
sandbox.map(judge, [1, 2])
"""


def descendants(root):
    children = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(name))
    found, waiting = set(), [root]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


def alive(pids):
    left = set()
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as file:
                state = file.read().rpartition(")")[2].split()[0]
        except OSError:
            continue
        # A zombie waits only for whoever adopted it.
        if state not in "ZX":
            left.add(pid)
    return left


@contextlib.contextmanager
def running_parent(without, fork=""):
    code = _PARENT.format(runner=RUNNER, without=list(without), fork=fork)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with parent:
        try:
            for _ in range(2):
                assert parent.stdout.readline() == "busy\n"
            yield parent
        finally:
            parent.kill()


def wait_until_gone(pids, seconds):
    deadline = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive(pids)


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")
@pytest.mark.parametrize("without", [(), ("namespaces",)], ids=["namespaces", "none"])
def test_a_killed_parent_leaves_no_process(without):
    with running_parent(without) as parent:
        processes = descendants(parent.pid)
        # Two servers with one run each, and outside the namespaces their two guards.
        assert len(processes) == (4 if without else 6)
        parent.kill()
        assert wait_until_gone(processes, seconds=2) == set()


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")
@pytest.mark.parametrize("without", [(), ("namespaces",)], ids=["namespaces", "none"])
def test_not_even_if_a_forked_worker_of_the_parent_outlives_it(without):
    fork = "if os.fork() == 0:\n    import time; time.sleep(20); os._exit(0)"
    with running_parent(without, fork) as parent:
        everything = descendants(parent.pid)
        servers = {pid for pid in everything if descendants(pid)}
        (helper,) = {pid for pid in everything if not descendants(pid)} - _leaves_of(servers)
        parent.kill()
        try:
            assert wait_until_gone(everything - {helper}, seconds=6) == set()
            assert alive({helper}) == {helper}
        finally:
            os.kill(helper, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")
def test_processes_with_a_sandbox_each_do_not_disturb_each_other():
    code = _PARENT.format(runner=RUNNER, without=[], fork="sys.exit(7)")
    parents = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [parent.wait() for parent in parents] == [7] * 4


def _leaves_of(servers):
    return {pid for server in servers for pid in descendants(server) if not descendants(pid)}
