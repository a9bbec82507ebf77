"""`rl4lm verify` and `rl4lm replay` as a user starts them, alone and in two processes."""

from __future__ import annotations

import json
import math
import shutil
import sys

import pytest
from launching import RL4LM, TWO_PROCESSES, finished

from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.builtin import model_path
from rl4lm.commandline.commands import settings_for
from rl4lm.errors import ConfigError
from rl4lm.estimator.baselines import BASELINES, NEEDS_TWO_GENERATIONS
from rl4lm.options import parse_options
from rl4lm.replay import _compare, replay
from rl4lm.screen.console import Screen


def rl4lm(words, folder, code=0):
    return finished([*RL4LM, *words.split()], folder, code=code)


# --- verify


@pytest.mark.slow
@pytest.mark.timeout(290)
def test_every_baseline_and_option_is_verified_on_the_command_line(tmp_path):
    done = rl4lm("verify --all --json", tmp_path)
    reports = json.loads(done.stdout)
    by_verdict = {v: [r for r in reports if r["verdict"] == v] for v in ("exact", "failed")}
    assert by_verdict["failed"] == []
    seen = set()
    for report in by_verdict["exact"]:
        assert report["passed"]
        assert report["residual"] < 1e-12
        options = report["options"]
        seen.add((options["baseline"], options["num_generations"], options["use_peft"]))
    for name in BASELINES:
        for group in (2, 3) if name in NEEDS_TWO_GENERATIONS else (1, 2, 3):
            assert {(name, group, False), (name, group, True)} <= seen
    others = [r for r in reports if r["verdict"] == "another objective"]
    assert len(others) == len(reports) - len(by_verdict["exact"]) == 14
    assert not any(report["passed"] for report in others)
    assert "0 failed" in done.stderr


def test_a_run_s_own_configuration_can_be_verified(verb, tmp_path):
    (tmp_path / "run.yaml").write_text(
        "learning_rate: 0.001\nprompts_per_step: 64\nbaseline: length_weighted\n"
        "num_generations: 8\nbeta: 0.1\nkl_in: token_reward\nuse_peft: true\nlora_r: 4\n"
    )
    report = json.loads(verb("verify", "--config", tmp_path / "run.yaml", "--json").out)
    assert report["verdict"] == "exact"
    assert report["objective"] == "E[r] - 0.1 KL(π‖π_ref)"
    assert report["options"]["num_generations"] == 3  # as many as can be enumerated
    assert set(report["variance"]) == set(BASELINES)


@pytest.mark.slow  # test_verify.py has the verdict by default
def test_another_objective_is_said_to_be_one(tmp_path):
    done = rl4lm("verify --beta 0.2 --kl_in grpo_k3 --num_generations 2", tmp_path)
    assert "another objective, as documented: k3 in the loss is not the gradient" in done.stdout
    assert "exact" not in done.stdout
    refused = rl4lm("verify --beta 0.2 --kl_in k1", tmp_path, code=2)
    assert "kl_in: k1 is refused, because the expected gradient of k1 in the loss" in refused.stderr


PLANTED = """
import sys
from rl4lm import cli
from rl4lm.model import teacher_forcing

original = teacher_forcing.tiled_gradient
teacher_forcing.tiled_gradient = lambda hidden, head, targets, weights, *rest: original(
    hidden, head, targets, 1.0002 * weights, *rest
)
sys.exit(cli.main(["verify", "--num_generations", "2"]))
"""


def test_a_gradient_one_part_in_five_thousand_too_long_fails_with_an_exit_code(tmp_path):
    (tmp_path / "planted.py").write_text(PLANTED)
    done = finished([sys.executable, "planted.py"], tmp_path, code=1)
    assert "FAILED: the gradient is not what the documentation says" in done.stdout
    assert "1 of 1 sets of options failed" in done.stderr


TWO = """
import json, sys
from rl4lm import ReinforceConfig
from rl4lm.estimator.baselines import BASELINES
from rl4lm.commandline.commands import quiet_libraries
from rl4lm.verify import verify
from rl4lm.processes.world import World

quiet_libraries()
cases = [{"baseline": name} for name in json.loads(sys.argv[1]) or BASELINES]
cases += [
    {"beta": 0.3, "kl_in": "loss", "entropy_coef": 0.2, "use_peft": True},
    {"beta": 0.3, "kl_in": "token_reward", "num_generations": 1},
]
found = {}
for case in cases:
    config = ReinforceConfig(**{"num_generations": 2, "temperature": 0.7, **case})
    report = verify(config, variances=False)
    found[str(case)] = (report.verdict, report.options["processes"])

sum_gradients = World.sum_gradients


def averaged(world, parameters):
    sum_gradients(world, parameters)
    for parameter in parameters:
        parameter.grad /= world.size


World.sum_gradients = averaged
found["averaged"] = (verify(ReinforceConfig(num_generations=2), variances=False).verdict, 2)
World.sum_gradients = lambda world, parameters: None
found["unreduced"] = (verify(ReinforceConfig(num_generations=2), variances=False).verdict, 2)
world = World()
if world.is_main:
    open("found.json", "w").write(json.dumps(found))
world.close()
"""


