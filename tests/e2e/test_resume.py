"""A run that was cut off and resumed is, bit for bit, the run that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import RL4LM, TWO_PROCESSES, finished

from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.errors import ConfigError, DataError, OutputError, SaveError, Stopped, TrainingError
from rl4lm.rundir.durable import MANIFEST
from rl4lm.screen.console import Screen

SMALL: dict[str, Any] = {
    "prompts_per_step": 4,
    "num_generations": 4,
    "max_completion_length": 5,
    "max_steps": 7,
    "save_steps": 3,
    "eval_steps": 2,
    "eval_samples": 6,
    "noise_every": 3,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "torch_threads": 1,
}
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "adapters": {"use_peft": True},
    "several updates": {"num_iterations": 3, "loss_type": "dapo", "scale_rewards": "group"},
    "chosen prompts": {
        "num_iterations": 3,
        "dynamic_sampling": 2,
        "curriculum": "success",
        "curriculum_column": "answer",
        "curriculum_candidates": 2,
    },
    "reference and history": {"beta": 0.05, "kl_in": "loss", "baseline": "prompt_value"},
    "history of features": {"baseline": "linear_value", "optim": "sgd"},
}


class Crash(Exception):
    pass


class SignalAfter:
    """SIGTERM in the middle of a run, which then saves where it stands."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, state: Any, stats: Any) -> None:
        if stats.step == self._step:
            os.kill(os.getpid(), signal.SIGTERM)


class CrashAfter:
    """The end of a process, as far as files can tell: nothing is closed or saved after it."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, state: Any, stats: Any) -> None:
        if stats.step == self._step:
            raise Crash


def draws_noise(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """A reward with noise from the global generators, whose states must come back too."""
    import random

    import numpy as np

    noise = [0.1 * random.random() + 0.1 * np.random.rand() + 0.1 * float(torch.rand(()))]
    return [
        float(text == right) + noise[0] for text, right in zip(completions, answer, strict=True)
    ]


def run(
    output: Path,
    options: Mapping[str, Any],
    crash: int | None = None,
    stop: Any = CrashAfter,
    quiet: bool = True,
    **asked: Any,
) -> None:
    import random

    import numpy as np

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    config = ReinforceConfig(output_dir=str(output), **{**SMALL, **options})
    callbacks = [] if crash is None else [stop(crash)]
    trainer = ReinforceTrainer(
        args=config,
        reward_funcs=draws_noise,
        callbacks=callbacks,
        train_dataset=[{"prompt": f"{a}+{a + 1}=", "answer": str(2 * a + 1)} for a in range(10)],
        screen=Screen(quiet=quiet),
    )
    trainer.train(**asked)


def lines(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if not k.startswith("time/") and k != "tokens_per_second"}
        for row in rows
    ]


def same(a: Any, b: Any) -> bool:
    """Equality of nested values, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return (
            a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        )
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def last_state(run: Path) -> dict[str, Any]:
    state = torch.load(run / "checkpoint-000007" / "trainer_state.pt", weights_only=True)
    state["run"].pop("train_seconds")
    return state


