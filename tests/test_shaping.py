"""What TRL's options multiply advantages by: beside naive loops, and beside TRL's own code."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from rl4lm import ReinforceConfig
from rl4lm.errors import ConfigError
from rl4lm.estimator.losses import entropy_loss, grpo_k3_loss, kl_squared_loss, reinforce_loss
from rl4lm.estimator.shaping import EPSILON, SPREADS, WEIGHTINGS, shaped_advantages
from rl4lm.objective import shaping_of

P, G, T = 3, 4, 6
N = P * G
FORMS = tuple(WEIGHTINGS)


def drawn(seed=0):
    """Rewards, lengths, ends and log-probs of a made-up step; the third prompt earns all alike."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(P, G, generator=generator, dtype=torch.float64)
    rewards[2] = 0.75
    lengths = torch.randint(1, T + 1, (P, G), generator=generator)
    lengths[0, 0], lengths[1, 2] = T, T
    ended = lengths < T
    logprobs = -torch.rand(N, T, generator=generator, dtype=torch.float64)
    mask = torch.arange(T) < lengths.flatten()[:, None]
    return rewards, lengths, ended, logprobs, mask


def shaping(**options):
    return shaping_of(ReinforceConfig(max_completion_length=T, **options))


def gradient(rewards, lengths, ended, logprobs, mask, **options):
    """∂L/∂log π [B, T] with the mean of the prompt as baseline."""
    shape = shaping(**options)
    valid = torch.ones_like(rewards, dtype=torch.bool)
    weights = shape.weights(lengths, ended)
    factors = (weights / shape.scales(rewards, valid)).flatten()
    mean = rewards.mean(dim=1, keepdim=True).expand_as(rewards).flatten()
    given = shaped_advantages(rewards.flatten(), mean, factors, valid.flatten(), mask)
    leaf = logprobs.clone().requires_grad_()
    reinforce_loss(leaf, mask, given, N).backward()
    return leaf.grad


def naive(rewards, lengths, ended, mask_truncated, loss_type, scale_rewards):
    """The same by a loop over tokens, from the definitions."""
    result = torch.zeros(N, T, dtype=torch.float64)
    kept = [bool(e) or not mask_truncated for e in ended.flatten()]
    tokens = sum(int(n) for n, k in zip(lengths.flatten(), kept, strict=True) if k)
    for i in range(N):
        of_prompt = rewards[i // G].tolist()
        advantage = of_prompt[i % G] - statistics.fmean(of_prompt)
        if scale_rewards == "group":
            advantage /= statistics.stdev(of_prompt) + 1e-4
        if scale_rewards == "batch":
            advantage /= statistics.stdev(rewards.flatten().tolist()) + 1e-4
        length = int(lengths.flatten()[i])
        divisor = {"reinforce": N, "grpo": N * length, "dr_grpo": N * T, "dapo": tokens}[loss_type]
        for t in range(length):
            result[i, t] = -advantage / divisor if kept[i] else 0.0
    return result


@pytest.mark.parametrize("mask_truncated", [False, True], ids=["all", "ended"])
@pytest.mark.parametrize("scale_rewards", list(SPREADS))
@pytest.mark.parametrize("loss_type", FORMS)
def test_the_weight_of_a_token_is_that_of_a_loop(loss_type, scale_rewards, mask_truncated):
    step = drawn()
    found = gradient(
        *step,
        loss_type=loss_type,
        scale_rewards=scale_rewards,
        mask_truncated_completions=mask_truncated,
    )
    expected = naive(*step[:3], mask_truncated, loss_type, scale_rewards)
    assert torch.allclose(found, expected, rtol=1e-12, atol=0)
    assert (found[8:] == 0).all(), "equal rewards stay at exactly 0, however small the deviation"


def test_these_options_are_off_by_default_and_off_means_times_one():
    rewards, lengths, ended, _, _ = drawn()
    shape = shaping()
    assert (shape.weights(lengths, ended) == 1).all()
    assert (shape.scales(rewards, torch.ones_like(rewards, dtype=torch.bool)) == 1).all()


def trls_loss(loss_type, advantages, logprobs, mask, beta=0.0, reference=None):
    """TRL's own loss of one batch, a function of its log-probs."""
    trl = pytest.importorskip("trl")
    everything = SimpleNamespace(
        num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True
    )
    stand_in = SimpleNamespace(
        loss_type=loss_type,
        top_entropy_quantile=1.0,
        aux_loss_enabled=False,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        epsilon_low=0.2,
        epsilon_high=0.2,
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=T,
        accelerator=everything,
        args=SimpleNamespace(
            delta=None, steps_per_generation=1, use_bias_correction_kl=False, epsilon_high=0.2
        ),
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, -logprobs.detach(), None),
    )
    inputs = {
        "prompt_ids": torch.zeros(N, 1, dtype=torch.int64),
        "prompt_mask": torch.ones(N, 1, dtype=torch.int64),
        "completion_ids": torch.zeros(N, T, dtype=torch.int64),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "num_items_in_batch": mask.sum(),
    }
    if reference is not None:
        inputs["ref_per_token_logps"] = reference
    return trl.GRPOTrainer._compute_loss(stand_in, None, inputs)


