"""`verify` passes what is right, names what is another objective, and fails every planted bug."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch

from rl4lm import ReinforceConfig, backward, centring, descent, earnings, learner, objective
from rl4lm.commandline.commands import quiet_libraries
from rl4lm.estimator import baselines, head, losses, shaping
from rl4lm.estimator.losses import TokenWeights
from rl4lm.exact import steps, testbed
from rl4lm.exact.checks import check_sampler, chi_square
from rl4lm.exact.enumeration import END, Rewards, all_completions
from rl4lm.model import decoding, policy, preparing, teacher_forcing
from rl4lm.passes import decoding_attention, microbatch, packed_attention
from rl4lm.processes import world
from rl4lm.sampling import drawing
from rl4lm.verify import every_case, verify, verify_all

SMALL = {"num_generations": 2, "temperature": 0.7}


def report(token_rewards=False, **options):
    config = ReinforceConfig(**{**SMALL, **options})
    return verify(config, token_rewards, variances=False)


@functools.cache
def verdict_without_a_bug(**options):
    return report(**options).verdict


EXACT = {
    "defaults": {},
    "data of a whole run": {
        "prompt_column": "question",
        "rename": ["a=b"],
        "prompt_template": "{x}",
        "system_prompt": "Be brief.",
        "chat_template_kwargs": ["enable_thinking=false"],
        "dataset_streaming": True,
        "max_train_samples": 1,
        "held_out_share": 0.9,
        "long_prompts": "drop",
    },
    "one completion a prompt": {"num_generations": 1, "baseline": "batch_leave_one_out"},
    "three, and a mean that sees its own sample": {"num_generations": 3, "baseline": "prompt_mean"},
    "history": {"baseline": "prompt_value"},
    "features": {"baseline": "linear_value", "num_generations": 1},
    "lengths": {"baseline": "length_weighted", "num_generations": 3},
    "adapters": {"use_peft": True, "baseline": "batch_mean"},
    "tokens": {"token_rewards": True, "baseline": "moving_average"},
    "KL in the reward": {"beta": 0.3, "kl_in": "reward"},
    "KL in the reward of tokens": {"beta": 0.3, "kl_in": "token_reward", "use_peft": True},
    "KL in the loss": {"beta": 0.3, "kl_in": "loss"},
    "entropy": {"entropy_coef": 0.3},
    "all at once": {
        "beta": 0.3,
        "kl_in": "token_reward",
        "entropy_coef": 0.2,
        "token_rewards": True,
        "use_peft": True,
        "temperature": 1.3,
    },
}


@pytest.mark.parametrize("options", EXACT.values(), ids=EXACT)
def test_the_gradient_is_exact_for(options):
    found = report(**options)
    assert found.passed, found.checks
    assert found.residual < 1e-12
    assert found.cosine == pytest.approx(1.0, abs=1e-12)
    errors = [check.value for check in found.checks if check.limit == 1e-9]
    assert len(errors) == 5
    assert max(errors) < 1e-12


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"use_peft": True, "beta": 0.3, "entropy_coef": 0.2}])
def test_the_gradient_is_exact_on_a_gpu(options):
    """The trainer works on the device; the truth is worked out on the CPU."""
    assert torch.cuda.is_available()
    assert report(**options).passed


OTHERS = {
    "grpo_k3": ({"beta": 0.3, "kl_in": "grpo_k3"}, "k3 in the loss"),
    "entropy in the loss": ({"entropy_coef": 0.3, "entropy_in": "loss"}, "a regulariser"),
    "discount": ({"gamma": 0.8}, "gradient of no function"),
    "clip": ({"num_iterations": 3}, "clipped"),
    "a scale on one part only": ({"baseline": "batch_mean", "entropy_coef": 0.3}, "shrinks"),
}


@pytest.mark.parametrize(("options", "why"), OTHERS.values(), ids=OTHERS)
def test_another_objective_is_named_and_never_passed(options, why):
    found = report(**options)
    assert found.verdict == "another objective"
    assert not found.passed
    assert why in found.why
    assert found.to_dict()["passed"] is False
    if why != "clipped":  # the first update of a window is exact
        assert found.residual > 1e-3


# --- Planted bugs. Each is put into the code that trains; `verify` must fail.


def change_micro_batches(patch, change):
    """Change every micro-batch that is built, packed or padded."""
    for name in ("_build", "_pack"):
        build = getattr(microbatch, name)
        patch.setattr(microbatch, name, lambda *given, build=build: change(build(*given)))


def plant_a_shift_by_one(patch):
    """The token before the one that is predicted from (trl#3681)."""
    change_micro_batches(patch, lambda batch: replace(batch, targets=batch.targets.roll(1)))


def plant_a_mask_that_lets_a_prompt_token_in(patch):
    """One more token counts, the last of the prompt; the last of the completion does not."""

    def shifted(batch):
        chosen = batch.input_ids.flatten()[batch.predicts]
        return replace(batch, predicts=(batch.predicts - 1).clamp(min=0), targets=chosen)

    change_micro_batches(patch, shifted)


def plant_a_loss_without_the_end_token(patch):
    """Ids that are the end token are taken for padding (trl PR#4970, unsloth-zoo PR#832)."""
    accumulate = policy.Policy.accumulate_gradient

    def without_end(self, rollout, weights, *rest):
        real = rollout.completion_ids.ne(END)
        dropped = weights.logprobs.where(real, 0.0)
        return accumulate(self, rollout, TokenWeights(dropped, weights.entropies), *rest)

    patch.setattr(policy.Policy, "accumulate_gradient", without_end)


def plant_a_gradient_without_temperature(patch):
    original = teacher_forcing.tiled_gradient
    patch.setattr(
        teacher_forcing,
        "tiled_gradient",
        lambda hidden, head, targets, weights, temperature, *rest: original(
            hidden, head, targets, weights, 1.0, *rest
        ),
    )


def plant_a_sampler_without_temperature(patch):
    """The policy that samples is another one (trl#4159, trl#5783)."""
    original = drawing.softmax_in_place
    patch.setattr(drawing, "softmax_in_place", lambda logits, temperature: original(logits, 1.0))


def plant_top_k_in_the_sampler(patch):
    """The gradient is that of the whole softmax, the samples are not (trl#6789)."""
    keep = drawing.keep_most_likely(2, 1.0)
    original = drawing.InverseCdf.__call__

    def truncated(self, logits, rows, token):
        return original(self, keep(logits), rows, token)

    patch.setattr(drawing.InverseCdf, "__call__", truncated)


def plant_a_normalisation_per_micro_batch(patch):
    """The loss depends on how rows are cut (trl#3021, verl#3741)."""
    original = teacher_forcing.tiled_gradient

    def per_micro_batch(hidden, head, targets, weights, *rest):
        return original(hidden, head, targets, 4 * weights / len(weights), *rest)

    patch.setattr(teacher_forcing, "tiled_gradient", per_micro_batch)


def plant_a_token_mean(patch):
    """log π of a completion divided by its length."""
    original = losses.reinforce_loss

    def mean(logprobs, mask, advantages, count):
        if advantages.dim() == 1:
            advantages = advantages[:, None].expand(mask.shape)
        return original(logprobs, mask, advantages / mask.sum(1, keepdim=True), count)

    patch.setattr(objective, "reinforce_loss", mean)
    patch.setattr(learner, "reinforce_loss", mean)


def plant_a_world_size_factor(patch):
    """Gradients are averaged where the loss was divided by all already."""
    sum_gradients = world.World.sum_gradients

    def averaged(self, parameters):
        sum_gradients(self, parameters)
        for parameter in parameters:
            parameter.grad /= 2

    patch.setattr(world.World, "sum_gradients", averaged)


def plant_a_denominator_after_skipping(patch):
    """N counts the completions that are differentiated, not those that were drawn."""
    centre = centring.Centre.__call__

    def skipped(self, *arguments):
        e, state = centre(self, *arguments)
        return replace(e, num_completions=max(1, int(e.advantages.ne(0).sum()))), state

    patch.setattr(centring.Centre, "__call__", skipped)


def plant_a_wrong_sign(patch):
    original = losses.reinforce_loss

    def ascending(*arguments):
        return -original(*arguments)

    patch.setattr(objective, "reinforce_loss", ascending)
    patch.setattr(learner, "reinforce_loss", ascending)


def plant_a_baseline_that_sees_its_own_sample(patch):
    """The mean of the prompt, called leave-one-out."""
    patch.setitem(baselines.BASELINES, "prompt_leave_one_out", baselines.prompt_mean)


def plant_the_published_form_of_opo(patch):
    """Σ l r / Σ l with the own sample in it: no multiple of the gradient, whatever the scale."""

    def published(rewards, inputs, state):
        weight = inputs.lengths / inputs.lengths.sum(-1, keepdim=True)
        return (weight * rewards).sum(-1, keepdim=True).expand_as(rewards), state

    patch.setitem(baselines.BASELINES, "length_weighted", published)


def plant_division_by_the_standard_deviation(patch):
    """GRPO's advantage, and NeMo-RL#1518 where the spread is small."""
    original = shaping.advantages

    def scaled(returns, baseline, valid):
        return original(returns, baseline, valid) / (returns.std() + 1e-4)

    patch.setattr(shaping, "advantages", scaled)


def plant_a_mean_of_the_first_prompt_only(patch):
    """Only the first group is used for the mean (PipelineRL PR#54)."""

    def first_only(rewards, inputs, state):
        return rewards[..., :1, :].mean(-1, keepdim=True).expand_as(rewards), state

    patch.setitem(baselines.BASELINES, "batch_leave_one_out", first_only)


def plant_a_history_that_holds_the_present(patch):
    original = baselines.BASELINES["prompt_value"]

    def leaking(rewards, inputs, state):
        _, seen = original(rewards, inputs, state)
        value, _ = original(rewards, inputs, seen)
        return value, seen

    patch.setitem(baselines.BASELINES, "prompt_value", leaking)


def plant_k1_in_the_loss(patch):
    """Its expected gradient is exactly zero."""

    def first(logprobs, reference, mask, count, weights):
        return torch.where(mask, logprobs - reference, 0.0).sum() / count

    patch.setattr(objective, "kl_squared_loss", first)


def plant_k3_in_the_reward(patch):
    from rl4lm.estimator.kl import k3

    patch.setattr(earnings, "k1", k3)


def plant_a_reference_that_follows_the_policy(patch):
    def following(policy, temperature, max_tokens):
        return lambda rollout: policy.completion_logprobs(rollout, temperature, max_tokens)

    patch.setattr(learner, "make_reference", following)


def plant_stale_log_probs(patch):
    """Later updates look at the policy that sampled."""
    patch.setattr(descent.Descent, "_logprobs", lambda self, r: r.sampling_logprobs.double())


def plant_a_ratio_per_token(patch):
    """The ratio of a token in the place of the sequence's (trl#4772)."""

    def per_token(logprobs, old, mask):
        return (logprobs - old).where(mask, 0.0)[:, 0].exp()

    patch.setattr(losses, "importance_ratio", per_token)


def plant_an_entropy_without_its_slope(patch):
    patch.setattr(objective, "entropy_loss", lambda entropies, *rest: 0 * entropies.sum())


def plant_an_entropy_that_is_not_foreseen(patch):
    """Only the direct term, called the gradient of the entropy."""
    patch.setattr(earnings, "after_each_token", lambda values, mask: torch.zeros_like(values))


def plant_returns_that_forget_the_future(patch):
    def only_now(rewards, mask, gamma):
        return rewards.where(mask, 0.0)

    patch.setattr(earnings, "returns_to_go", only_now)


def plant_positions_that_count_padding(patch):
    """Left padding moves a prompt (OpenRLHF#217, trl#6800)."""
    patch.setattr(
        decoding, "_positions", lambda mask: torch.arange(mask.shape[1]).expand(mask.shape)
    )


def plant_equal_tokens_taken_for_equal_completions(patch):
    """Completions are merged whatever their prompt."""

    def by_tokens(rollout):
        first = {}
        return torch.tensor(
            [first.setdefault(tuple(ids), i) for i, ids in enumerate(rollout.completion_lists())]
        )

    patch.setattr(teacher_forcing, "first_of_equals", by_tokens)


def plant_gradients_that_pile_up(patch):
    def kept(self):
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    patch.setattr(backward.Backward, "_clear", kept)


def plant_dropout(patch):
    """trl#3000: sampled with one mask, differentiated with another."""
    patch.setattr(preparing, "switch_dropout_off", lambda model: None)


def plant_a_lost_half(patch):
    """Steps that measure their noise forget the second half of the prompts."""
    masked = backward._masked
    calls = itertools.count()

    def forgetful(weights, rows):
        return masked(weights, rows if next(calls) % 2 == 0 else torch.zeros_like(rows))

    patch.setattr(backward, "_masked", forgetful)


def plant_a_head_gradient_of_half(patch):
    original = teacher_forcing.tiled_gradient

    def halved(hidden, head, *rest):
        return original(
            hidden, lambda states: 0.5 * head(states) + 0.5 * head(states).detach(), *rest
        )

    patch.setattr(teacher_forcing, "tiled_gradient", halved)


def plant_a_continuation_that_sees_one_token_ahead(patch):
    original = packed_attention._ContinuationRows.__init__

    def ahead(self, given, prompt_lengths, device):
        original(self, given, prompt_lengths, device)
        self._seen = self._seen | self._seen.roll(1, dims=-1)

    patch.setattr(packed_attention._ContinuationRows, "__init__", ahead)


def plant_a_continuation_without_its_prompt(patch):
    original = packed_attention._ContinuationRows.of_prompts
    patch.setattr(
        packed_attention._ContinuationRows,
        "of_prompts",
        lambda self, rows: 0 * original(self, rows),
    )


def plant_a_prompt_that_learns_from_no_completion(patch):
    """What completions see of their prompt is taken for a constant."""
    original = packed_attention._ContinuationRows.of_prompts
    patch.setattr(
        packed_attention._ContinuationRows,
        "of_prompts",
        lambda self, rows: original(self, rows.detach()),
    )


def plant_positions_of_the_neighbours_in_the_packed_row(patch):
    change_micro_batches(
        patch, lambda batch: replace(batch, position_ids=batch.position_ids.roll(1, dims=1))
    )


def plant_a_closed_form_without_its_token(patch):
    """The head pushes all probabilities down and the chosen one not up."""
    original = head.LinearHead.gradient

    def without(self, hidden, targets, weights):
        return original(self, hidden, (targets + 1) % len(self._weight), weights)

    patch.setattr(head.LinearHead, "gradient", without)


def plant_completions_that_swap_places_in_decoding(patch):
    original = decoding_attention.Decoding._by_row
    patch.setattr(
        decoding_attention.Decoding,
        "_by_row",
        lambda self, *given: original(self, *given).roll(1, 0),
    )


def plant_padding_that_is_seen_in_decoding(patch):
    original = decoding_attention.PromptStore.__init__

    def seen(self, *given):
        original(self, *given)
        self.hidden = None

    patch.setattr(decoding_attention.PromptStore, "__init__", seen)


def plant_a_deviation_of_the_population(patch):
    """Divided by G where TRL divides by G - 1."""

    def of_population(returns, valid, dims):
        return returns.std(dim=dims, keepdim=True, correction=0).expand_as(returns)

    patch.setattr(shaping, "_deviation", of_population)


def plant_a_token_count_of_each_prompt(patch):
    """The mean over the tokens of a prompt, in the place of the step's (trl PR#6024, verl#5625)."""

    def of_each(lengths, kept, longest):
        tokens = torch.where(kept, lengths, 0.0).sum(dim=-1, keepdim=True).clamp(min=1.0)
        return lengths.shape[-1] / tokens.expand_as(lengths)

    patch.setitem(shaping.WEIGHTINGS, "dapo", of_each)


def plant_a_count_of_what_has_ended(patch):
    """What is masked is taken out of N as well."""
    weights = shaping.Shaping.weights

    def renormalised(self, lengths, ended):
        count = ended.double().mean(dim=(-2, -1), keepdim=True)
        return weights(self, lengths, ended) / count.clamp(min=0.1)

    patch.setattr(shaping.Shaping, "weights", renormalised)


PLANTS = [
    (plant_a_shift_by_one, {}),
    (plant_a_mask_that_lets_a_prompt_token_in, {}),
    (plant_a_loss_without_the_end_token, {}),
    (plant_a_gradient_without_temperature, {}),
    (plant_a_sampler_without_temperature, {}),
    (plant_top_k_in_the_sampler, {}),
    (plant_a_normalisation_per_micro_batch, {}),
    (plant_a_token_mean, {}),
    (plant_a_world_size_factor, {}),
    (plant_a_denominator_after_skipping, {}),
    (plant_a_wrong_sign, {}),
    (plant_a_baseline_that_sees_its_own_sample, {}),
    (plant_the_published_form_of_opo, {"baseline": "length_weighted"}),
    (plant_division_by_the_standard_deviation, {}),
    (plant_a_mean_of_the_first_prompt_only, {"baseline": "batch_leave_one_out"}),
    (plant_a_history_that_holds_the_present, {"baseline": "prompt_value"}),
    (plant_k1_in_the_loss, {"beta": 0.3, "kl_in": "loss"}),
    (plant_k3_in_the_reward, {"beta": 0.3, "kl_in": "reward"}),
    (plant_a_reference_that_follows_the_policy, {"beta": 0.3, "kl_in": "loss"}),
    (plant_a_reference_that_follows_the_policy, {"beta": 0.3, "use_peft": True}),
    (plant_stale_log_probs, {"num_iterations": 2}),
    (plant_a_ratio_per_token, {"num_iterations": 2}),
    (plant_an_entropy_without_its_slope, {"entropy_coef": 0.3}),
    (plant_an_entropy_that_is_not_foreseen, {"entropy_coef": 0.3}),
    (plant_returns_that_forget_the_future, {"token_rewards": True}),
    (plant_positions_that_count_padding, {"fast_path": False}),
    (plant_a_shift_by_one, {"fast_path": False}),
    (plant_a_mask_that_lets_a_prompt_token_in, {"fast_path": False}),
    (plant_a_continuation_that_sees_one_token_ahead, {}),
    (plant_a_continuation_without_its_prompt, {}),
    (plant_a_prompt_that_learns_from_no_completion, {}),
    (plant_positions_of_the_neighbours_in_the_packed_row, {}),
    (plant_a_closed_form_without_its_token, {}),
    (plant_completions_that_swap_places_in_decoding, {}),
    (plant_padding_that_is_seen_in_decoding, {}),
    (plant_equal_tokens_taken_for_equal_completions, {}),
    (plant_gradients_that_pile_up, {}),
    (plant_dropout, {"fast_path": False}),
    (plant_a_lost_half, {}),
    (plant_a_head_gradient_of_half, {}),
    (plant_a_deviation_of_the_population, {"scale_rewards": "group"}),
    (plant_a_token_count_of_each_prompt, {"loss_type": "dapo"}),
    (plant_a_count_of_what_has_ended, {"mask_truncated_completions": True}),
]


def take_the_fast_path_unseen(policy, fast_path):
    """In the place of the probe."""
    policy.module.packs = fast_path
    return []


def test_a_curriculum_is_another_objective_and_further_prompts_are_not():
    found = verify(ReinforceConfig(num_generations=2, curriculum="success"), variances=False)
    assert (found.verdict, found.passed) == ("another objective", False)
    assert "a curriculum draws other prompts" in found.why
    found = verify(ReinforceConfig(num_generations=2, dynamic_sampling=2), variances=False)
    assert found.verdict == "exact"


@pytest.mark.parametrize(
    ("plant", "options"), PLANTS, ids=[f"{p.__name__[6:]}-{i}" for i, (p, _) in enumerate(PLANTS)]
)
def test_a_planted_bug_fails(plant, options, monkeypatch):
    # Not the probe's business here: some of these it would refuse before the first step.
    monkeypatch.setattr("rl4lm.assembly.probe", take_the_fast_path_unseen)
    monkeypatch.setattr("rl4lm.verify.WHOLE_BATCHES", 14)
    monkeypatch.setattr("rl4lm.verify.DRAWS", 600)
    assert verdict_without_a_bug(**options) != "failed"
    plant(monkeypatch)
    found = report(**options)
    assert found.verdict == "failed", found
    assert not found.passed


def test_rewards_per_token_that_look_ahead_are_not_followed(monkeypatch):
    """A final score spread evenly over the tokens pays the first one for what the last one did."""
    draw = Rewards.draw.__func__

    def spread(cls, completions, seed):
        rewards = draw(cls, completions, seed)
        lengths = torch.tensor([len(ids) for ids in completions])[:, None]
        evenly = rewards.per_token.sum(-1, keepdim=True) / lengths
        inside = torch.arange(rewards.per_token.shape[-1]) < lengths
        return Rewards(torch.where(inside, evenly, 0.0), completions)

    monkeypatch.setattr(Rewards, "draw", classmethod(spread))
    found = report(token_rewards=True)
    assert found.verdict == "failed"
    assert [check.name for check in found.checks if not check.passed] == [
        "expected gradient against ∇J"  # the code does what it says; J is another one
    ]
    assert found.residual > 0.1
    assert report(token_rewards=False).passed, "paid once, at the end, the same scores are fine"


def test_the_matrix_holds_every_baseline_and_option():
    chosen = ReinforceConfig(dynamic_sampling=2, curriculum="success")
    assert list(every_case(chosen)) == list(every_case(ReinforceConfig()))
    cases = [(config, tokens) for config, tokens in every_case(ReinforceConfig())]
    plain = {
        (c.baseline, c.use_peft, c.temperature, c.num_generations)
        for c, tokens in cases
        if not (tokens or c.beta or c.entropy_coef or c.gamma < 1 or c.num_iterations > 1)
        and (c.loss_type, c.scale_rewards) == ("reinforce", "none")
    }
    for name in baselines.BASELINES:
        groups = (2, 3) if name in baselines.NEEDS_TWO_GENERATIONS else (1, 2, 3)
        assert {(name, p, t, g) for p in (False, True) for t in (1.0, 0.7) for g in groups} <= plain
    assert {c.kl_in for c, _ in cases if c.beta} == {"reward", "token_reward", "loss", "grpo_k3"}
    assert {c.loss_type for c, _ in cases} == set(shaping.WEIGHTINGS)
    assert {c.scale_rewards for c, _ in cases} == set(shaping.SPREADS)
    assert {c.mask_truncated_completions for c, _ in cases} == {False, True}


def test_a_quarter_of_the_matrix_is_exact_with_fewer_batches(monkeypatch):
    """All of it, with fifty batches each, is `rl4lm verify --all`, and a test among the slow."""
    monkeypatch.setattr("rl4lm.verify.WHOLE_BATCHES", 6)
    monkeypatch.setattr("rl4lm.verify.DRAWS", 200)
    verdicts = []
    for place, (config, token_rewards) in enumerate(every_case(ReinforceConfig())):
        if config.use_peft == (config.temperature == 0.7) and place % 2 == 0:
            config = replace(config, fast_path=len(verdicts) % 3 > 0)
            found = verify(config, token_rewards, variances=False)
            verdicts.append((found.verdict, bool(found.why)))
    assert abs(len(verdicts) - len(list(every_case(ReinforceConfig()))) / 4) < 2
    assert set(verdicts) == {("exact", False), ("another objective", True)}
    assert verdicts.count(("another objective", True)) == 5


@pytest.mark.slow
def test_cases_side_by_side_are_those_one_after_the_other(monkeypatch):
    few = list(every_case(ReinforceConfig()))[:3]
    monkeypatch.setattr("rl4lm.verify.every_case", lambda config: iter(few))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    beside = [found.to_dict() for found in verify_all(ReinforceConfig(), quiet_libraries)]
    monkeypatch.setenv("RANK", "0")  # launched processes do not start others
    assert beside == [found.to_dict() for found in verify_all(ReinforceConfig(), quiet_libraries)]
    assert [found["options"]["baseline"] for found in beside] == [c.baseline for c, _ in few]


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_the_completions_of_a_prompt_are_counted_by_hand(length):
    """Ended after k tokens, 2^(k-1) ways; or cut off, 2^length ways: each once."""
    found = all_completions(length)
    assert len(found) == len(set(found)) == 2**length - 1 + 2**length
    for ids in found:
        assert END not in ids[:-1]
        assert ids[-1] == END or len(ids) == length


def test_the_chi_square_test_is_that_of_a_table():
    """Two equally likely outcomes drawn 60 and 40 times: statistic 4, p = 0.0455."""
    drawn = torch.tensor([0] * 60 + [1] * 40)
    even = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert chi_square(drawn, even) == pytest.approx(math.erfc(math.sqrt(2)), rel=1e-9)
    assert chi_square(torch.tensor([0] * 50 + [1] * 50), even) == 1.0


@pytest.mark.parametrize("gaps", [(math.nan, 0.0), (0.0, math.nan)])
def test_a_number_that_is_none_passes_no_check(gaps):
    even = torch.tensor([0.5, 0.5], dtype=torch.float64)
    draws = [steps.Draws(torch.tensor([0, 1] * 50), even, gap) for gap in gaps]
    found = {check.name: check.passed for check in check_sampler(draws)}
    assert found == {"log-probs at sampling time": False, "chi-square of the sampler, p": True}


@pytest.mark.slow
def test_the_variances_are_those_of_many_steps():
    """The exact variance of `none` and of the default, against what 400 drawn steps show."""
    config = ReinforceConfig(**SMALL, baseline="none")
    exact = verify(config).variance
    assert exact["none"] == 1.0
    spread = {}
    for name in ("none", "prompt_leave_one_out"):
        bed = testbed.Testbed(replace(_tiny(config), baseline=name), False)
        found = steps.run_whole_batches(bed, 400).found
        spread[name] = float(found.var(dim=0).sum())
    ratio = spread["prompt_leave_one_out"] / spread["none"]
    assert ratio == pytest.approx(exact["prompt_leave_one_out"], rel=0.2)


def _tiny(config):
    from rl4lm.verify import _setting

    return _setting(config)
