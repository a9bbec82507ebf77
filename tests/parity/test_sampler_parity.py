"""The sampler's log-probs are those of each sequence alone, unpadded, in one plain forward pass."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from rl4lm.model.policy import Policy
from rl4lm.model.preparing import inference_mode_of
from rl4lm.randomness import Stream
from rl4lm.sampling.drawing import InverseCdf, greedy
from rl4lm.sampling.loop import EndRule, generate
from rl4lm.types import Rollout

ARCHITECTURES = ["gpt2", "opt", "llama", "qwen2"]
TEMPERATURE = 0.7
TOLERANCE = 1e-4  # float32; the mistakes below are four orders of magnitude larger
# Lengths 1 to 9. The second begins with the end token, which is the padding token as well, and
# the third is full of ends.
PROMPTS = [[3], [0, 4, 5, 6, 7, 8, 9, 10, 11], [0, 12, 0], [60, 61, 62, 63, 64], [2, 0]]
ENDS = [0, *range(12, 20)]  # several ids end a completion


def sample(policy: Policy, prompts=PROMPTS, group: int = 4, length: int = 14, **ends: Any):
    choose = InverseCdf(
        seed=1,
        stream=Stream.TRAINING,
        step=0,
        places=range(64),
        num_generations=group,
        temperature=TEMPERATURE,
    )
    with inference_mode_of(policy.module):
        return generate(
            policy,
            prompts,
            choose,
            num_generations=group,
            max_completion_length=length,
            ends=EndRule(**{"token_ids": ENDS, **ends}),
        )


def distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max())


@pytest.fixture(params=ARCHITECTURES)
def model(request, tiny):
    return tiny.build_model(request.param).eval()


@pytest.fixture
def drawn(model, tiny) -> tuple[Rollout, Tensor]:
    """A rollout, and its log-probs by the naive loop."""
    rollout = sample(tiny.build_policy(model))
    return rollout, tiny.naive_table(model, rollout, TEMPERATURE)


def test_sampling_logprobs_are_those_of_a_plain_forward_pass(drawn):
    rollout, expected = drawn
    assert distance(rollout.sampling_logprobs, expected) < TOLERANCE
    assert 0 < int(rollout.ended.sum()) < len(rollout.ended), "both kinds of end must occur"
    assert float(expected.min()) < -3, "nearly certain tokens would hide mistakes"


def test_a_teacher_forced_pass_of_the_policy_gives_them_too(drawn, model, tiny):
    rollout, expected = drawn
    policy = tiny.build_policy(model)
    for budget in (1, 40, 10**6):
        actual = policy.completion_logprobs(rollout, TEMPERATURE, max_tokens=budget)
        assert distance(actual, expected) < TOLERANCE


def test_mistakes_in_the_comparison_would_be_noticed(drawn, model, tiny):
    rollout, expected = drawn
    policy, actual = tiny.build_policy(model), rollout.sampling_logprobs
    last = rollout.lengths[:, None] - 1 == torch.arange(actual.shape[1])
    targets = replace(rollout, completion_ids=rollout.completion_ids.roll(1, dims=1))
    assert distance(policy.completion_logprobs(targets, TEMPERATURE), expected) > 1, "shifted"
    assert distance(actual.masked_fill(last, 0.0), expected) > 0.1, "end token dropped"
    assert distance(policy.completion_logprobs(rollout, 1.0), expected) > 0.1, "temperature"
    assert distance(actual / rollout.lengths[:, None], expected) > 0.1, "mean over tokens"


def test_positions_that_count_padding_would_be_noticed(monkeypatch, tiny):
    """Learned positions read the padding's places where nobody passes positions along."""
    model = tiny.build_model("gpt2").eval()
    policy = tiny.build_policy(model)
    policy.module._takes_positions = False
    rollout = sample(policy)
    expected = tiny.naive_table(model, rollout, TEMPERATURE)
    padded = (~rollout.prompt_mask).any(dim=1).repeat_interleave(4)
    assert distance(rollout.sampling_logprobs[padded], expected[padded]) > 0.1
    assert distance(rollout.sampling_logprobs[~padded], expected[~padded]) < TOLERANCE


