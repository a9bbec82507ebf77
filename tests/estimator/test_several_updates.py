"""Several updates on one sampling: the clipped ratio, and what is drawn when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rl4lm.data.examples import stream_indices

TIGHT = 1e-10
BETA = 0.7


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
@pytest.mark.parametrize("reward", ["by_completion", "by_token"])
def test_the_first_step_on_a_sampling_is_plain_with_or_without_the_ratio(
    reward, dtype, tolerance, tiny, kit
):
    plain, clipped = (
        kit.Subject(tiny, getattr(kit, reward), dtype=dtype, epsilon=e) for e in (None, 0.2)
    )
    plain.step()
    stats = clipped.step()
    assert max(tiny.gap(clipped.moved, plain.moved)) < tolerance
    assert stats.metrics["importance_ratio/mean"] == pytest.approx(1.0, abs=tolerance)
    assert stats.metrics["clip_ratio/region_mean"] == 0.0
    plain.step(), clipped.step()
    assert max(tiny.gap(clipped.moved, plain.moved)) < 10 * tolerance


def naive_clipped(kit: Any, s: Any, epsilon: float) -> tuple[Tensor, list[float], list[str]]:
    """PPO's surrogate with the ratio of the sequence, the ratios, and the side of each clip."""
    advantages = [
        float(r) - b for r, b in zip(s.rewards, kit.leave_one_out(s.rewards), strict=True)
    ]
    now, then = s.logprobs(s.before), s.logprobs(s.sampler)
    total, ratios, sides = 0.0, [], []
    for a, new, old in zip(advantages, now, then, strict=True):
        ratio = (new.sum() - old.sum().detach()).exp()
        total = total + torch.minimum(ratio * a, ratio.clamp(1 - epsilon, 1 + epsilon) * a)
        ratios.append(ratio.item())
        sides.append(side_of(ratio.item(), a, epsilon))
    return -total / kit.N, ratios, sides


def side_of(ratio: float, advantage: float, epsilon: float) -> str:
    if advantage > 0 and ratio > 1 + epsilon:
        return "high"
    return "low" if advantage < 0 and ratio < 1 - epsilon else ""


@pytest.mark.parametrize("epsilon", [0.2, 1e-3, 50.0])
def test_the_second_step_is_that_of_the_clipped_ratio_at_the_moved_weights(epsilon, tiny, kit):
    subject = kit.Subject(tiny, num_iterations=2, epsilon=epsilon, learning_rate=2**-6)
    subject.step()
    subject.sampler = subject.before
    assert subject.gap(kit.plain_loss(subject)) < TIGHT
    metrics = subject.step().metrics
    loss, ratios, sides = naive_clipped(kit, subject, epsilon)
    assert subject.gap(loss) < TIGHT
    assert subject.gap(kit.plain_loss(subject)) > 1e-2
    assert metrics["importance_ratio/mean"] == pytest.approx(sum(ratios) / kit.N, rel=1e-9)
    assert metrics["importance_ratio/min"] == pytest.approx(min(ratios), rel=1e-9)
    assert metrics["importance_ratio/max"] == pytest.approx(max(ratios), rel=1e-9)
    assert metrics["clip_ratio/low_mean"] == sides.count("low") / kit.N
    assert metrics["clip_ratio/high_mean"] == sides.count("high") / kit.N
    assert metrics["clip_ratio/region_mean"] == pytest.approx(1 - sides.count("") / kit.N)
    bites = metrics["clip_ratio/region_mean"] > 0
    assert bites == (epsilon < 1), "a wide range clips nothing, a narrow one does"
    if bites:
        assert subject.gap(naive_clipped(kit, subject, 50.0)[0]) > 1e-2


def test_a_large_learning_rate_makes_the_clip_bite_and_a_small_one_does_not(tiny, kit):
    shares = []
    for rate in (1e-5, 0.125):
        subject = kit.Subject(tiny, num_iterations=2, learning_rate=rate)
        subject.step()
        shares.append(subject.step().metrics["clip_ratio/region_mean"])
    assert shares[0] == 0 < 0.2 < shares[1]


