"""Two processes over gloo, started as a user would start them, against one."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from launching import RECIPES, TWO_PROCESSES, finished

TINY = {"prompts_per_step": 8, "num_generations": 4, "max_steps": 3, "eval_samples": 0}
# No clipping: scaling to a norm would hide a gradient that is twice too large.
EXACT = {**TINY, "dtype": "float64", "optim": "sgd", "learning_rate": 1e-3, "max_grad_norm": 0}
CHOSEN = {"dynamic_sampling": 2, "curriculum": "success", "curriculum_column": "family"}
RUNS = {
    "exact": {"config": EXACT, "reduce": True},
    "chosen": {"config": {**EXACT, **CHOSEN}, "reduce": True},
    "adapters": {"config": {**TINY, "use_peft": True, "learning_rate": 1e-3}, "reduce": True},
    "unreduced": {"config": EXACT, "reduce": False},
}

SCRIPT = """
import hashlib, json, sys
from pathlib import Path

import torch

from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.processes.world import World

folder, runs = Path(sys.argv[1]), json.loads(sys.argv[2])
sum_gradients = World.sum_gradients


def digest(tensors):
    content = b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)
    return hashlib.sha256(content).hexdigest()


class Recorder:
    def __init__(self):
        self.steps, self.gradient = [], None

    def on_step_end(self, state, stats):
        self.steps.append({
            "prompts": [row["prompt"] for row in stats.completions],
            "completions": [row["completion_ids"] for row in stats.completions],
            "gradient": self.gradient,
            "norm": stats.metrics["grad_norm"],
            "chosen": {
                name: value
                for name, value in stats.metrics.items()
                if name.startswith(("dynamic_sampling/", "curriculum/"))
            },
            "weights": digest(trainer.policy.trainable().values()),
        })


for name, run in runs.items():
    recorder = Recorder()

    def reduce_and_look(world, parameters):
        if run["reduce"]:
            sum_gradients(world, parameters)
        recorder.gradient = digest(p.grad for p in parameters)

    World.sum_gradients = reduce_and_look
    trainer = ReinforceTrainer(args=ReinforceConfig(**run["config"]), callbacks=[recorder])
    before = {k: p.detach().clone() for k, p in trainer.policy.trainable().items()}
    trainer.train()
    place = f"{name}-{trainer.world.rank}"
    (folder / f"{place}.json").write_text(json.dumps(
        {"processes": trainer.world.size, "steps": recorder.steps}
    ))
    after = {k: p.detach() for k, p in trainer.policy.trainable().items()}
    torch.save({"before": before, "after": after}, folder / f"{place}.pt")