def test_left_padding_never_changes_a_logprob(model, tiny):
    """The same prompts alone and beside a long one; float64, so the tokens are the same too."""
    policy = tiny.build_policy(model.double())
    alone = sample(policy, PROMPTS[:1])
    beside = sample(policy, [PROMPTS[0], list(range(20, 50))])
    width = alone.completion_ids.shape[1]
    assert beside.completion_lists()[:4] == alone.completion_lists()
    assert distance(beside.sampling_logprobs[:4, :width], alone.sampling_logprobs) < 1e-12


def test_the_end_token_is_part_of_log_pi_and_nothing_follows_it(drawn):
    rollout, _ = drawn
    for row, ended in zip(rollout.completion_lists(), rollout.ended.tolist(), strict=True):
        assert ended == (row[-1] in ENDS)
        assert not set(row[:-1]) & set(ENDS)
        assert ended or len(row) == 14
    last = rollout.sampling_logprobs.gather(1, rollout.lengths[:, None] - 1)
    assert (last < 0).all()
    assert not rollout.sampling_logprobs[~rollout.completion_mask].any()


def test_the_policy_ends_at_the_ids_of_the_generation_config_and_at_stop_token_ids(tiny):
    model = tiny.build_model("llama")
    model.generation_config.eos_token_id = [5, 3]
    assert tiny.build_policy(model).end_token_ids == (3, 5)
    assert tiny.build_policy(model, stop_token_ids=[9, 3]).end_token_ids == (3, 5, 9)
    model.generation_config.eos_token_id = None
    assert tiny.build_policy(model).end_token_ids == (tiny.EOS,), "the model's own configuration"


def test_a_stop_string_ends_a_completion_and_counts(tiny):
    """A predicate on the completion's ids: here, that an even one follows an odd one."""
    model = tiny.build_model("llama").eval()

    def odd_even(ids: list[int]) -> bool:
        return any(a % 2 and not b % 2 for a, b in pairwise(ids))

    prompts = [[3, 4], [1, 2, 1, 2]]
    rollout = sample(tiny.build_policy(model), prompts, token_ids=(), reaches_stop=odd_even)
    expected = tiny.naive_table(model, rollout, TEMPERATURE)
    assert distance(rollout.sampling_logprobs, expected) < TOLERANCE
    for row, ended in zip(rollout.completion_lists(), rollout.ended.tolist(), strict=True):
        assert ended == odd_even(row)
        assert not odd_even(row[:-1])
    assert rollout.ended.any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_completions_are_those_of_model_generate(architecture, tiny):
    model = tiny.build_model(architecture, dtype=torch.float64).eval()
    policy = tiny.build_policy(model)
    with inference_mode_of(policy.module):
        rollout = generate(
            policy,
            PROMPTS,
            greedy,
            num_generations=1,
            max_completion_length=12,
            ends=EndRule(ENDS),
        )
    for prompt, completion in zip(PROMPTS, rollout.completion_lists(), strict=True):
        ids = torch.tensor([prompt])
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=ENDS,
            pad_token_id=tiny.EOS,
        )
        assert completion == written[0, len(prompt) :].tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampling_uses_its_cache_with_activation_checkpointing_on(architecture, tiny):
    """In train mode a checkpointed model drops the cache without a word."""
    model = tiny.build_model(architecture)
    reference = tiny.build_model(architecture).eval()
    policy = tiny.build_policy(model, activation_checkpointing=True)
    assert policy.module.training
    rollout = sample(policy)
    assert policy.module.training
    expected = tiny.naive_table(reference, rollout, TEMPERATURE)
    assert distance(rollout.sampling_logprobs, expected) < TOLERANCE


def test_sampling_in_train_mode_would_be_noticed(monkeypatch, tiny):
    policy = tiny.build_policy(tiny.build_model("llama"), activation_checkpointing=True)
    monkeypatch.setattr(policy.module, "eval", lambda: policy.module)
    rollout = sample(policy)
    expected = tiny.naive_table(tiny.build_model("llama").eval(), rollout, TEMPERATURE)
    assert distance(rollout.sampling_logprobs, expected) > 0.1
