"""Programs that follow a run: told of everything, and never able to stop or slow it."""

from __future__ import annotations

import sys
import threading
import time
import types

import pytest

from rl4lm import ReinforceConfig, ReinforceTrainer, trackers
from rl4lm.errors import ConfigError
from rl4lm.screen.console import Screen
from rl4lm.trackers import KINDS, Kind, Trackers, check_trackers

ROWS = [
    {"prompt": "1+1=", "completion": "2", "reward": 1.0, "advantage": 0.5, "ids": [3]},
    {"prompt": [{"role": "user", "content": "a|b"}], "completion": "x\ny", "reward": None},
]


class Recorder:
    """A tracker that notes what it is told."""

    def __init__(self, fails=None, hangs=None):
        self.told, self.fails, self.hangs = [], fails, hangs

    def _note(self, what, *values):
        if self.hangs is not None:
            self.hangs.wait(30)
        if what == self.fails:
            raise ConnectionError("the server is gone\nwith more lines")
        self.told.append((what, *values))

    def start(self):
        self._note("start")

    def store_init_configuration(self, values):
        self._note("config", values)

    def log(self, values, step=None):
        self._note("log", values, step)

    def finish(self):
        self._note("finish")


@pytest.fixture
def following(monkeypatch, tmp_path):
    """Makes trackers of recorders under made-up names."""

    def make(**recorders):
        for name, recorder in recorders.items():
            kind = Kind(
                "json",
                lambda run, project, run_name, recorder=recorder: recorder,
                lambda tracker, step, rows: tracker._note("samples", step, rows),
            )
            monkeypatch.setitem(KINDS, name, kind)
        troubles = []
        made = Trackers(list(recorders), tmp_path, "project", "run", troubles.append)
        return made, troubles

    return make


def a_run(followed):
    followed.begin({"seed": 0, "stop_strings": ["a", "b"], "beta": None, "use_peft": False})
    followed.log(1, {"step": 1, "reward": 0.5, "kl": None, "noise": float("nan"), "updated": True})
    followed.samples(1, ROWS)
    followed.log(1, {"accuracy": 0.25}, prefix="eval/")
    followed.finish()


def test_a_tracker_is_told_of_options_numbers_and_samples(following):
    recorder = Recorder()
    followed, troubles = following(one=recorder)
    a_run(followed)
    shown = [
        {name: row.get(name) for name in ("prompt", "completion", "reward", "advantage")}
        for row in ROWS
    ]
    shown[1]["prompt"] = str(ROWS[1]["prompt"])
    assert recorder.told == [
        ("start",),
        ("config", {"seed": 0, "stop_strings": "a b", "beta": "none", "use_peft": False}),
        ("log", {"reward": 0.5, "updated": 1.0}, 1),
        ("samples", 1, shown),
        ("log", {"eval/accuracy": 0.25}, 1),
        ("finish",),
    ]
    assert troubles == []


@pytest.mark.parametrize("where", ["start", "config", "log", "samples", "finish"])
def test_one_that_fails_is_dropped_with_one_warning_and_the_others_go_on(following, where):
    broken, well = Recorder(fails=where), Recorder()
    followed, troubles = following(broken=broken, well=well)
    a_run(followed)
    (trouble,) = troubles
    assert "report_to=broken has failed" in trouble
    assert "ConnectionError: the server is gone" in trouble
    assert "more lines" not in trouble
    assert [told[0] for told in well.told] == ["start", "config", "log", "samples", "log", "finish"]


def test_one_that_hangs_holds_nobody_up(following, monkeypatch):
    monkeypatch.setattr(trackers, "_PATIENCE_S", 0.2)
    never = threading.Event()
    well = Recorder()
    followed, troubles = following(stuck=Recorder(hangs=never), well=well)
    began = time.monotonic()
    a_run(followed)
    assert time.monotonic() - began < 10
    never.set()
    assert len(well.told) == 6
    assert "did not end within" in troubles[0]


def test_one_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in KINDS:
        with pytest.raises(ConfigError, match=rf"pip install 'rl4lm\[{name}\]'"):
            check_trackers([name])
    check_trackers([])


def test_options_are_checked():
    assert ReinforceConfig(report_to="none").report_to is None
    assert ReinforceConfig(report_to="wandb", output_dir="x").report_to == ["wandb"]
    with pytest.raises(ConfigError, match="some of tensorboard, trackio, wandb, mlflow"):
        ReinforceConfig(report_to=["all"], output_dir="x")
    with pytest.raises(ConfigError, match="no output_dir"):
        ReinforceConfig(report_to=["wandb"])


def train(folder, **options):
    config = ReinforceConfig(
        output_dir=str(folder),
        max_steps=2,
        prompts_per_step=2,
        num_generations=2,
        max_completion_length=4,
        eval_samples=4,
        sample_table_steps=1,
        **options,
    )
    return ReinforceTrainer(args=config, screen=Screen(stderr=True)).train()


def test_tensorboard_has_every_number_the_options_and_the_samples(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path / "run", report_to=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    tags = events.Tags()
    assert {"reward", "grad_norm", "eval/accuracy"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("reward")] == [1, 2]
    assert [event.step for event in events.Scalars("eval/accuracy")] == [0, 2]
    (samples,) = [tag for tag in tags["tensors"] if tag.startswith("samples")]
    table = events.Tensors(samples)[0].tensor_proto.string_val[0].decode()
    assert table.startswith("| prompt | completion | reward | advantage |")
    assert list((tmp_path / "run" / "tensorboard").rglob("hparams.yml"))


def test_a_broken_tracker_leaves_the_run_whole(tmp_path, monkeypatch, capsys):
    broken = types.ModuleType("trackio")
    broken.__spec__ = types.SimpleNamespace()
    broken.init = lambda **_: (_ for _ in ()).throw(OSError("no space"))
    monkeypatch.setitem(sys.modules, "trackio", broken)
    summary = train(tmp_path / "run", report_to=["trackio", "tensorboard"])
    assert summary["steps"] == 2
    assert (tmp_path / "run" / "report.html").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("report_to=trackio has failed") == 1
    assert "OSError: no space" in said
