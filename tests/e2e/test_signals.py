"""A run that is told to stop says so, exits as programs do, and keeps the lines it has written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from launching import RL4LM, finished

REWARD = """
import os, signal
def stops(completions, **kwargs):
    os.kill(os.getppid(), signal.{name})  # the run, whose child the process of a reward is
    return [0.0] * len(completions)
async def stops_while_awaited(completions, **kwargs):
    return stops(completions)
"""
SIZES = ["--prompts_per_step", "4", "--max_steps", "100000", "--eval_samples", "4"]


def _listen_to_interrupts() -> None:
    """What runs in the background of a shell is started with interrupts ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGTERM, 143, "terminated", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_run_with_its_exit_code_and_a_whole_log(number, code, word, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        [*RL4LM, "train", "--output_dir", str(run), *SIZES],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=_listen_to_interrupts,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        metrics = run / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert word in err
    assert "Traceback" not in err
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert not (run / "model").exists()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("function", "name", "code", "word"),
    [
        ("stops", "SIGTERM", 143, "terminated"),
        pytest.param("stops_while_awaited", "SIGINT", 130, "interrupted", marks=pytest.mark.slow),
        pytest.param("stops", "SIGINT", 130, "interrupted", marks=pytest.mark.slow),
        pytest.param("stops_while_awaited", "SIGTERM", 143, "terminated", marks=pytest.mark.slow),
    ],
)
def test_a_signal_that_arrives_in_a_reward_is_not_the_rewards_failure(
    function, name, code, word, tmp_path
):
    (tmp_path / "my.py").write_text(REWARD.format(name=name))
    asked = ["--output_dir", "run", "--reward_funcs", f"my.py:{function}", *SIZES]
    words = [*RL4LM, "train", *asked]
    done = finished(words, tmp_path, code=code, before=_listen_to_interrupts)
    assert word in done.stderr
    assert "Traceback" not in done.stderr


IN_PROCESS = """
import os, signal, sys
from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.cli import run

def stops(completions, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)
    return [0.0] * len(completions)

def main():
    config = ReinforceConfig(output_dir="run", prompts_per_step=4, max_steps=9, eval_samples=4)
    ReinforceTrainer(reward_funcs=stops, args=config).train()

sys.exit(run(main))
"""


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_nor_is_it_the_failure_of_a_function_in_the_runs_own_process(tmp_path):
    (tmp_path / "mine.py").write_text(IN_PROCESS)
    done = finished([sys.executable, "mine.py"], tmp_path, code=143)
    assert "terminated" in done.stderr
    assert "Traceback" not in done.stderr
