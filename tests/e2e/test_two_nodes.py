"""Two launchers with node ranks of their own, as two machines would have them, over gloo."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import kill_ranks
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPES = Path(__file__).parents[2] / "recipes"

STEPS = {**kill_ranks.OPTIONS, "max_steps": 60}
WORDS = [word for name, value in STEPS.items() for word in (f"--{name}", str(value))]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def job(output):
    return [str(RECIPES / "arithmetic.py"), "--output_dir", str(output), *WORDS]


def torchrun(place, node, port, output):
    """The launcher of one machine, which starts its process again where one has failed."""
    # Torch's launcher shares one store among restarts by default, and then waits for ever where a
    # new launcher joins those that were there before.
    words = ["env", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1", sys.executable, "-m"]
    words += ["torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    words += ["--max_restarts", "3", "--rdzv_backend", "c10d"]
    words += ["--rdzv_id", "mine", "--rdzv_endpoint", f"127.0.0.1:{port}"]
    words += ["--local_addr", "127.0.0.1"]
    return kill_ranks.Run(place / f"node-{node}", [*words, *job(output)])


def accelerated(place, node, port, output, cwd=None):
    """The launcher of one machine, by the configuration for several."""
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    words += [str(RECIPES / "accelerate" / "two_nodes.yaml"), "--gpu_ids=-1"]
    words += ["--machine_rank", str(node), "--main_process_port", str(port)]
    return kill_ranks.Run(place / f"node-{node}", [*words, *job(output)], cwd)


def wait_for(path, runs):
    """Until a file is there, while all launchers run."""
    until = time.monotonic() + 200
    while not path.exists():
        assert time.monotonic() < until, screens(runs)
        assert all(run.launcher.poll() is None for run in runs), screens(runs)
        time.sleep(0.02)


def worker(run):
    (pid,) = [p for p in (run.pid(0), run.pid(1)) if p is not None]
    return pid


def screens(runs):
    return "\n".join(run.log.read_text(errors="replace") for run in runs)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What two processes of one machine come to."""
    place = tmp_path_factory.mktemp("undisturbed")
    run = kill_ranks.Run(place / "log", [*kill_ranks.LAUNCH[:-1], *job(place / "run")])
    run.wait()
    assert run.launcher.returncode == 0, screens([run])
    return kill_ranks.outcome(place / "run")


@pytest.fixture
def started():
    """Runs that are ended with the test."""
    runs = []
    yield runs
    for run in runs:
        run.end()


def test_a_killed_process_is_started_again_on_both_machines_and_the_run_goes_on(
    tmp_path, undisturbed, started
):
    output, port = tmp_path / "run", free_port()
    started += [torchrun(tmp_path, node, port, output) for node in (0, 1)]
    wait_for(output / "checkpoint-000010", started)
    os.kill(worker(started[1]), signal.SIGKILL)
    for run in started:
        run.wait()
        assert run.launcher.returncode == 0, screens(started)
    assert "is gone without a word" in screens(started)
    assert kill_ranks.outcome(output) == undisturbed


def test_a_machine_that_is_lost_may_join_again(tmp_path, undisturbed, started):
    output, port = tmp_path / "run", free_port()
    started.append(torchrun(tmp_path, 0, port, output))  # the first one holds the meeting point
    time.sleep(8)
    started.append(torchrun(tmp_path, 1, port, output))
    wait_for(output / "checkpoint-000010", started)
    started[1].end()
    time.sleep(2)
    started[1] = torchrun(tmp_path, 1, port, output)
    for run in started:
        run.wait()
        assert run.launcher.returncode == 0, screens(started)
    assert "is gone without a word" in screens(started)
    assert kill_ranks.outcome(output) == undisturbed


def test_without_restarts_both_machines_end_and_the_same_commands_go_on(
    tmp_path, undisturbed, started
):
    output, port = tmp_path / "run", free_port()
    started += [accelerated(tmp_path, node, port, output) for node in (0, 1)]
    wait_for(output / "checkpoint-000010", started)
    os.kill(worker(started[1]), signal.SIGKILL)
    for run in started:
        assert run.wait(30) < 30, screens(started)
        assert run.launcher.returncode == 1
    assert "process 1 (pid" in started[0].log.read_text()
    started += [accelerated(tmp_path, node, port, output) for node in (0, 1)]
    for run in started[2:]:
        run.wait()
        assert run.launcher.returncode == 0, screens(started[2:])
    assert kill_ranks.outcome(output) == undisturbed


def test_a_checkpoint_that_only_one_machine_has_is_refused(tmp_path, started):
    """Machines without shared storage, played by two folders to start in."""
    places = [tmp_path / "disk-0", tmp_path / "disk-1"]
    port = free_port()
    for node, place in enumerate(places):
        place.mkdir()
        started.append(accelerated(tmp_path, node, port, "run", place))
    for run in started:
        run.wait()
        assert run.launcher.returncode == 0, screens(started)
    assert not (places[1] / "run").exists()  # the main process alone writes
    started += [accelerated(tmp_path, n, port, "run", place) for n, place in enumerate(places)]
    for run in started[2:]:
        run.wait()
        assert run.launcher.returncode == 1
    assert "checkpoint-000060, which process 1 does not find" in started[2].log.read_text()