@pytest.mark.parametrize("pull", [False, True])
def test_the_second_step_with_rewards_per_token_weighs_returns_by_the_ratio_of_the_whole(
    pull, tiny, kit
):
    options = {"beta": BETA, "kl_in": "loss"} if pull else {}
    subject = kit.Subject(tiny, kit.by_token, num_iterations=2, learning_rate=2**-6, **options)
    subject.step()
    sampler = subject.before
    metrics = subject.step().metrics
    now, then = subject.logprobs(subject.before), subject.logprobs(sampler)
    returns = [kit.to_go(kit.token_worth(ids)) for ids in subject.rollout.completion_lists()]
    weighted, clipped = [], []
    for advantages, new, old in zip(kit.centred(returns), now, then, strict=True):
        ratio = (new.sum() - old.sum()).exp().item()
        sides = [side_of(ratio, a, 0.2) for a in advantages.tolist()]
        keep = torch.tensor([not side for side in sides])
        weighted.append(torch.where(keep, ratio * advantages, 0.0))
        clipped.append(any(sides))
    loss = kit.reinforce(now, weighted)
    if pull:
        reference = [row.detach() for row in subject.logprobs(subject.initial)]
        squares = [(a - b).sum() ** 2 / 2 for a, b in zip(now, reference, strict=True)]
        loss = loss + BETA * sum(squares) / kit.N
    assert subject.gap(loss) < TIGHT
    assert metrics["clip_ratio/region_mean"] == pytest.approx(sum(clipped) / kit.N)
    assert 0 < sum(clipped) < kit.N
    assert subject.gap(kit.reinforce(now, kit.centred(returns))) > 1e-2


def test_without_an_epsilon_the_range_is_a_fifth(tiny, kit):
    default, named = (kit.Subject(tiny, num_iterations=2, epsilon=e) for e in (None, 0.2))
    for _ in range(2):
        default.step(), named.step()
    assert kit.same_bits(default.weights(), named.weights())


def test_completions_are_drawn_every_second_step_and_no_prompt_is_left_out(tiny, kit):
    subject = kit.Subject(tiny, num_iterations=2)
    drawn = [subject.step() for _ in range(6)]
    assert [len(stats.completions) for stats in drawn] == [kit.N, 0, kit.N, 0, kit.N, 0]
    assert [stats.step for stats in drawn] == [1, 2, 3, 4, 5, 6]
    met = [row["prompt_id"] for stats in drawn for row in stats.completions][:: kit.G]
    assert met == [f"train-{k}" for k in stream_indices(len(kit.PROMPTS), 0, 0, 3 * kit.P)]
    assert sorted(met[: len(kit.PROMPTS)]) == [f"train-{k}" for k in range(len(kit.PROMPTS))]
    state = subject.trainer.state
    lengths = [len(row["completion_ids"]) for stats in drawn for row in stats.completions]
    assert (state.step, state.samples, state.tokens) == (6, 3 * kit.N, sum(lengths))
    ids = [[row["completion_ids"] for row in stats.completions] for stats in drawn[::2]]
    assert ids[0] != ids[1] != ids[2]
    for stats in drawn[1::2]:
        assert "sampler_gap_mean" not in stats.metrics
        assert "time/sample_s" not in stats.metrics
        assert stats.metrics["tokens_per_second"] is None


def test_rewards_are_asked_once_for_each_sampling(tiny, kit):
    seen = []

    def reward(completion_ids, trainer_state, **kwargs):
        seen.append(trainer_state.global_step)
        return [kit.worth(ids) for ids in completion_ids]

    subject = kit.Subject(tiny, reward, num_iterations=3)
    for _ in range(7):
        subject.step()
    assert seen == [0, 3, 6]


def test_several_steps_go_through_a_whole_run_with_its_files(tiny, tmp_path, kit):
    subject = kit.Subject(tiny, num_iterations=2, max_steps=4, output_dir=str(tmp_path / "run"))
    summary = subject.trainer.train()
    assert (summary["steps"], summary["samples"]) == (4, 2 * kit.N)
    files = sorted(path.name for path in (tmp_path / "run" / "completions").iterdir())
    assert files == ["step-000001.jsonl", "step-000003.jsonl"]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4
