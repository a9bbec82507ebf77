"""Two processes with sharded parameters: what they tell one another, save, and resume."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from launching import LAUNCH, RECIPES, finished
from safetensors.torch import load_file

from rl4lm.export.exported import ExportChoices, export
from rl4lm.export.source import find_source

ROOT = Path(__file__).parents[2]
WITH = [*LAUNCH, "--gpu_ids=-1,-1", "--config_file"]
LAYOUTS = {
    "alone": [sys.executable],
    "replicated": [*WITH, RECIPES / "accelerate" / "cpu2.yaml"],
    "sharded": [*WITH, RECIPES / "accelerate" / "fsdp2.yaml"],
}
OPTIONS = {
    "prompts_per_step": 4,
    "num_generations": 4,
    "max_steps": 4,
    "save_steps": 2,
    "eval_samples": 5,  # not as many for each process
    "dtype": "float64",
    "learning_rate": 1e-3,
    "torch_threads": 1,
}

COUNT = """
import json, sys
from contextlib import nullcontext
from dataclasses import replace

import torch

from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.metrics import Stopwatch
from rl4lm.processes.sharding import Shards


def gathers_in(act):
    "How often parameters are gathered meanwhile."
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = act()
    events = [e for e in profile.key_averages() if e.key == "c10d::_allgather_base_"]
    return sum(e.count for e in events), result


def in_a_rollout(length):
    gatherer._config = replace(trainer.config, max_completion_length=length)
    deal, examples = gatherer.deal(gatherer.prompt_keys(0))
    count, rollout = gathers_in(lambda: gatherer.sample(examples, 0, deal.mine))
    return count, int(rollout.lengths.sum()), rollout


def of_logprobs(trainer, rollout):
    # A pass for each prompt or each completion.
    return gathers_in(lambda: trainer.policy.completion_logprobs(rollout, max_tokens=1))[0]


trainer = ReinforceTrainer(
    args=ReinforceConfig(prompts_per_step=4, num_generations=4, eval_samples=0)
)
gatherer = trainer.learner.gatherer
short, long = in_a_rollout(2), in_a_rollout(5)
once = of_logprobs(trainer, long[2])
units = len(trainer.policy.shards._units)
Shards.gathered = lambda self: nullcontext()
every_pass = of_logprobs(trainer, long[2])
found = {"short": short[:2], "long": long[:2], "units": units, "once": once, "control": every_pass}
if trainer.world.is_main:
    print(json.dumps(found))
trainer.world.close()
"""


def run(layout, words, folder):
    return finished([*LAYOUTS[layout], *words], folder, seconds=200)


def train(layout, folder, name, **more):
    options = [w for k, v in {**OPTIONS, **more}.items() for w in (f"--{k}", str(v))]
    run(layout, [ROOT / "recipes" / "arithmetic.py", *options, "--output_dir", name], folder)
    return weights_of(folder / name / "model")


def weights_of(folder):
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def apart(found, expected):
    """The distance of two sets of weights, relative to the second."""
    assert found.keys() == expected.keys()
    gap = sum(float((found[n].double() - t.double()).norm()) ** 2 for n, t in expected.items())
    return (gap / sum(float(t.double().norm()) ** 2 for t in expected.values())) ** 0.5


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The folder of a run by two processes with sharded parameters, and its last weights."""
    folder = tmp_path_factory.mktemp("sharded")
    return folder, train("sharded", folder, "run")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_weights_are_gathered_once_for_a_rollout_and_not_for_every_token(tmp_path):
    (tmp_path / "count.py").write_text(COUNT, encoding="utf-8")
    done = run("sharded", ["count.py"], tmp_path)
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert found["units"] > 2
    assert found["long"][1] > found["short"][1]  # more tokens
    assert found["long"][0] == found["short"][0] == found["once"] == found["units"]
    assert found["control"] >= 2 * found["units"], "gathered for every pass it would be noticed"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_sharded_run_that_is_resumed_is_the_run_that_was_not_interrupted(whole_run):
    folder, expected = whole_run
    middle = folder / "run" / "checkpoint-000002"
    found = train("sharded", folder, "again", resume_from_checkpoint=middle)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_its_files_are_whole_and_one_process_goes_on_from_them(whole_run):
    folder, expected = whole_run
    middle = folder / "run" / "checkpoint-000002"
    assert apart(weights_of(middle), expected) > 1e-6, "the last steps move the weights"
    found = train("alone", folder, "alone", resume_from_checkpoint=middle, resume_anyway=True)
    assert apart(found, expected) < 1e-12
    logged = (folder / "run" / "config.yaml").read_text(encoding="utf-8")
    assert "dealt by FSDP2" in logged


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_its_checkpoints_are_exported_like_any_other(whole_run, tmp_path):
    folder, expected = whole_run
    for checkpoint, weights in (
        (2, weights_of(folder / "run" / "checkpoint-000002")),
        (4, expected),
    ):
        out = tmp_path / str(checkpoint)
        export(find_source(str(folder / "run"), checkpoint), out, ExportChoices())
        found = weights_of(out)
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("more", [{}, {"use_peft": True}], ids=["full", "adapters"])
def test_every_layout_saves_the_same_weights_and_goes_on_from_any_other(more, tmp_path):
    first = {name: train(name, tmp_path, name, **more) for name in LAYOUTS}
    for name, weights in first.items():
        assert apart(weights, first["alone"]) < 1e-12, name
    for begun in LAYOUTS:
        for ended in LAYOUTS:
            middle = tmp_path / begun / "checkpoint-000002"
            resumed = train(
                ended,
                tmp_path,
                f"{begun}-{ended}",
                resume_from_checkpoint=middle,
                resume_anyway=True,
                **more,
            )
            assert apart(resumed, first["alone"]) < 1e-12, (begun, ended)
            if begun == ended:
                assert all(torch.equal(resumed[n], t) for n, t in first[begun].items())