trainer.world.close()
"""


def recorded(folder, name, rank):
    """What a process of a run wrote down: its steps, and its weights before and after."""
    notes = json.loads((folder / f"{name}-{rank}.json").read_text(encoding="utf-8"))
    return notes, torch.load(folder / f"{name}-{rank}.pt")


def drawn(step):
    """The prompts and completions of a step, in an order of their own."""
    return sorted(zip(step["prompts"], step["completions"], strict=True))


def flat(weights):
    """All tensors of a run as one float64 vector."""
    return torch.cat([tensor.double().flatten() for tensor in weights.values()])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which two processes wrote down all runs."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    finished([*TWO_PROCESSES, "script.py", folder, json.dumps(RUNS)], folder)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder in which one process wrote down the runs in float64."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    runs = json.dumps({name: RUNS[name] for name in ("exact", "chosen")})
    finished([sys.executable, "script.py", folder, runs], folder)
    return folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["exact", "adapters"])
def test_two_processes_work_on_different_prompts_and_end_each_step_with_equal_bits(two, name):
    (first, _), (second, _) = recorded(two, name, 0), recorded(two, name, 1)
    assert first["processes"] == second["processes"] == 2
    assert len(first["steps"]) == 3
    for mine, theirs in zip(first["steps"], second["steps"], strict=True):
        assert set(mine["prompts"]).isdisjoint(theirs["prompts"])
        assert mine["gradient"] == theirs["gradient"]
        assert mine["weights"] == theirs["weights"]
    assert len({step["weights"] for step in first["steps"]}) == 3  # and every step moves them


@pytest.mark.timeout(300)
def test_without_the_reduction_the_gradients_and_the_weights_of_the_processes_part(two):
    (first, _), (second, _) = recorded(two, "unreduced", 0), recorded(two, "unreduced", 1)
    for mine, theirs in zip(first["steps"], second["steps"], strict=True):
        assert mine["weights"] != theirs["weights"]
    # In one step, since two processes without any advantage would share a gradient of zeros.
    assert first["steps"][0]["gradient"] != second["steps"][0]["gradient"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["exact", "chosen"])
def test_two_processes_draw_the_same_completions_as_one_token_for_token(one, two, name):
    alone, _ = recorded(one, name, 0)
    (first, _), (second, _) = recorded(two, name, 0), recorded(two, name, 1)
    assert alone["processes"] == 1
    for whole, mine, theirs in zip(alone["steps"], first["steps"], second["steps"], strict=True):
        # Each prompt is drawn by one of the two, whoever that is.
        assert drawn(whole) == sorted(drawn(mine) + drawn(theirs))
        assert drawn(mine) != drawn(theirs)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["exact", "chosen"])
def test_two_processes_reach_the_weights_of_one(one, two, name):
    alone, weights = recorded(one, name, 0)
    together, shared = recorded(two, name, 0)
    for mine, theirs in zip(alone["steps"], together["steps"], strict=True):
        assert theirs["norm"] == pytest.approx(mine["norm"], rel=1e-12)
    before, after = flat(weights["before"]), flat(weights["after"])
    assert torch.equal(before, flat(shared["before"]))
    # The way that the weights went is compared too: it is short beside the weights themselves.
    way, shared_way = after - before, flat(shared["after"]) - before
    assert way.norm() > 1e-4 * before.norm()
    assert (flat(shared["after"]) - after).norm() <= 1e-12 * after.norm()
    assert (shared_way - way).norm() <= 1e-10 * way.norm()
    _, parted = recorded(two, "unreduced", 0)
    assert (flat(parted["after"]) - after).norm() > 1e-2 * way.norm()


@pytest.mark.timeout(300)
def test_two_processes_choose_prompts_and_draw_further_ones_as_one_does(one, two):
    runs = [recorded(one, "chosen", 0), recorded(two, "chosen", 0), recorded(two, "chosen", 1)]
    alone, *others = [[step["chosen"] for step in notes["steps"]] for notes, _ in runs]
    assert alone == others[0] == others[1]
    # Some slots were filled again, and not all of them: else nothing is shown here.
    assert any(8 < step["dynamic_sampling/groups"] < 8 * 3 for step in alone)
    assert len({step["curriculum/expected_success"] for step in alone}) > 1


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_the_arithmetic_recipe_runs_on_two_processes(tmp_path):
    options = ["--max_steps", "5", "--prompts_per_step", "4", "--num_generations", "8"]
    options += ["--eval_samples", "30"]
    words = [*TWO_PROCESSES, RECIPES / "arithmetic.py", *options]
    done = finished([*words, "--output_dir", "run"], tmp_path)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["processes"] == 2
    assert (summary["steps"], summary["samples"]) == (5, 5 * 4 * 8)
    assert summary["eval_before"]["samples"] == summary["eval_after"]["samples"] == 30
    step = (tmp_path / "run" / "completions" / "step-000005.jsonl").read_text(encoding="utf-8")
    assert len(step.splitlines()) == 4 * 8  # those of both processes
    assert "UserWarning" not in done.stderr
    assert done.stdout.count("before training") == 1  # only the main process speaks


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_prompts_that_cannot_be_dealt_evenly_are_refused_before_anything_is_written(tmp_path):
    words = [*TWO_PROCESSES, RECIPES / "arithmetic.py", "--prompts_per_step", "7"]
    done = finished([*words, "--output_dir", "run"], tmp_path, code=None)
    assert done.returncode != 0
    assert "prompts_per_step=7 cannot be dealt to 2 processes" in done.stderr
    assert "such as 6 or 8" in done.stderr
    assert not (tmp_path / "run").exists()