def trls_advantages(rewards, scale_rewards):
    """As TRL's trainer writes them, with its own standard deviation."""
    from trl.trainer.utils import nanstd

    flat = rewards.flatten()
    deviation = nanstd(rewards, dim=1).repeat_interleave(G)
    if scale_rewards == "batch":
        deviation = nanstd(flat).expand_as(flat)
    centred = flat - rewards.mean(dim=1).repeat_interleave(G)
    return centred if scale_rewards == "none" else centred / (deviation + 1e-4)


@pytest.mark.parametrize("mask_truncated", [False, True], ids=["all", "ended"])
@pytest.mark.parametrize("scale_rewards", list(SPREADS))
@pytest.mark.parametrize("loss_type", ["dr_grpo", "grpo", "dapo"])
def test_the_gradient_is_that_of_trls_own_loss(loss_type, scale_rewards, mask_truncated):
    """At the first update on a batch, where TRL's ratios are 1."""
    rewards, lengths, ended, logprobs, mask = drawn()
    leaf = logprobs.clone().requires_grad_()
    kept = mask & (ended.flatten()[:, None] | (not mask_truncated))
    trls_loss(loss_type, trls_advantages(rewards, scale_rewards), leaf, kept).backward()
    found = gradient(
        rewards,
        lengths,
        ended,
        logprobs,
        mask,
        loss_type=loss_type,
        scale_rewards=scale_rewards,
        mask_truncated_completions=mask_truncated,
    )
    # TRL's correction of Bessel is a number in float32, whatever the rewards are.
    assert torch.allclose(found, leaf.grad, rtol=1e-12 if scale_rewards == "none" else 1e-7)
    assert leaf.grad.norm() > 5e-3


@pytest.mark.parametrize(
    ("theirs", "ours"), [("luspo", "reinforce"), ("cispo", "dapo"), ("sapo", "grpo")]
)
def test_other_losses_of_trl_are_one_of_these_at_the_first_update(theirs, ours):
    """What the refusals say of them; `bnpo` is `dapo` within a micro-batch."""
    rewards, lengths, ended, logprobs, mask = drawn()
    leaf = logprobs.clone().requires_grad_()
    loss = trls_with_ratios(theirs, trls_advantages(rewards, "none"), leaf, mask)
    loss.backward()
    found = gradient(rewards, lengths, ended, logprobs, mask, loss_type=ours)
    assert torch.allclose(found, leaf.grad, rtol=1e-9, atol=1e-15)


def trls_with_ratios(loss_type, advantages, logprobs, mask):
    """`trls_loss` with the settings that the loss asks for."""
    trl = pytest.importorskip("trl")
    original = trl.GRPOTrainer._compute_loss

    def with_settings(stand_in, model, inputs):
        stand_in.epsilon_high = 5.0
        stand_in.args.sapo_temperature_pos, stand_in.args.sapo_temperature_neg = 1.0, 1.05
        if loss_type == "luspo":
            stand_in.importance_sampling_level = "sequence"  # which it insists on
        return original(stand_in, model, inputs)

    trl.GRPOTrainer._compute_loss = with_settings
    try:
        return trls_loss(loss_type, advantages, logprobs, mask)
    finally:
        trl.GRPOTrainer._compute_loss = original


