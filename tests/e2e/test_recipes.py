"""The recipes, launched as their users launch them, and the bandit's game looked at closely."""

from __future__ import annotations

import functools
import json
import math
import re
import sys
from statistics import fmean

import pytest
import torch
from launching import RECIPES, launch, lines, recipe

TINY = ["--max_steps", "2", "--prompts_per_step", "4", "--num_generations", "4"]
TINY += ["--eval_samples", "10"]
RUN_FILES = ("config.yaml", "metrics.jsonl", "eval.jsonl", "summary.json")


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("options", "weights"),
    [
        pytest.param([], "model.safetensors", id="all parameters"),
        pytest.param(
            ["--use_peft"], "adapter_model.safetensors", id="adapters", marks=pytest.mark.slow
        ),
    ],
)
def test_the_arithmetic_recipe_leaves_a_whole_run_behind(tmp_path, options, weights):
    done = launch("arithmetic.py", *TINY, *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "arithmetic"
    assert all((run / name).is_file() for name in RUN_FILES)
    assert (run / "model" / weights).is_file()
    assert [row["step"] for row in lines(run / "metrics.jsonl")] == [1, 2]
    assert len(lines(run / "completions" / "step-000002.jsonl")) == 4 * 4
    assert "Loading weights" not in done.stderr


@pytest.mark.timeout(60)
def test_a_recipe_answers_a_mistake_as_the_command_line_does(tmp_path):
    wrong = ["--learning_rte", "1"]
    done = launch("arithmetic.py", *wrong, folder=tmp_path, through=[sys.executable])
    assert done.returncode == 2
    assert done.stderr == (
        "rl4lm: error: unknown option --learning_rte; did you mean --learning_rate?\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_custom_reward_is_learned(tmp_path):
    options = ["--max_steps", "25", "--eval_samples", "50"]
    done = launch("custom_reward.py", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "custom_reward"
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["eval_on"] == "test"
    assert summary["eval_before"]["reward"] < 0.55
    assert summary["eval_after"]["reward"] > 0.75
    row = lines(run / "completions" / "step-000025.jsonl")[0]
    assert re.fullmatch(r"not a number|(not )?round, \d+ from \d+", row["detail"])


@pytest.mark.parametrize(
    ("completion", "reward"), [("50", 1.0), ("40", 1.0), ("46", 0.5), ("90", 0.5), ("97", 0.0)]
)
def test_the_custom_reward_is_for_round_numbers_that_are_close(completion, reward):
    module = recipe("custom_reward")
    assert module.round_number(completions=[completion], exact=[46]) == [reward]
    assert module.round_number(completions=["4o"], exact=[46]) == [0.0]


def test_the_data_of_the_custom_reward_are_true_and_its_splits_share_no_sum():
    keys = {}
    for split in ("train", "test"):
        rows = lines(RECIPES / "data" / "sums" / f"{split}.jsonl")
        terms = [sorted(map(int, re.findall(r"\d+", row["prompt"]))) for row in rows]
        assert [sum(pair) for pair in terms] == [row["exact"] for row in rows]
        keys[split] = {tuple(pair) for pair in terms}
    assert keys["train"].isdisjoint(keys["test"])


@pytest.mark.slow  # it is launched for two steps by default
@pytest.mark.timeout(120)
def test_the_bandit_recipe_shows_how_each_player_climbs_from_one_half(tmp_path):
    done = launch("bandit.py", "--seeds", "1", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    climbs = re.findall(r"π 0\.500 -> (0\.\d+) on average", done.stdout)
    assert len(climbs) == 3
    assert all(0.85 <= float(end) <= 0.95 for end in climbs)
    assert len(re.findall(r"▁[▁▂▃▄▅▆▇█]{75}", done.stdout)) == 3


@functools.cache
def game(seed, group, baseline, episodes=300):
    """π(R) along a game with the arms of the recipe."""
    return recipe("bandit").play(seed, episodes, group, baseline)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("group", "baseline"),
    [pytest.param(1, "none", marks=pytest.mark.slow), (4, "prompt_leave_one_out")],
)
def test_the_better_arm_is_found_over_seeds(group, baseline):
    games = [game(seed, group, baseline) for seed in range(3)]
    assert all(points[0] == 0.5 for points in games)
    assert all(len(points) == 300 // group + 1 for points in games)
    assert 0.85 <= fmean(points[-1] for points in games) <= 0.95


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_without_a_baseline_the_curve_is_more_jagged():
    bandit = recipe("bandit")
    bare = [game(seed, 1, "none")[::4] for seed in range(3)]
    compared = [game(seed, 4, "prompt_leave_one_out") for seed in range(3)]
    for measure in (bandit.roughness, bandit.lost):
        assert fmean(map(measure, bare)) > 1.15 * fmean(map(measure, compared))


def test_a_game_is_a_function_of_its_seed():
    play = recipe("bandit").play
    assert play(3, 40, 4, "none") == play(3, 40, 4, "none")
    assert play(3, 40, 4, "none") != play(4, 40, 4, "none")


@pytest.mark.parametrize("baseline", ["none", "prompt_leave_one_out"])
def test_a_game_is_that_of_the_two_parameter_softmax_bandit(baseline):
    bandit, steps = recipe("bandit"), []

    def recorded(completions, trainer_state):
        rewards = bandit.pull(completions, trainer_state)
        steps.append(list(zip(completions, rewards, strict=True)))
        return rewards

    points = bandit.play(0, 120, 4, baseline, recorded)
    expected = replayed(steps, bandit.LEARNING_RATE, leave_one_out=baseline != "none")
    assert points == pytest.approx(expected, abs=1e-12)
    wrong = replayed(steps, bandit.LEARNING_RATE, leave_one_out=baseline == "none")
    assert points != pytest.approx(wrong, abs=1e-2)


def replayed(steps, learning_rate, leave_one_out):
    """π(R) by hand: both logits move by η |h|² A (1[arm] - π) for each episode of a step."""
    model, _ = recipe("bandit").two_token_model()
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([[recipe("bandit").L]])).last_hidden_state
    rate = learning_rate * float(hidden.double().square().sum())
    logits, points = {"L": 0.0, "R": 0.0}, []
    for episodes in [*steps, []]:
        weight = {arm: math.exp(logit) for arm, logit in logits.items()}
        share = {arm: weight[arm] / sum(weight.values()) for arm in weight}
        points.append(share["R"])
        for i, (drawn, reward) in enumerate(episodes):
            others = [r for j, (_, r) in enumerate(episodes) if j != i]
            advantage = reward - (fmean(others) if leave_one_out else 0.0)
            for arm in logits:
                logits[arm] += rate * advantage * ((arm == drawn) - share[arm])
    return points


def test_equal_rewards_against_each_other_leave_the_bandit_at_one_half():
    points = recipe("bandit").play(0, 80, 4, "prompt_leave_one_out", lambda completions: [1.0] * 4)
    assert points == [0.5] * 21


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_rewards_that_do_not_depend_on_the_arm_teach_nothing():
    bandit = recipe("bandit")

    def shuffled(completions, trainer_state):
        return bandit.pull("LR" * (len(completions) // 2), trainer_state)

    ends = [bandit.play(seed, 300, 4, "prompt_leave_one_out", shuffled)[-1] for seed in range(4)]
    # Such a walk ends at 0.50 with a standard deviation of 0.15, a tenth of that trained on is 0.9.
    assert abs(fmean(ends) - 0.5) < 2.5 * 0.15 / math.sqrt(len(ends))
    assert max(ends) < 0.85


def test_the_other_arm_is_found_where_the_other_arm_pays():
    bandit = recipe("bandit")

    def swapped(completions, trainer_state):
        other = {"L": "R", "R": "L"}
        return bandit.pull([other[arm] for arm in completions], trainer_state)

    assert bandit.play(0, 300, 4, "prompt_leave_one_out", swapped)[-1] < 0.15


def test_the_arms_pay_as_often_as_they_say():
    bandit = recipe("bandit")
    for arm, chance in bandit.CHANCES.items():
        paid = [
            bandit.pull([arm], bandit.RewardContext(step, 2000, seed=7))[0] for step in range(2000)
        ]
        assert abs(fmean(paid) - chance) < 4 * math.sqrt(chance * (1 - chance) / 2000)


@pytest.mark.parametrize("wrong", [["--episodes", "6"], ["--episodes", "0"], ["--seeds", "0"]])
def test_the_bandit_refuses_a_game_that_cannot_be_played(wrong):
    with pytest.raises(ValueError, match="multiple of 4"):
        recipe("bandit").options(wrong)


def test_every_recipe_says_its_command_and_stands_in_the_table():
    table = (RECIPES / "README.md").read_text(encoding="utf-8")
    for path in RECIPES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        commands = (f"accelerate launch recipes/{path.name}", f"python recipes/{path.name}")
        assert any(command in text.split('"""')[1] for command in commands)
        assert any(command in table for command in commands)


def test_every_layout_says_its_command():
    for path in (RECIPES / "accelerate").glob("*.yaml"):
        comment = path.read_text(encoding="utf-8").split("compute_environment")[0]
        assert f"accelerate launch --config_file recipes/accelerate/{path.name}" in comment
        assert path.name in (RECIPES / "README.md").read_text(encoding="utf-8")