def assert_identical(a: Path, b: Path) -> None:
    for name in [path.name for path in (a / "model").glob("*.safetensors")]:
        assert (a / "model" / name).read_bytes() == (b / "model" / name).read_bytes()
    assert same(last_state(a), last_state(b))
    assert lines(a / "metrics.jsonl") == lines(b / "metrics.jsonl")
    assert (a / "eval.jsonl").read_bytes() == (b / "eval.jsonl").read_bytes()
    pages = sorted(path.name for path in (a / "completions").iterdir())
    assert pages == sorted(path.name for path in (b / "completions").iterdir())
    for name in pages:
        assert (a / "completions" / name).read_bytes() == (b / "completions" / name).read_bytes()
    summaries = [json.loads((run / "summary.json").read_text()) for run in (a, b)]
    for summary in summaries:
        del summary["train_seconds"], summary["peak_memory_bytes"]
    assert summaries[0] == summaries[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Runs that nothing happened to, by kind, made when they are first asked for."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("undisturbed")
            run(made[kind], KINDS[kind])
        return made[kind]

    return of


# One step after a checkpoint, and two; 10 rows at 4 a step begin a new epoch within step 3.
@pytest.mark.parametrize("crash", [4, 5])
@pytest.mark.parametrize(
    "kind",
    ["full", "adapters", "several updates"]
    + [pytest.param(k, marks=pytest.mark.slow) for k in list(KINDS)[3:]],
)
def test_a_run_that_crashed_and_was_resumed_is_the_run_that_did_not(
    kind, crash, undisturbed, tmp_path
):
    with pytest.raises(Crash):
        run(tmp_path, KINDS[kind], crash=crash)
    run(tmp_path, KINDS[kind], resume_from_checkpoint=True)
    assert_identical(undisturbed(kind), tmp_path)


@pytest.mark.parametrize(
    ("kind", "step"), [("several updates", 4), ("several updates", 5), ("chosen prompts", 5)]
)
def test_a_run_that_was_stopped_between_the_updates_of_a_sampling_goes_on_exactly(
    kind, step, undisturbed, tmp_path
):
    """Steps 4 to 6 learn from one sampling, which the checkpoint has to bring along."""
    with pytest.raises(Stopped, match=f"after step {step} of 7; saved in"):
        run(tmp_path, KINDS[kind], crash=step, stop=SignalAfter)
    saved = torch.load(tmp_path / f"checkpoint-00000{step}" / "trainer_state.pt", weights_only=True)
    assert saved["ranks"][0]["experience"] is not None
    run(tmp_path, KINDS[kind], resume_from_checkpoint=True)
    assert_identical(undisturbed(kind), tmp_path)


def test_a_resumed_run_without_its_random_states_is_another_run(undisturbed, tmp_path, monkeypatch):
    """The control: the comparison sees a difference where there is one."""
    with pytest.raises(Crash):
        run(tmp_path, KINDS["full"], crash=5)
    monkeypatch.setattr("rl4lm.learner.set_random_states", lambda states: None)
    run(tmp_path, KINDS["full"], resume_from_checkpoint=True)
    with pytest.raises(AssertionError):
        assert_identical(undisturbed("full"), tmp_path)


def test_what_was_logged_after_the_checkpoint_is_cut_off(tmp_path):
    with pytest.raises(Crash):
        run(tmp_path, {}, crash=5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "los')  # a kill in the middle of a line
    with pytest.raises(Crash):
        run(tmp_path, {}, crash=4, resume_from_checkpoint=True)
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [row["step"] for row in lines(tmp_path / "eval.jsonl")] == [0, 2]
    pages = sorted(path.name for path in (tmp_path / "completions").iterdir())
    assert pages == [f"step-00000{k}.jsonl" for k in (1, 2, 3, 4)]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_broken_checkpoint_is_passed_over_and_named(tmp_path, undisturbed, capsys):
    with pytest.raises(Crash):
        run(tmp_path, {"save_steps": 2}, crash=5)
    flip(tmp_path / "checkpoint-000004" / "model.safetensors")
    config = ReinforceConfig(output_dir=str(tmp_path), **SMALL)
    from rl4lm.rundir.resume import find_start

    start = find_start(config, True)
    assert start.checkpoint == tmp_path / "checkpoint-000002"
    assert "checkpoint-000004 is passed over: model.safetensors has other content" in start.notes[0]
    run(tmp_path, KINDS["full"], resume_from_checkpoint=True)
    assert_identical(undisturbed("full"), tmp_path)


def test_a_broken_checkpoint_that_is_asked_for_is_refused(tmp_path):
    with pytest.raises(Crash):
        run(tmp_path, {}, crash=4)
    saved = tmp_path / "checkpoint-000003"
    (saved / MANIFEST).unlink()
    with pytest.raises(DataError, match=r"cannot be used: it has no manifest.json"):
        run(tmp_path, {}, resume_from_checkpoint=str(saved))


def test_with_no_checkpoint_yet_the_run_starts_over(tmp_path, undisturbed):
    with pytest.raises(Crash):
        run(tmp_path, {}, crash=2)
    run(tmp_path, {}, resume_from_checkpoint=True)
    assert_identical(undisturbed("full"), tmp_path)


def test_a_finished_run_without_checkpoints_is_not_started_over(tmp_path):
    run(tmp_path, {"save_steps": 0, "max_steps": 1})
    with pytest.raises(OutputError, match=r"finished run and no complete checkpoint"):
        run(tmp_path, {"save_steps": 0, "max_steps": 1, "resume_from_checkpoint": True})
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_another_option_is_refused_by_name_unless_one_insists(tmp_path):
    with pytest.raises(Crash):
        run(tmp_path, {}, crash=4)
    with pytest.raises(ConfigError, match=r"learning_rate: 0.001 in the checkpoint, 0.002 now"):
        run(tmp_path, {"learning_rate": 2e-3}, resume_from_checkpoint=True)
    run(tmp_path, {"learning_rate": 2e-3, "resume_anyway": True}, resume_from_checkpoint=True)
    assert len(lines(tmp_path / "metrics.jsonl")) == 7


def test_a_checkpoint_of_another_run_begins_a_run_of_its_own(tmp_path, undisturbed):
    with pytest.raises(Crash):
        run(tmp_path / "first", {}, crash=4)
    saved = tmp_path / "first" / "checkpoint-000003"
    run(tmp_path / "second", {}, resume_from_checkpoint=str(saved))
    assert [row["step"] for row in lines(tmp_path / "second" / "metrics.jsonl")] == [4, 5, 6, 7]
    first, second = last_state(undisturbed("full")), last_state(tmp_path / "second")
    assert same(first["learner"], second["learner"])
    assert same(first["ranks"], second["ranks"])
    assert len(lines(tmp_path / "first" / "metrics.jsonl")) == 4


def test_the_newest_and_the_best_checkpoints_stay(tmp_path):
    run(tmp_path, {"save_steps": 1, "eval_steps": 1, "save_total_limit": 2, "max_steps": 6})
    accuracy = {row["step"]: row["accuracy"] for row in lines(tmp_path / "eval.jsonl")[1:]}
    best = max(accuracy, key=lambda step: (accuracy[step], step))
    saved = {int(path.name[-6:]) for path in tmp_path.glob("checkpoint-*")}
    assert saved == {5, 6, best}


def test_weights_of_a_checkpoint_load_with_from_pretrained(undisturbed):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    saved = undisturbed("full") / "checkpoint-000003"
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert sum(p.numel() for p in model.parameters()) > 500_000
    assert AutoTokenizer.from_pretrained(saved)("1+1=")["input_ids"]


def test_a_gradient_that_stays_not_finite_ends_the_run_with_its_batches_kept(tmp_path, monkeypatch):
    from rl4lm.model import teacher_forcing

    tiled = teacher_forcing.tiled_gradient
    calls = iter(range(10**6))

    def poisoned(hidden: torch.Tensor, *rest: Any) -> Any:
        logprobs, gradient = tiled(hidden, *rest)
        return logprobs, gradient * (float("nan") if next(calls) > 3 else 1.0)

    monkeypatch.setattr(teacher_forcing, "tiled_gradient", poisoned)
    options = {"save_steps": 0, "noise_every": 0, "eval_steps": 0, "baseline": "none"}
    with pytest.raises(TrainingError, match="not finite for 3 steps in a row") as stopped:
        run(tmp_path, options)
    rows = lines(tmp_path / "metrics.jsonl")
    assert [row["updated"] for row in rows[-4:]] == [True, False, False, False]
    first = rows[-3]["step"]
    assert f"from step {first} on" in str(stopped.value)
    assert (tmp_path / f"checkpoint-{first:06d}" / MANIFEST).exists()
    assert (tmp_path / "completions" / f"step-{rows[-1]['step']:06d}.jsonl").exists()


def test_a_checkpoint_that_cannot_be_written_ends_no_run_and_costs_no_earlier_one(
    tmp_path, monkeypatch, capsys
):
    import rl4lm.saving as saving

    save = saving.save_checkpoint

    def full_at_six(policy: Any, directory: Path, *rest: Any) -> None:
        if directory.name == "checkpoint-000006":
            raise SaveError("No space left on device")
        save(policy, directory, *rest)

    monkeypatch.setattr(saving, "save_checkpoint", full_at_six)
    run(tmp_path, {}, quiet=False)
    assert "the last one is checkpoint-000003, the run goes on" in capsys.readouterr().out
    assert sorted(path.name[-1] for path in tmp_path.glob("checkpoint-*")) == ["3", "7"]
    assert len(lines(tmp_path / "metrics.jsonl")) == 7


COMMAND = [*RL4LM, "train", "--max_steps", "6", "--prompts_per_step", "4"]
COMMAND += ["--num_generations", "4", "--eval_samples", "0", "--torch_threads", "1"]
SLOW_REWARD = """
import time
def slow(completions, answer, **_):
    time.sleep(0.2)
    return [float(a == b) for a, b in zip(completions, answer)]
"""


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_one_signal_finishes_the_step_and_saves_and_the_message_says_how_to_go_on(
    number, code, tmp_path
):
    (tmp_path / "my.py").write_text(SLOW_REWARD)
    command = [*COMMAND, "--output_dir", "run", "--reward_funcs", "my.py:slow"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "--resume_from_checkpoint true goes on from there" in said
    assert "Traceback" not in said
    done = len(lines(metrics))
    assert 2 <= done < 6
    assert (tmp_path / "run" / f"checkpoint-{done:06d}" / MANIFEST).exists()
    finished([*command, "--resume_from_checkpoint", "true"], tmp_path)
    assert [row["step"] for row in lines(metrics)] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.timeout(120)
def test_a_second_signal_stops_at_once(tmp_path):
    (tmp_path / "my.py").write_text(SLOW_REWARD.replace("0.2", "60"))
    process = subprocess.Popen(
        [*COMMAND, "--output_dir", "run", "--reward_funcs", "my.py:slow"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "memory about" in line:
            break
    time.sleep(1.5)  # in the first step now, which the reward holds up
    process.send_signal(signal.SIGTERM)
    assert "stopping after this step" in process.stdout.readline() + process.stdout.readline()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=30)[0]
    assert time.monotonic() - began < 20
    assert process.returncode == 143, rest
    assert "stopped at once" in rest


TWICE = """
import os, sys
from rl4lm import ReinforceConfig, ReinforceTrainer

class Kill:
    def on_step_end(self, state, stats):
        if stats.step == 3:
            os.kill(os.getpid(), 9)

def train(name, *callbacks):
    config = ReinforceConfig(
        output_dir=f"{sys.argv[1]}/{name}", prompts_per_step=4, num_generations=4, max_steps=5,
        save_steps=2, eval_samples=4, num_iterations=2, learning_rate=1e-3, torch_threads=2,
        save_total_limit=2, resume_from_checkpoint="true", **eval(sys.argv[2]),
    )
    ReinforceTrainer(args=config, callbacks=callbacks).train()

if os.path.isdir(f"{sys.argv[1]}/killed"):
    train("killed")
else:
    train("whole")
    train("killed", Kill())  # within a window, after a checkpoint at the end of one
"""


@pytest.mark.slow  # test_sharded_runs.py has two processes that go on, by default
@pytest.mark.timeout(280)
@pytest.mark.parametrize("options", ["{}", "{'use_peft': True}"])
def test_two_processes_that_were_killed_go_on_bit_for_bit(options, tmp_path):
    (tmp_path / "train.py").write_text(TWICE)
    command = [*TWO_PROCESSES, "train.py", tmp_path, options]
    first = finished(command, tmp_path, code=None)
    assert first.returncode != 0
    assert (tmp_path / "whole" / "summary.json").exists(), first.stderr
    assert (tmp_path / "killed" / "checkpoint-000002").exists(), first.stderr
    finished(command, tmp_path)
    a, b = tmp_path / "whole", tmp_path / "killed"
    for path in (a / "model").glob("*.safetensors"):
        assert path.read_bytes() == (b / "model" / path.name).read_bytes()
    assert lines(a / "metrics.jsonl") == lines(b / "metrics.jsonl")
    states = [
        torch.load(run / "checkpoint-000005" / "trainer_state.pt", weights_only=True)
        for run in (a, b)
    ]
    assert len(states[0]["ranks"]) == 2
    assert same(states[0]["learner"], states[1]["learner"])