def test_the_kl_of_grpo_has_the_weights_of_its_loss_type():
    _, lengths, ended, logprobs, mask = drawn()
    reference = logprobs - 0.3 * torch.rand(N, T, dtype=torch.float64)
    for loss_type in ("dr_grpo", "grpo", "dapo"):
        leaf, ours = (logprobs.clone().requires_grad_() for _ in range(2))
        nothing = torch.zeros(N, dtype=torch.float64)
        trls_loss(loss_type, nothing, leaf, mask, 0.7, reference).backward()
        weights = shaping(loss_type=loss_type).weights(lengths, ended).flatten()
        (0.7 * grpo_k3_loss(ours, reference, mask, N, weights)).backward()
        assert torch.allclose(ours.grad, leaf.grad, rtol=1e-12, atol=1e-15)


def test_a_weight_counts_a_completion_in_every_term():
    """Twice the weight is the completion twice; no weight is without it."""
    _, _, _, logprobs, mask = drawn()
    weights = torch.tensor([2.0, 0.0, 1.0] * 4, dtype=torch.float64)
    again = torch.tensor([i for i in range(N) for _ in range(int(weights[i]))])
    reference = logprobs - 0.2
    for term in (
        lambda rows, w: kl_squared_loss(logprobs[rows], reference[rows], mask[rows], N, w),
        lambda rows, w: grpo_k3_loss(logprobs[rows], reference[rows], mask[rows], N, w),
        lambda rows, w: entropy_loss(-logprobs[rows], mask[rows], N, w),
    ):
        weighed = term(torch.arange(N), weights)
        assert math.isclose(float(weighed), float(term(again, 1.0)), rel_tol=1e-12)


def test_the_deviation_leaves_out_rewards_that_do_not_apply():
    rewards = torch.tensor([[1.0, 3.0, 99.0], [5.0, 99.0, 99.0]], dtype=torch.float64)
    valid = rewards < 99
    group = SPREADS["group"](rewards, valid)
    assert group[0].tolist() == pytest.approx([math.sqrt(2) + EPSILON] * 3)
    assert group[1].tolist() == [EPSILON] * 3, "one reward has no deviation"
    batch = SPREADS["batch"](rewards, valid)
    assert batch.flatten().tolist() == pytest.approx([2 + EPSILON] * 6)


def test_a_step_in_which_all_was_cut_off_counts_nothing():
    shape = shaping(loss_type="dapo", mask_truncated_completions=True)
    weights = shape.weights(torch.full((P, G), T), torch.zeros(P, G, dtype=torch.bool))
    assert (weights == 0).all()


@pytest.mark.parametrize(
    ("given", "meant"), [(True, "group"), (False, "none"), ("batch", "batch"), ("true", "group")]
)
def test_scale_rewards_is_read_as_trl_reads_it(given, meant):
    assert ReinforceConfig(scale_rewards=given).scale_rewards == meant


def test_a_deviation_of_one_reward_is_refused():
    with pytest.raises(ConfigError, match="scale_rewards=group divides by the standard deviation"):
        ReinforceConfig(scale_rewards="group", num_generations=1)
    with pytest.raises(ConfigError, match="scale_rewards=batch"):
        ReinforceConfig(scale_rewards="batch", num_generations=1, prompts_per_step=1)
    assert ReinforceConfig(scale_rewards="batch", num_generations=1).scale_rewards == "batch"


@pytest.mark.parametrize("loss_type", ["bnpo", "cispo", "sapo", "luspo", "vespo"])
def test_a_loss_type_that_is_not_offered_is_answered_with_the_reason(loss_type):
    with pytest.raises(ConfigError, match=f"loss_type: {loss_type} is refused, because"):
        ReinforceConfig(loss_type=loss_type)
