"""The trainer's gradient is that of a naive loop, and in expectation that of the reward."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rl4lm import Rollout
from rl4lm.model import teacher_forcing

ARCHITECTURES = ["gpt2", "opt", "llama", "qwen2"]
TEMPERATURE = 0.7
ADVANTAGES = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0, 0.7])


def per_token(rollout: Rollout) -> Tensor:
    """[B, T], another advantage for every token; nan where there is none to have one."""
    values = torch.randn(rollout.completion_ids.shape, generator=torch.Generator().manual_seed(1))
    return values.masked_fill(~rollout.completion_mask, torch.nan)


@pytest.mark.parametrize("tokens", [False, True], ids=["per_completion", "per_token"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_gradient_is_that_of_one_sequence_at_a_time(architecture, tied, tokens, tiny):
    model = tiny.build_model(architecture, tied=tied)
    reference = copy.deepcopy(model).eval()
    rollout = tiny.random_rollout()
    advantages = per_token(rollout) if tokens else ADVANTAGES
    actual = tiny.build_trainer(model, temperature=TEMPERATURE).gradient(rollout, advantages)
    expected = tiny.naive_gradient(reference, rollout, advantages, TEMPERATURE)
    difference, scale = tiny.gap(actual, expected)
    assert difference < 1e-5
    assert scale < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_in_float64_they_agree_to_ten_digits(architecture, tiny):
    model = tiny.build_model(architecture, dtype=torch.float64)
    reference = copy.deepcopy(model).eval()
    rollout = tiny.random_rollout()
    trainer = tiny.build_trainer(model, temperature=TEMPERATURE, dtype="float64")
    expected = tiny.naive_gradient(reference, rollout, ADVANTAGES.double(), TEMPERATURE)
    difference, scale = tiny.gap(trainer.gradient(rollout, ADVANTAGES.double()), expected)
    assert difference < 1e-10
    assert scale < 1e-10
    table = tiny.naive_table(reference, rollout, TEMPERATURE)
    logprobs = trainer.policy.completion_logprobs(rollout, TEMPERATURE)
    assert float((logprobs - table).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [(a, "all-linear") for a in ARCHITECTURES] + [("llama", ["q_proj", "lm_head"])],
)
def test_only_an_adapter_has_a_gradient_and_it_is_the_right_one(architecture, targets, tiny):
    """B is drawn and not 0 here, so that A has a gradient to compare; the head counts too."""
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=3,
        target_modules=targets,
        init_lora_weights=False,
        fan_in_fan_out=architecture == "gpt2",
    )
    torch.manual_seed(0)
    trainer = tiny.build_trainer(
        tiny.build_model(architecture), temperature=TEMPERATURE, peft_config=adapter
    )
    rollout = tiny.random_rollout()
    actual = trainer.gradient(rollout, ADVANTAGES)
    expected = tiny.naive_gradient(trainer.policy.module.model, rollout, ADVANTAGES, TEMPERATURE)
    assert all("lora_" in name for name in actual)
    difference, scale = tiny.gap(actual, expected)
    assert difference < 1e-5
    assert scale < 1e-5


@pytest.mark.parametrize("part", ["lm_head", "model.norm"])
def test_a_part_of_the_model_can_be_trained_alone(part, tiny):
    model = tiny.build_model("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(part))
    rollout = tiny.random_rollout()
    expected = tiny.naive_gradient(model, rollout, ADVANTAGES, TEMPERATURE)
    actual = tiny.build_trainer(model, temperature=TEMPERATURE).gradient(rollout, ADVANTAGES)
    assert list(actual) == [f"{part}.weight"]
    assert max(tiny.gap(actual, expected)) < 1e-5


@pytest.mark.parametrize(
    "mistake",
    ["shifted targets", "end token dropped", "temperature", "token mean", "N per micro-batch"],
)
def test_mistakes_would_be_noticed(mistake, monkeypatch, tiny):
    model = tiny.build_model("llama")
    rollout = tiny.random_rollout()
    expected = tiny.naive_gradient(model, rollout, ADVANTAGES, TEMPERATURE)
    options, advantages = {"temperature": TEMPERATURE}, ADVANTAGES
    spread = ADVANTAGES[:, None].expand(rollout.completion_ids.shape)
    if mistake == "end token dropped":
        places = torch.arange(rollout.completion_ids.shape[1])
        advantages = spread.masked_fill(places == rollout.lengths[:, None] - 1, 0.0)
    elif mistake == "token mean":
        advantages = ADVANTAGES / rollout.lengths
    elif mistake == "temperature":
        options = {"temperature": 1.0}
    trainer = tiny.build_trainer(model, **options)
    tiled = teacher_forcing.tiled_gradient

    def broken(hidden, head, targets, weights, *rest):
        if mistake == "shifted targets":
            return tiled(hidden, head, targets.roll(1), weights, *rest)
        return tiled(hidden, head, targets, weights * 6 / 3, *rest)  # three of six rows

    if mistake in ("shifted targets", "N per micro-batch"):
        monkeypatch.setattr(teacher_forcing, "tiled_gradient", broken)
    difference, scale = tiny.gap(trainer.gradient(rollout, advantages), expected)
    assert difference > 1e-2
    assert scale > 1e-2


PROMPTS = [[1], [0, 2, 1]]
LENGTH = 3


def every_completion(vocabulary: int, end: int) -> list[list[int]]:
    """All that can be drawn in at most LENGTH tokens: an end comes last, or the limit cuts."""
    others = [token for token in range(vocabulary) if token != end]
    ended = [
        [*prefix, end] for t in range(LENGTH) for prefix in itertools.product(others, repeat=t)
    ]
    return ended + [list(row) for row in itertools.product(others, repeat=LENGTH)]


def reward(prompt: list[int], completion: list[int]) -> float:
    """Any function will do; this one is not linear and takes both signs."""
    return (sum(completion) * 7 % 5) - len(completion) + 0.5 * len(prompt)


def normalise_in_float64(model: nn.Module) -> None:
    """Llama's own norms compute in float32 whatever the model's dtype: an error of 1e-7."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LlamaRMSNorm):
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)