@pytest.mark.slow  # test_world_sizes.py finds a missing reduction by default
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["prompt_leave_one_out", "linear_value"], id="some"),
        pytest.param([], id="all"),
    ],
)
def test_baselines_are_exact_over_two_processes_and_a_world_size_factor_is_found(names, tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    finished([*TWO_PROCESSES, "two.py", json.dumps(names)], tmp_path, seconds=180)
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == len(names or BASELINES) + 4
    planted = {name: found.pop(name) for name in ("averaged", "unreduced")}
    assert set(map(tuple, found.values())) == {("exact", 2)}, found
    assert set(map(tuple, planted.values())) == {("failed", 2)}


# --- replay

SMALL = (
    "--prompts_per_step 4 --num_generations 4 --eval_samples 0 --torch_threads 1 "
    "--learning_rate 1e-3 --noise_every 3"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of seven steps with checkpoints after 3 and 6."""
    folder = tmp_path_factory.mktemp("replay")
    words = [*f"--max_steps 7 --save_steps 3 {SMALL}".split(), "--output_dir", f"{folder}/run"]
    config = parse_options(words, prog="train", description="", base_for=settings_for)
    ReinforceTrainer(args=config, screen=Screen(quiet=True)).train()
    return folder / "run"


def test_a_logged_step_comes_out_again_from_the_nearest_earlier_checkpoint(verb, run):
    begins = {1: "the start of the run", 3: "the start of the run", 4: "checkpoint-000003"}
    begins |= {7: "checkpoint-000006"}
    for step, begin in begins.items():
        found = replay(run, step)
        assert found.agrees
        assert found.first_disagreement is None
        assert found.start == begin
        assert found.steps[-1].step == step
        assert all(each.difference < 1e-5 for each in found.steps)
        assert found.steps[-1].grad_norm > 0
    told = verb("replay", run, "--step", 5).out
    assert "from checkpoint-000003, 2 steps done again" in told
    assert "step 5 agrees" in told


def test_a_log_that_this_code_would_not_write_is_found_out_at_its_first_wrong_step(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    page = tmp_path / "run" / "completions" / "step-000002.jsonl"
    rows = [json.loads(line) for line in page.read_text().splitlines()]
    rows[0]["reward"] = 1.0 - rows[0]["reward"]
    page.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = rl4lm("replay run --step 3 --json", tmp_path, code=1)
    found = json.loads(done.stdout)
    assert [step["agrees"] for step in found["steps"]] == [True, False, False]
    assert found["first_disagreement"] == 2
    assert "step 3 does NOT agree" in done.stderr
    assert replay(tmp_path / "run", 4).agrees  # from the checkpoint after it


@pytest.mark.parametrize(
    ("logged", "found", "agrees"),
    [(2.0, 2.0, True), (2.0, math.nan, False), (None, 2.0, False), (None, math.nan, True)],
)
def test_a_norm_that_is_not_finite_agrees_with_no_finite_one(logged, found, agrees):
    pair = {"loss": 1.0, "grad_norm": logged}, {"loss": 1.0, "grad_norm": found}
    assert _compare(1, *pair, 1e-4).agrees == agrees


def test_what_cannot_be_replayed_is_refused_in_words(verb, run, tmp_path):
    def refusal(folder, step):
        return verb("replay", folder, "--step", step, code=2).err

    assert "holds steps 1 to 7" in refusal(run, 9)
    assert "holds no run" in refusal(tmp_path, 1)
    assert "name a run and a step" in verb("replay", "--step", 1, code=2).err
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "completions" / "step-000005.jsonl").unlink()
    assert "step-000005.jsonl' cannot be read" in refusal(tmp_path / "run", 5)
    weights = tmp_path / "run" / "checkpoint-000006" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "checkpoint-000006' cannot be read" in refusal(tmp_path / "run", 7)


def test_without_an_early_checkpoint_the_checkpoints_are_named(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = model_path("builtin:tiny-arithmetic")
    trainer = ReinforceTrainer(
        model=AutoModelForCausalLM.from_pretrained(path),
        processing_class=AutoTokenizer.from_pretrained(path),
        args=ReinforceConfig(
            output_dir=str(tmp_path / "run"),
            prompts_per_step=2,
            num_generations=2,
            max_completion_length=8,
            eval_samples=0,
            max_steps=4,
            save_steps=2,
            torch_threads=1,
        ),
        screen=Screen(quiet=True),
    )
    trainer.train()
    with pytest.raises(ConfigError, match=r"checkpoint-000002, checkpoint-000004.*model given in"):
        replay(tmp_path / "run", 1)


OPTIONS = {
    "adapters and KL": {"use_peft": True, "beta": 0.1, "kl_in": "loss"},
    "KL to a copy, entropy": {"beta": 0.1, "kl_in": "token_reward", "entropy_coef": 0.01},
    "history": {"baseline": "prompt_value"},
    "features": {"baseline": "linear_value", "optim": "sgd"},
    "two updates": {"num_iterations": 2, "loss_type": "dapo", "scale_rewards": "group"},
    "tokens": {"gamma": 0.9, "loss_type": "grpo", "mask_truncated_completions": True},
    "chosen prompts": {
        "dynamic_sampling": 2,
        "curriculum": "success",
        "curriculum_column": "family",
    },
}

LONGER = ("features", "history")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=[pytest.mark.slow] if name in LONGER else [])
        for name, options in OPTIONS.items()
    ],
)
def test_a_step_is_replayed_with(options, tmp_path):
    config = ReinforceConfig(
        output_dir=str(tmp_path / "run"),
        prompts_per_step=3,
        num_generations=3,
        max_completion_length=6,
        temperature=1.5,
        eval_samples=0,
        max_steps=6,
        save_steps=3,
        learning_rate=1e-3,
        torch_threads=1,
        **options,
    )
    ReinforceTrainer(args=config, screen=Screen(quiet=True)).train()
    for step in (3, 6):
        found = replay(tmp_path / "run", step)
        assert found.agrees, found
        assert max(each.difference for each in found.steps) < 1e-4
    start = "checkpoint-000004" if "num_iterations" in options else "checkpoint-000003"
    assert found.start == start
