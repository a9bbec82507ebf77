"""Two processes of which one fails: both end within seconds, and the screen says why."""

from __future__ import annotations

import json
import sys

import pytest
from launching import RECIPES, TWO_PROCESSES, finished

# Forked from one program that has imported everything. Without a launcher process 0 holds the
# store, too, and nobody sends a signal: each has to find out by itself.
SCRIPT = """
import json, os, signal, socket, sys, time
from pathlib import Path

os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as the command line has it before torch is there

import rl4lm.trainer
from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.cli import run
from rl4lm.commandline.commands import quiet_libraries

quiet_libraries()
calls = [0]


def reward(completions, **_):
    calls[0] += 1
    if calls[0] == 3 and os.environ["RANK"] == rank_that_fails:
        (folder / "began").write_text(str(time.monotonic()))
        fail()
    return [float(len(c)) for c in completions]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(1000)


def refuse():
    raise ValueError("no such unit: furlong")


def leave():
    sys.exit(0)


def main():
    options = {"prompts_per_step": 4, "num_generations": 2, "max_steps": 100000, "save_steps": 1}
    options |= {"eval_samples": 0, "noise_every": 0, "save_total_limit": 2, "logging_steps": 1000}
    options |= {"ddp_timeout": 3.0 if fail is hang else 1000.0, "max_completion_length": 4}
    config = ReinforceConfig(output_dir=str(folder / "run"), sample_table_steps=0, **options)
    ReinforceTrainer(reward_funcs=reward, args=config).train()


def child(rank, port):
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(common, MASTER_PORT=port, ACCELERATE_USE_CPU="true", RANK=rank)
    os.environ["LOCAL_RANK"] = rank
    screen = os.open(folder / f"screen-{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(screen, 1)
    os.dup2(screen, 2)
    code = 70
    try:
        code = run(main)
    except SystemExit as ended:
        code = ended.code
    finally:
        os._exit(code)


for name, fail, rank_that_fails in [
    ("dies-0", die, "0"), ("dies-1", die, "1"), ("hangs-1", hang, "1"), ("raises-1", refuse, "1"),
]:
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    began = time.monotonic()
    pids = {rank: os.fork() or child(rank, port) for rank in "01"}
    codes = {r: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for r, pid in pids.items()}
    seconds = time.monotonic() - float((folder / "began").read_text())
    told = {"pids": pids, "codes": codes, "seconds": seconds, "all": time.monotonic() - began}
    (folder / "told.json").write_text(json.dumps(told))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """By name of a failure: exit codes, process ids, seconds and what both screens showed."""
    folder = tmp_path_factory.mktemp("failures")
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    finished([sys.executable, "script.py", folder], folder, seconds=250)
    return {
        told.parent.name: {
            **json.loads(told.read_text()),
            "screens": [(told.parent / f"screen-{rank}").read_text() for rank in "01"],
        }
        for told in folder.glob("*/told.json")
    }


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_is_killed_is_named_by_the_other_which_ends(ended, rank):
    of = ended[f"dies-{rank}"]
    other = "1" if rank == "0" else "0"
    assert of["codes"] == {rank: -9, other: 1}
    assert of["seconds"] < 60
    screen = of["screens"][int(other)]
    assert f"process {rank} (pid {of['pids'][rank]} on " in screen
    assert "is gone without a word; it was last seen" in screen
    assert "--resume_from_checkpoint true with the same command goes on from" in screen
    assert screen.count("error:") == 1
    assert "Traceback" not in screen
    assert "Connection closed" not in screen


@pytest.mark.timeout(300)
def test_a_reward_that_hangs_ends_the_run_after_ddp_timeout_and_is_named(ended):
    of = ended["hangs-1"]
    assert of["codes"] == {"0": 1, "1": 1}
    both = "".join(of["screens"])
    assert f"process 1 (pid {of['pids']['1']} on " in both
    assert "has been scoring with the reward 'reward' in step 3 for " in both
    assert "(ddp_timeout)" in both
    assert both.count("error:") == 1  # one of them speaks
    assert "Traceback" not in both


@pytest.mark.timeout(300)
def test_an_error_of_one_process_is_told_once_and_the_other_refers_to_it(ended):
    of = ended["raises-1"]
    assert of["codes"] == {"0": 1, "1": 1}
    first, second = of["screens"]
    assert "no such unit: furlong" in second
    assert f"process 1 (pid {of['pids']['1']} on " in first
    assert "has failed and says why itself" in first
    assert "furlong" not in first
    assert "Traceback" not in first


BAD = """
import os
calls = [0]
def bad(completions, **_):
    calls[0] += 1
    if os.environ["RANK"] == "1" and calls[0] == 3:
        raise ValueError("no such unit: furlong")
    return [float(len(c)) for c in completions]
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_table_of_the_launcher_names_who_failed_as_the_root(tmp_path):
    (tmp_path / "mine.py").write_text(BAD, encoding="utf-8")
    words = ["--reward_funcs", "mine.py:bad", "--accuracy_func", "none", "--eval_samples", "0"]
    words += ["--output_dir", "run", "--prompts_per_step", "4"]
    command = [*TWO_PROCESSES, RECIPES / "arithmetic.py", *words]
    done = finished(command, tmp_path, code=1, seconds=250)
    assert done.stderr.count("process 1): error: the reward 'bad' raised ValueError") == 1
    assert done.stderr.count("has failed and says why itself") == 1
    root = done.stderr.partition("Root Cause")[2]
    assert "rank      : 1" in root
    assert "no such unit: furlong" in root
    assert "gloo" not in done.stderr