@pytest.fixture(scope="module", params=[3, 4])
def enumerated(request, tiny):
    """Trainer, rollout of everything, π [N] and r [N] of its rows, and ∇J by plain autograd."""
    model = tiny.build_model("llama", dtype=torch.float64, vocabulary=request.param, std=0.2)
    normalise_in_float64(model)
    trainer = tiny.build_trainer(model, temperature=TEMPERATURE, dtype="float64")
    completions = every_completion(request.param, tiny.EOS)
    rows = [(prompt, completion) for prompt in PROMPTS for completion in completions]
    rollout = Rollout.from_lists(*map(list, zip(*rows, strict=True)), len(completions))
    probabilities = torch.stack(
        [tiny.naive_logprobs(model, *row, TEMPERATURE).sum().exp() for row in rows]
    )
    rewards = torch.tensor([reward(*row) for row in rows], dtype=torch.float64)
    objective = (probabilities * rewards).sum() / len(PROMPTS)  # J = E_q Σ_o π(o|q) r(q, o)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradient = torch.autograd.grad(objective, parameters)
    return (
        trainer,
        rollout,
        probabilities.detach(),
        rewards,
        dict(zip(names, gradient, strict=True)),
    )


def expected_loss_gradient(enumerated, centred: Tensor) -> dict[str, Tensor]:
    """Σ_o π(o) ∇(-A(o) log π(o)), averaged over prompts, by one call: N π(o) / P undoes 1/N."""
    trainer, rollout, probabilities, _, _ = enumerated
    size = len(probabilities)
    scale = size * probabilities / len(PROMPTS)
    return trainer.gradient(rollout, centred * (scale if centred.dim() == 1 else scale[:, None]))


def ascent(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: -g for name, g in gradient.items()}


def test_the_completions_are_all_there_are(enumerated):
    _, rollout, probabilities, _, _ = enumerated
    sums = probabilities.view(len(PROMPTS), -1).sum(dim=1)
    assert sums.tolist() == pytest.approx([1.0, 1.0], abs=1e-12)
    distinct = {
        (i // rollout.num_generations, *row) for i, row in enumerate(rollout.completion_lists())
    }
    assert len(distinct) == len(probabilities)
    assert probabilities.min() < 0.1 * probabilities.max(), "a uniform policy would hide mistakes"


@pytest.mark.parametrize("baseline", [0.0, 1.7])
def test_the_expected_descent_direction_is_the_gradient_of_the_expected_reward(
    enumerated, baseline, tiny
):
    rewards, true = enumerated[3:]
    estimated = ascent(expected_loss_gradient(enumerated, rewards - baseline))
    difference, scale = tiny.gap(estimated, true)
    assert difference < 1e-11
    assert scale < 1e-11


def test_a_constant_reward_teaches_nothing_in_expectation(enumerated, tiny):
    rewards, true = enumerated[3:]
    estimated = expected_loss_gradient(enumerated, torch.full_like(rewards, 3.0))
    assert tiny.global_norm(estimated.values()) < 1e-12 * tiny.global_norm(true.values())


def test_a_mean_over_tokens_has_another_expectation(enumerated, tiny):
    rollout, rewards, true = enumerated[1], *enumerated[3:]
    estimated = ascent(expected_loss_gradient(enumerated, rewards / rollout.lengths))
    assert tiny.gap(estimated, true)[0] > 0.1


def test_dropping_the_end_token_has_another_expectation(enumerated, tiny):
    rollout, rewards, true = enumerated[1], *enumerated[3:]
    centred = rewards[:, None] * (rollout.completion_ids != tiny.EOS)
    estimated = ascent(expected_loss_gradient(enumerated, centred))
    assert tiny.gap(estimated, true)[0] > 0.1


def test_a_baseline_that_depends_on_the_completion_has_another_expectation(enumerated, tiny):
    rewards, true = enumerated[3:]
    estimated = ascent(expected_loss_gradient(enumerated, rewards - 0.5 * rewards.clamp(min=0)))
    assert tiny.gap(estimated, true)[0] > 0.1
