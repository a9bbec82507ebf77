"""`rl4lm doctor` as a user starts it, on runs that the trainer made."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.doctor import diagnose
from rl4lm.rules.diagnosis import Watch
from rl4lm.screen.console import Screen

Run = Any  # makes a run with these options, and gives its folder


@pytest.fixture
def doctor(verb: Any) -> Any:
    """`rl4lm doctor`, and what it says."""
    return partial(verb, "doctor")


@pytest.fixture
def severe(doctor: Any) -> Any:
    """What is wrong with a run, by name: how much."""

    def found(folder: Path) -> dict[str, str]:
        told = json.loads(doctor(folder, "--json").out)
        return {each["name"]: each["severity"] for each in told if each["severity"] != "note"}

    return found


@pytest.fixture
def run(tiny, tmp_path) -> Run:
    """A run of a tiny random model on a reward; `callbacks` hear of its steps."""

    def make(reward: Any, callbacks: Any = (), **options: Any) -> Path:
        settings = {
            "prompts_per_step": 4,
            "num_generations": 4,
            "max_completion_length": 12,
            "max_steps": 6,
            "eval_samples": 0,
            "accuracy_func": "none",
            **options,
        }
        ReinforceTrainer(
            model=tiny.build_model("llama", vocabulary=12, std=0.1),
            reward_funcs=reward,
            args=ReinforceConfig(output_dir=str(tmp_path / "run"), **settings),
            train_dataset=[{"prompt": "t1 t2"}, {"prompt": "t4"}, {"prompt": "t5 t6 t7"}],
            processing_class=tiny.build_tokenizer(12),
            callbacks=list(callbacks),
            screen=Screen(quiet=True),
        ).train()
        return tmp_path / "run"

    return make


def share_of_a_token(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [ids.count(3) / len(ids) for ids in completion_ids]


def first_is_the_token(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [float(ids[0] == 3) for ids in completion_ids]


def always(value: float | None) -> Any:
    return lambda completions, **columns: [value] * len(completions)


def test_a_short_run_of_the_built_in_model_is_healthy(doctor, severe, tmp_path):
    settings = {"prompts_per_step": 32, "max_completion_length": 6, "learning_rate": 1e-4}
    config = ReinforceConfig(
        output_dir=str(tmp_path / "run"), max_steps=6, eval_samples=20, **settings
    )
    ReinforceTrainer(args=config, screen=Screen(quiet=True)).train()
    assert severe(tmp_path / "run") == {}
    shown = doctor(tmp_path / "run").out
    assert shown.startswith("6 steps, completions of 6, 2 evaluations: ")
    assert "\nchecked: completions that never end, " in shown
    assert "not checked: a reward that stays where it was (reward is known of 6 steps" in shown


def test_a_run_that_learns_is_healthy_and_nothing_is_said_while_it_goes_on(severe, run):
    heard = _Listener()
    folder = run(
        first_is_the_token, [heard], max_steps=40, learning_rate=1e-2, max_completion_length=40
    )
    assert severe(folder) == {}
    assert heard.said == []


@pytest.mark.parametrize(
    ("reward", "options", "found"),
    [
        (always(0.0), {}, {"constant_reward": "error"}),
        (always(None), {}, {"rewards_do_not_apply": "error"}),
        (share_of_a_token, {"learning_rate": 0.0}, {"learning_rate_is_zero": "error"}),
        (share_of_a_token, {"max_completion_length": 1}, {"completions_cut_off": "warning"}),
    ],
    ids=["constant", "none", "no learning rate", "cut off"],
)
def test_what_is_wrong_with_a_run_is_found_after_it_and_while_it_goes_on(
    severe, run, reward, options, found
):
    heard = _Listener()
    assert severe(run(reward, [heard], **options)) == found
    assert set(heard.said) == set(found)


def test_a_run_that_was_cut_short_is_diagnosed_as_far_as_it_went(doctor, severe, run):
    folder = run(share_of_a_token)
    (folder / "summary.json").unlink()
    metrics = folder / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-40])
    assert severe(folder) == {"unfinished_run": "warning"}
    shown = doctor(folder).out
    assert "the last step logged is 5 of 6" in shown
    assert "metrics.jsonl: the last line (6) breaks off and was ignored" in shown


def test_what_is_no_run_is_refused_with_exit_code_2(doctor, tmp_path):
    assert "holds no run" in doctor(tmp_path, code=2).err
    assert "is no directory" in doctor(tmp_path / "none", code=2).err
    assert "name a run" in doctor(code=2).err
    assert "unexpected argument 'second'" in doctor(tmp_path, "second", code=2).err


def test_the_doctor_needs_no_torch(run):
    folder = run(share_of_a_token)
    code = (
        "import sys; from rl4lm.cli import main; "
        f"assert main(['doctor', {str(folder)!r}]) == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_the_trainer_s_own_names_are_the_names_that_rules_ask_for(run):
    """Misspelt metrics would leave their rules out for ever: all must apply to a real run."""
    folder = run(share_of_a_token, max_steps=16, eval_samples=2, dataset_test_split="none")
    _, diagnosis = diagnose(folder)
    assert diagnosis.unchecked == {}


class _Listener:
    """Watches a run as the trainer does."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self._watch: Watch | None = None

    def on_step_end(self, state: Any, stats: Any) -> None:
        if self._watch is None:
            group = {"prompts_per_step": 4, "num_generations": 4, "baseline": "auto"}
            self._watch = Watch({**group, "dtype": "float32", "learning_rate": 1e-5}, {})
        news = self._watch.observe(stats.metrics, stats.completions)
        self.said += [finding.name for finding in news]
