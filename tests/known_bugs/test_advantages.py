"""Known bugs of advantages, and of the KL beside them (38 to 43).

Every docstring begins with the public threads; conftest.py tells how the tests are made.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rl4lm import ReinforceConfig, Rollout, objective
from rl4lm.config import COMPARES_WITHIN_PROMPT
from rl4lm.errors import ConfigError
from rl4lm.estimator import baselines, shaping
from rl4lm.estimator.baselines import BASELINES, BaselineInputs
from rl4lm.model import teacher_forcing
from rl4lm.sampling import sampler
from rl4lm.types import Scores
from rl4lm.verify import verify

TIGHT = 1e-10  # on the norm of the difference and on the ratio of norms, float64
NOTICED = 1e-3  # what a planted bug must exceed
P, G = 4, 4  # of every run, as in conftest.py
N = P * G


def three_right_one_wrong(completion_ids, **kwargs):
    return [0.0 if i % G == G - 1 else 1.0 for i in range(len(completion_ids))]


def scaled_by_the_others(rewards: Tensor, baseline: Tensor, valid: Tensor) -> Tensor:
    """The bug: leave-one-out advantages over the leave-one-out standard deviation, plus 1e-6."""
    groups = rewards.view(-1, G)
    others = [torch.cat([groups[:, :i], groups[:, i + 1 :]], dim=1).std(dim=1) for i in range(G)]
    return torch.where(valid, rewards - baseline, 0.0) / (torch.stack(others, 1).flatten() + 1e-6)


def test_an_advantage_is_never_larger_than_the_spread_of_the_rewards(tiny, monkeypatch, kit):
    """NeMo-RL#1518, NeMo-RL PR#4158: leave-one-out with a standard deviation exploded to ±1e6
    where all others earned the same. Here advantages stay within the spread, and are linear:
    rewards that differ by 1e-9 give the 1e-9th part of the step."""
    run = kit.Run(tiny, three_right_one_wrong)
    run.step()
    assert float(run.experience.advantages.abs().max()) == 1.0
    whole, small = kit.Run(tiny), kit.Run(tiny, lambda **given: _nearly_equal(kit, **given))
    for each in (whole, small):
        each.step()
    magnified = {name: 1e9 * part for name, part in small.moved.items()}
    assert max(tiny.gap(magnified, whole.moved)) < 1e-5  # 1 + 1e-9 x holds seven digits of x
    rewards = small.experience.scores.rewards
    spread = float((rewards.amax(dim=1) - rewards.amin(dim=1)).max())
    assert float(small.experience.advantages.abs().max()) <= spread * (1 + 1e-12) < 1e-7
    monkeypatch.setattr(shaping, "advantages", scaled_by_the_others)
    broken = kit.Run(tiny, three_right_one_wrong)
    broken.step()
    assert float(broken.experience.advantages.abs().max()) > 1e5


def _nearly_equal(kit: Any, completion_ids, **kwargs):
    return [1.0 + 1e-9 * kit.worth(ids) for ids in completion_ids]


@pytest.mark.parametrize("name", [n for n in BASELINES if n not in baselines.KEEPS_HISTORY])
def test_advantages_are_what_the_name_says_and_nothing_is_normalised_behind_it(name, tiny, kit):
    """OpenRLHF#856, OpenRLHF#924, OpenRLHF#830: "the mean advantage is always positive", "where is
    the normalisation?". Here the logged advantage is the logged reward less the function of that
    name, and what is centred has a mean of zero over completions, whatever their lengths."""
    run = kit.Run(tiny, baseline=name)
    stats = run.step()
    rewards, found = (
        torch.tensor([row[column] for row in stats.completions], dtype=torch.float64).view(P, G)
        for column in ("reward", "advantage")
    )
    inputs = BaselineInputs(
        lengths=torch.tensor([len(row["completion_ids"]) for row in stats.completions]).view(P, G),
        valid=torch.ones(P, G, dtype=torch.bool),
        prompt_keys=torch.arange(P),
        prompt_features=torch.zeros(P, 0, dtype=torch.float64),
    )
    assert BASELINES[name].__name__ == name
    expected, _ = BASELINES[name](rewards, inputs, {})
    assert float((found - (rewards - expected)).abs().max()) < 1e-14
    assert run.gap(run.naive(found.flatten())) < TIGHT
    if name.startswith("prompt_"):
        assert float(found.sum(dim=1).abs().max()) < 1e-12
    if name.startswith("batch_"):
        assert abs(float(found.sum())) < 1e-12
    if name == "none":
        assert torch.equal(found, rewards)
    assert abs(float(found.std()) - 1) > NOTICED, "no whitening"


OTHERS_SEEN = {
    "prompt_leave_one_out": lambda i, j: j // G == i // G,
    "batch_leave_one_out": lambda i, j: True,
    "prompt_mean": lambda i, j: j // G == i // G,
    "batch_mean": lambda i, j: True,
    "length_weighted": lambda i, j: j // G == i // G,
}


@pytest.mark.parametrize("name", OTHERS_SEEN)
def test_every_sample_counts_in_the_mean(name, tiny, monkeypatch, kit):
    """PipelineRL PR#54: only the first rollout was used for the mean, and "the whole thing still
    kinda works". Here one reward after the other is raised by 1: it must lower the advantage of
    exactly those that are compared with it."""
    expected = [(i, j) for i in range(N) for j in range(N) if i != j and OTHERS_SEEN[name](i, j)]
    assert compared(kit, tiny, name, range(N)) == expected

    def first_only(rewards, inputs, state):
        return rewards[..., :1].expand_as(rewards), state

    monkeypatch.setitem(BASELINES, name, first_only)
    assert compared(kit, tiny, name, range(G)) != [(i, j) for i, j in expected if j < G]
    if name.startswith("prompt_"):
        # With the first sample for the mean of its prompt the expectation is (G-1)/G of the
        # gradient, which is just what `prompt_mean` states: there only the count above can tell.
        found = verify(ReinforceConfig(num_generations=2, baseline=name), variances=False)
        assert found.verdict == ("exact" if name == "prompt_mean" else "failed")


def compared(kit: Any, tiny: Any, baseline: str, others: Iterable[int]) -> list[tuple[int, int]]:
    """The pairs (i, j) of which i loses advantage when the reward of j in `others` is raised."""
    raised: list[int] = []

    def reward(completion_ids, **kwargs):
        return [kit.worth(ids) + (i in raised) for i, ids in enumerate(completion_ids)]

    run = kit.Run(tiny, reward, baseline=baseline)
    start = run.weights()

    def advantages() -> Tensor:
        run.restart(start)
        run.step()
        return run.experience.advantages

    before, pairs = advantages(), []
    for j in others:
        raised[:] = [j]
        change = advantages() - before
        pairs += [(i, j) for i in range(N) if i != j and change[i] < -1e-6]
    return sorted(pairs)


@pytest.mark.parametrize("name", sorted(COMPARES_WITHIN_PROMPT))
def test_a_group_of_one_is_not_compared_with_itself(name, tiny, kit):
    """rllm#916: with one sample of a prompt all advantages were 0 and no error was raised. Here
    what compares within a prompt is refused, and what is chosen instead learns."""
    message = rf"baseline={name} compares the completions of one prompt, but num_generations=1"
    with pytest.raises(ConfigError, match=message):
        ReinforceConfig(num_generations=1, baseline=name)
    run = kit.Run(tiny, num_generations=1)
    assert run.trainer.config.resolved_baseline == "batch_leave_one_out"
    stats = run.step()
    assert stats.metrics["effective_samples"] == P
    rewards = run.experience.scores.rewards.flatten()
    by_hand = (rewards - rewards.mean()) * P / (P - 1)
    assert run.gap(run.naive(by_hand)) < TIGHT
    assert stats.metrics["updated"]
    # The bug, behind the back of the configuration.
    run.learner.gatherer.centre.baseline = BASELINES["prompt_mean"]
    broken = run.learner.step()
    assert broken.metrics["effective_samples"] == 0
    assert not broken.metrics["updated"]


def test_prompts_whose_completions_all_earn_the_same_cost_nothing_and_move_nothing(
    tiny, monkeypatch, kit
):
    """trl#5588, trl PR#5598, trl PR#5640, trl#6367: groups of constant reward were run forward and
    backward all the same, and with a weight on the KL they moved the model by the KL alone."""
    ran: list[int] = []
    cut = teacher_forcing.micro_batches

    def counted(rollout, rows, *rest):
        ran.extend(rows)
        return cut(rollout, rows, *rest)

    monkeypatch.setattr(teacher_forcing, "micro_batches", counted)

    def reward(prompts, completion_ids, **kwargs):
        same = {"t5": 0.1 + 0.2, "t1 t2": -7.3}  # neither is a sum of powers of two
        pairs = zip(prompts, completion_ids, strict=True)
        return [same[p] if p in same else kit.worth(ids) for p, ids in pairs]

    run = kit.Run(tiny, reward, max_tokens_per_micro_batch=23)
    ran.clear()
    stats = run.step()
    rows = range(N)
    idle = {i for i in rows if run.experience.examples[i // G].prompt in ("t5", "t1 t2")}
    assert len(idle) == 2 * G
    assert ran
    assert not set(ran) & idle
    assert stats.metrics["frac_reward_zero_std"] == 0.5
    live = int(kit.leave_one_out(run.experience.scores).count_nonzero())
    assert 0 < stats.metrics["effective_samples"] == live <= N - 2 * G
    assert run.gap() < TIGHT  # N counts them
    constant = kit.Run(tiny, lambda completions, **kwargs: [0.3] * len(completions))
    ran.clear()
    before = constant.weights()
    assert not constant.step().metrics["updated"]
    assert ran == []
    assert all(torch.equal(value, before[name]) for name, value in constant.weights().items())


def test_a_weight_on_the_kl_moves_the_model_by_the_kl_alone_only_towards_the_reference(tiny, kit):
    """The other half: with beta > 0 and equal rewards the step is that of the KL's own gradient,
    zero at the reference, and exact away from it."""
    options = {"beta": 0.3, "reward": lambda completions, **kwargs: [0.3] * len(completions)}
    still = kit.Run(tiny, **options)
    initial = copy.deepcopy(still.policy.module.causal_lm).eval()
    assert still.step().metrics["grad_norm"] < 1e-13, "rounding in the log-ratio, nothing more"
    run = kit.Run(tiny, **options).disturb()
    assert run.step().metrics["grad_norm"] > NOTICED
    now, then = (tiny.naive_table(m, run.rollout, kit.TEMPERATURE) for m in (run.before, initial))
    paid = -0.3 * (now - then).sum(dim=1).view(P, G)
    valid = torch.ones(P, G, dtype=torch.bool)
    assert run.gap(run.naive(kit.leave_one_out(Scores(paid, valid, {})))) < TIGHT


@pytest.mark.parametrize("kl_in", ["reward", "token_reward", "loss"])
def test_at_the_reference_equal_rewards_move_no_weight_with_adam_either(kl_in, tiny, kit):
    """There is nothing to learn: the policy is the reference, and all earned the same. What is
    left is the rounding between cached and uncached log-probs, 1e-7 in float32, and AdamW divides
    a gradient by its own size: it must not become a step of the whole learning rate."""
    run = kit.Run(
        tiny,
        lambda completions, **kwargs: [0.3] * len(completions),
        tiny.build_model("gpt2", vocabulary=kit.VOCABULARY),
        **{"dtype": "float32", "optim": "adamw", "learning_rate": 1e-3, "beta": 0.1},
        kl_in=kl_in,
    )
    run.step()
    rates = max(float(part.abs().max()) for part in run.moved.values())
    assert rates < 0.01, f"a weight moved by {rates:.2f} of the learning rate"


def test_an_estimator_of_the_kl_that_does_not_follow_it_is_refused(tiny):
    """trl#7086, trl#5889: which estimator of the KL is right was in dispute. Here k1 and k3 in the
    loss are refused with the reason; the next test settles the rest by enumeration."""
    for value in ("k1", "k1_loss"):
        with pytest.raises(ConfigError, match=r"expected gradient of k1 .* is exactly zero"):
            ReinforceConfig(beta=0.1, kl_in=value)
    for value in ("k3", "k3_loss"):
        with pytest.raises(ConfigError, match="k3 in the loss does not follow the gradient"):
            ReinforceConfig(beta=0.1, kl_in=value)


WORDS = 5


def expected_kl_step(
    kit: Any, tiny: Any, patch: Any, kl_in: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Σ_o π(o) · (the step on o alone), over all one-token completions; and ∇ β KL by autograd."""
    model = tiny.build_model("gpt2", vocabulary=WORDS, dtype=torch.float64)
    initial = copy.deepcopy(model).eval()
    sizes = {"prompts_per_step": 1, "num_generations": 1, "max_completion_length": 1}
    options = {"beta": 0.3, "kl_in": kl_in, "baseline": "none", **sizes}

    def nothing(completions, **kwargs):
        return [0.0] * len(completions)

    run = kit.Run(tiny, nothing, model, ["t1 t2"], **options).disturb(0.3)
    start = run.weights()
    prompt = torch.tensor([[1, 2]])

    def log_pi(of: Any) -> Tensor:
        return (of(input_ids=prompt).logits[0, -1] / kit.TEMPERATURE).log_softmax(0)

    expected = {name: torch.zeros_like(value) for name, value in start.items()}
    for token in range(WORDS):
        rows = Rollout.from_lists([[1, 2]], [[token]])
        sampled = run.policy.completion_logprobs(rows, kit.TEMPERATURE)
        rows = replace(rows, sampling_logprobs=sampled)
        patch.setattr(sampler, "generate", lambda *given, _rows=rows, **named: _rows)
        run.step()
        run.restart(start)
        for name, part in run.moved.items():
            expected[name] += float(sampled.exp()) * part
    now, then = log_pi(run.before), log_pi(initial).detach()
    named = dict(run.before.named_parameters())
    divergence = 0.3 * (now.exp() * (now - then)).sum()
    parts = torch.autograd.grad(divergence, list(named.values()))
    return expected, dict(zip(named, parts, strict=True))


@pytest.mark.parametrize("kl_in", ["reward", "token_reward", "loss"])
def test_the_expected_pull_of_the_kl_is_its_gradient(kl_in, tiny, monkeypatch, kit):
    """By enumeration of every completion, through whole steps."""
    assert max(tiny.gap(*expected_kl_step(kit, tiny, monkeypatch, kl_in))) < 1e-9


def test_k3_in_the_loss_and_k1_in_the_loss_pull_elsewhere(tiny, monkeypatch, kit):
    """The negative controls of the test above."""
    assert max(tiny.gap(*expected_kl_step(kit, tiny, monkeypatch, "grpo_k3"))) > NOTICED

    def first(logprobs, reference, mask, count, weights):
        return torch.where(mask, logprobs - reference, 0.0).sum() / count

    monkeypatch.setattr(objective, "kl_squared_loss", first)
    found, true = expected_kl_step(kit, tiny, monkeypatch, "loss")
    assert tiny.global_norm(found.values()) < 1e-9 * tiny.global_norm(true.values())
