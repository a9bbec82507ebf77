from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.killable import Killable, Lost

MODULE = """
import os, signal, sys, time

CALLS = []

def warm_up():
    CALLS.append("warm")

def echo(*values):
    CALLS.append(values)
    return [list(values), len(CALLS)]

def pid():
    return [os.getpid(), os.getppid()]

def power():
    return 9 ** 9 ** 9 > 0

def loop():
    while True:
        pass

def work(seconds):
    begun = time.process_time()
    while time.process_time() - begun < seconds:
        pass

def sleep(seconds):
    time.sleep(seconds)

def fill():
    return len(bytearray(1 << 40))

def die(once):
    if not os.path.exists(once):
        open(once, "w").close()
        os._exit(7)
    return "alive"

def crash():
    os.kill(os.getpid(), signal.SIGSEGV)

def fail():
    raise ValueError("no")
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "bounded_module.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    yield "bounded_module"
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def worker(module: str) -> Killable:
    return Killable(module, seconds=0.3)


def test_a_call_returns_what_the_function_returns(worker: Killable) -> None:
    assert worker.call("echo", 1, "ä\ud800", [None, 2.5])[0] == [1, "ä\ud800", [None, 2.5]]


def test_the_process_is_kept_from_call_to_call(worker: Killable) -> None:
    assert worker.call("pid") == worker.call("pid")
    assert worker.call("pid")[0] != os.getpid()


@pytest.mark.parametrize("function", ["power", "loop"])
def test_what_computes_for_ever_is_ended_also_in_c_code(worker: Killable, function: str) -> None:
    forked_by = worker.call("pid")[1]
    with pytest.raises(Lost, match=r"timed out after 0\.3 s") as lost:
        worker.call(function)
    assert lost.value.kind == "timeouts"
    # Another worker of the same process, which has its imports already, and no memory of calls.
    assert worker.call("pid")[1] == forked_by
    assert worker.call("echo", 1) == [[1], 2]


def test_what_a_call_took_does_not_count_for_the_next(worker: Killable) -> None:
    for _ in range(4):  # 0.4 s in all, and each may have 0.3 s
        with pytest.raises(RuntimeError):
            worker.call("fail")
        worker.call("work", 0.1)


def test_what_only_waits_is_ended_by_the_clock(module: str) -> None:
    worker = Killable(module, seconds=0.02)
    with pytest.raises(Lost, match="timed out"):
        worker.call("sleep", 60)
    assert worker.call("echo")[0] == []


@pytest.mark.parametrize(("function", "how"), [("crash", "exit status -11"), ("fill", "memory")])
def test_what_crashes_again_is_lost_and_counted_as_a_crash(
    worker: Killable, function: str, how: str
) -> None:
    with pytest.raises(Lost, match=how) as lost:
        worker.call(function)
    assert lost.value.kind == "crashes"
    assert worker.call("echo", 1)[0] == [1]


def test_what_crashes_once_is_asked_again(worker: Killable, tmp_path: Path) -> None:
    assert worker.call("die", str(tmp_path / "once")) == "alive"


def test_a_worker_that_died_between_two_calls_is_not_the_next_calls_fault(
    worker: Killable,
) -> None:
    os.kill(worker.call("pid")[0], signal.SIGKILL)
    assert worker.call("echo", 1)[0] == [1]
    os.kill(worker.call("pid")[1], signal.SIGKILL)
    assert worker.call("echo", 2)[0] == [2]


def test_what_raises_is_named_with_its_function(worker: Killable) -> None:
    with pytest.raises(RuntimeError, match="bounded_module:fail raised ValueError: no"):
        worker.call("fail")


def test_threads_take_turns(worker: Killable) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(worker.call("echo", i)[0][0]))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(8))


def test_a_module_that_cannot_be_imported_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        Killable("no_such_module", seconds=1).call("echo")


def test_it_ends_with_the_process_that_started_it(module: str) -> None:
    program = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from rewards.killable import Killable\n"
        f"print(*Killable({module!r}, seconds=1).call('pid'), flush=True)\n"
        "import os; os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
