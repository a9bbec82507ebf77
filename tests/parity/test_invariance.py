"""What must not matter: the layout of the work, and how the checkpoint happened to be stored."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rl4lm import Rollout
from rl4lm.backward import Backward
from rl4lm.estimator import logprobs
from rl4lm.estimator.losses import TokenWeights
from rl4lm.model import teacher_forcing
from rl4lm.model.loading import load_model, open_model
from rl4lm.model.policy import Policy
from rl4lm.model.preparing import inference_mode_of, make_policy
from rl4lm.randomness import Stream
from rl4lm.sampling import loop as sampling
from rl4lm.sampling.drawing import InverseCdf
from rl4lm.sampling.loop import EndRule, generate
from rl4lm.text import TextCodec

ARCHITECTURES = ["gpt2", "opt", "llama", "qwen2"]
TEMPERATURE = 0.7
ADVANTAGES = torch.tensor([1.0, -0.5, 0.0, 2.0, -1.0, 0.0])
PROMPTS = [[3], [0, 4, 5, 6, 7, 8, 9], [12, 0], [60, 61, 62, 63], [2, 0], [5, 5, 5]]


@pytest.fixture(params=ARCHITECTURES)
def trainer(request, tiny):
    return tiny.build_trainer(tiny.build_model(request.param), temperature=TEMPERATURE)


def with_budget(trainer, tokens: int):
    """The same trainer with another budget of tokens per micro-batch."""
    other = copy.copy(trainer.learner)
    other.backward = Backward(
        trainer.policy, trainer.world, temperature=TEMPERATURE, max_tokens=tokens
    )
    return other


def permuted(rollout: Rollout, prompts: list[int]) -> tuple[Rollout, Tensor]:
    """The rollout with its prompts in another order, and the rows [B] that it took."""
    group = rollout.num_generations
    rows = torch.tensor([p * group + k for p in prompts for k in range(group)])
    picked = {
        name: getattr(rollout, name)[torch.tensor(prompts) if name.startswith("prompt") else rows]
        for name in vars(rollout)
    }
    return Rollout(**picked), rows


def test_the_gradient_does_not_depend_on_the_layout_of_the_work(trainer, tiny, monkeypatch):
    rollout = tiny.random_rollout()
    expected = trainer.gradient(rollout, ADVANTAGES)
    other, rows = permuted(rollout, [2, 0, 1])
    run, cut = trainer.policy.module.run, []
    monkeypatch.setattr(
        trainer.policy.module,
        "run",
        lambda batch, read: cut.append(len(batch.rows)) or run(batch, read),
    )
    layouts = {
        f"budget {n}": with_budget(trainer, n).gradient(rollout, ADVANTAGES) for n in (1, 20)
    }
    assert cut[:4] == [1, 1, 1, 1], "the four live rows go alone"
    assert len(cut) < 8, "and with a larger budget some together"
    layouts["padding"] = trainer.gradient(tiny.pad_more(rollout, 5, 3), ADVANTAGES)
    layouts["order"] = trainer.gradient(other, ADVANTAGES[rows])
    monkeypatch.setattr(logprobs, "TILE_ELEMENTS", 2 * tiny.VOCABULARY)
    layouts["tiles"] = trainer.gradient(rollout, ADVANTAGES)
    for layout, actual in layouts.items():
        difference, scale = tiny.gap(actual, expected)
        assert difference < 1e-5, layout
        assert scale < 1e-5, layout


def test_samples_without_advantage_are_not_run_and_still_count_in_n(trainer, tiny, monkeypatch):
    """Two of the six have advantage 0; leaving them out of N would scale the step by 6/4."""
    rollout = tiny.random_rollout()
    live = [i for i, advantage in enumerate(ADVANTAGES.tolist()) if advantage]
    rows = list(zip(tiny.prompts_of_rows(rollout), rollout.completion_lists(), strict=True))
    fewer = Rollout.from_lists([rows[i][0] for i in live], [rows[i][1] for i in live])
    expected = trainer.gradient(rollout, ADVANTAGES)
    without = trainer.gradient(fewer, ADVANTAGES[live])
    rescaled = {name: gradient * 4 / 6 for name, gradient in without.items()}
    assert max(tiny.gap(rescaled, expected)) < 1e-5
    assert tiny.gap(without, expected)[1] == pytest.approx(0.5, abs=1e-4)

    forwards: list[int] = []
    run = trainer.policy.module.run
    monkeypatch.setattr(
        trainer.policy.module,
        "run",
        lambda batch, read: forwards.extend(batch.rows.tolist()) or run(batch, read),
    )
    trainer.gradient(rollout, ADVANTAGES)
    assert sorted(forwards) == live


def test_without_any_advantage_the_gradient_is_zeros_and_not_none(trainer, tiny):
    """AdamW leaves a parameter whose gradient is None out of the decay of its moments."""
    gradient = trainer.gradient(tiny.random_rollout(), torch.zeros(6))
    assert gradient.keys() == dict(trainer.policy.module.model.named_parameters()).keys()
    assert not any(part.any() for part in gradient.values())


def test_padding_that_is_read_would_be_noticed(trainer, tiny):
    rollout = tiny.pad_more(tiny.random_rollout(), 0, 2)
    read = replace(rollout, completion_mask=torch.ones_like(rollout.completion_mask))
    expected = trainer.gradient(rollout, ADVANTAGES)
    assert tiny.gap(trainer.gradient(read, ADVANTAGES), expected)[0] > 1e-2


def test_activation_checkpointing_changes_no_gradient(tiny):
    model = tiny.build_model("gpt2")
    plain = tiny.build_trainer(copy.deepcopy(model), temperature=TEMPERATURE)
    saving = tiny.build_trainer(model, temperature=TEMPERATURE, activation_checkpointing=True)
    rollout, inputs = tiny.random_rollout(), []
    saving.policy.module.model.transformer.h[0].attn.register_forward_hook(
        lambda *call: inputs.append(call)
    )
    actual = saving.gradient(rollout, ADVANTAGES)
    assert len(inputs) == 2, "the activations are computed again on the way back"
    assert max(tiny.gap(actual, plain.gradient(rollout, ADVANTAGES))) < 1e-6


def sample(policy: Policy, prompts=PROMPTS, places=range(6)) -> Rollout:
    choose = InverseCdf(
        seed=1,
        stream=Stream.TRAINING,
        step=0,
        places=places,
        num_generations=3,
        temperature=TEMPERATURE,
    )
    with inference_mode_of(policy.module):
        return generate(
            policy,
            prompts,
            choose,
            num_generations=3,
            max_completion_length=12,
            ends=EndRule(range(20)),
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_tokens_are_drawn_in_every_layout(architecture, tiny, monkeypatch):
    """In float64: all prompts at once, in two halves, and one by one; rows dropped or kept."""
    policy = tiny.build_policy(tiny.build_model(architecture, dtype=torch.float64))
    whole = sample(policy)
    lists = whole.completion_lists()
    assert len({len(row) for row in lists}) > 3, "rows must end at different times"
    halves = [sample(policy, PROMPTS[:3]), sample(policy, PROMPTS[3:], [3, 4, 5])]
    assert [row for half in halves for row in half.completion_lists()] == lists
    singles = [sample(policy, [prompt], [i]) for i, prompt in enumerate(PROMPTS)]
    assert [row for single in singles for row in single.completion_lists()] == lists
    assert sample(policy, PROMPTS[3:]).completion_lists() != lists[9:], "places ignored"
    for share in (0.0, 1.0):
        monkeypatch.setattr(sampling, "_COMPACT_SHARE", share)
        again = sample(policy)
        assert again.completion_lists() == lists
        assert float((again.sampling_logprobs - whole.sampling_logprobs).abs().max()) < 1e-12


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_layout_repeats_bit_for_bit_in_float32(architecture, tiny):
    policy = tiny.build_policy(tiny.build_model(architecture))
    first, second = sample(policy), sample(policy)
    assert first.completion_lists() == second.completion_lists()
    assert torch.equal(first.sampling_logprobs, second.sampling_logprobs)


def run_gradient(policy: Policy, rollout: Rollout) -> Tensor:
    weights = -ADVANTAGES[:, None].expand(rollout.completion_ids.shape).clone()
    weights[weights == 0] = 1.0
    weights = TokenWeights(weights, torch.zeros_like(weights))
    return policy.accumulate_gradient(rollout, weights, TEMPERATURE, 10**6)


def test_dropout_is_off_in_training_and_kept_in_the_saved_configuration(tiny, tmp_path):
    model = tiny.build_model("gpt2").train()
    assert model.config.attn_pdrop == 0.1
    rollout = tiny.random_rollout()
    ids = torch.tensor([list(range(20))])
    assert not torch.equal(model(ids).logits, model(ids).logits), "dropout is on in this model"
    policy = tiny.build_policy(model)
    assert policy.module.training
    assert torch.equal(run_gradient(policy, rollout), run_gradient(policy, rollout))
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert [saved[f"{place}_pdrop"] for place in ("attn", "embd", "resid")] == [0.1, 0.1, 0.1]


@pytest.fixture
def bfloat16_checkpoint(tiny, tmp_path):
    tiny.build_model("llama", dtype=torch.bfloat16).save_pretrained(tmp_path)
    tiny.build_tokenizer().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    return str(tmp_path)


def load(path: str, dtype: str) -> Policy:
    source = open_model(path)
    model = load_model(source, dtype=dtype, device=torch.device("cpu"))
    return make_policy(model, TextCodec(source.tokenizer), dtype=dtype)


def share_moved(policy: Policy, rollout: Rollout, optimizer_class) -> float:
    """The share of weights that one step of relative size 1e-4, or less, moves."""
    run_gradient(policy, rollout)
    (matrix,) = [p for n, p in policy.trainable().items() if n.endswith("1.mlp.up_proj.weight")]
    rate = 1e-4 * float(matrix.detach().abs().mean())
    if optimizer_class is torch.optim.SGD:
        rate /= float(matrix.grad.abs().mean())
    before = matrix.detach().clone()
    optimizer_class([matrix], lr=rate).step()
    return float((matrix.detach() != before).float().mean())


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
def test_a_small_step_is_not_lost_on_a_bfloat16_checkpoint(
    bfloat16_checkpoint, tiny, optimizer_class
):
    """bfloat16 holds 8 bits, so it rounds relative steps of 1e-4 away; float32 masters do not."""
    rollout = tiny.random_rollout()
    for dtype in ("auto", "float32", "bfloat16"):
        policy = load(bfloat16_checkpoint, dtype)
        assert {p.dtype for p in policy.trainable().values()} == {torch.float32}
        assert share_moved(policy, rollout, optimizer_class) > 0.95, dtype
    pure = load(bfloat16_checkpoint, "pure_bfloat16")
    assert {p.dtype for p in pure.trainable().values()} == {torch.bfloat16}
    assert share_moved(pure, rollout, optimizer_class) < 0.1


@pytest.mark.parametrize(
    ("stored", "dtype", "expected"),
    [
        (torch.bfloat16, "auto", torch.float32),
        (torch.float16, "bfloat16", torch.float32),
        (torch.bfloat16, "pure_bfloat16", torch.bfloat16),
        (torch.float32, "float64", torch.float64),
        (torch.float64, "auto", torch.float64),
    ],
)
def test_a_model_object_has_the_precision_of_a_loaded_one(stored, dtype, expected, tiny):
    model = tiny.build_model("llama", dtype=stored, tied=True)
    policy = tiny.build_trainer(model, dtype=dtype).policy
    assert {p.dtype for p in policy.module.parameters()} == {expected}
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_pad_token_that_is_a_real_input_learns_its_embedding(tiny):
    """`nn.Embedding(padding_idx)` drops that row's gradient; autograd alone cannot see the hole."""
    model = tiny.build_model("llama", dtype=torch.float64)
    rollout = Rollout.from_lists([[0, 5, 6]], [[7, 8]])
    plain = tiny.build_trainer(copy.deepcopy(model), dtype="float64")
    expected = plain.gradient(rollout, torch.ones(1).double())["model.embed_tokens.weight"]
    model.model.embed_tokens.padding_idx = 0
    padded = tiny.build_trainer(model, dtype="float64")
    actual = padded.gradient(rollout, torch.ones(1).double())["model.embed_tokens.weight"]
    assert expected[0].norm() > 1e-3
    assert torch.equal(actual, expected)


def test_equal_completions_are_run_once_with_the_weights_of_all(tiny, monkeypatch):
    """Rows 0, 2 and 3 are equal; row 4 has the same tokens, and another prompt."""
    prompts = [[5, 6]] * 4 + [[7, 8, 9]] * 4
    completions = [[1, 2, 0], [1, 3], [1, 2, 0], [1, 2, 0], [1, 2, 0], [4], [4, 4], [4]]
    rollout = Rollout.from_lists(prompts, completions, num_generations=4)
    advantages = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0, 0.7, 0.2, -0.7])
    model = tiny.build_model("llama")
    expected = tiny.naive_gradient(copy.deepcopy(model).eval(), rollout, advantages, 1.0)
    run: list[int] = []
    cut = teacher_forcing.micro_batches

    def counted(rollout, rows, *rest):
        run.extend(rows)
        return cut(rollout, rows, *rest)

    monkeypatch.setattr(teacher_forcing, "micro_batches", counted)
    trainer = tiny.build_trainer(model)
    run.clear()
    difference, scale = tiny.gap(trainer.gradient(rollout, advantages), expected)
    assert difference < 1e-5
    assert scale < 1e-5
    # Rows 5 and 7 are equal and their advantages cancel: nothing is left to run.
    assert run == [0, 1, 4, 6]


def test_completions_of_unequal_prompts_are_never_taken_for_equal(tiny, monkeypatch):
    """The negative control: merging by tokens alone gives another gradient."""
    rollout = Rollout.from_lists([[5, 6], [7, 8, 9]], [[1, 2, 0], [1, 2, 0]])
    advantages = torch.tensor([1.0, -0.4])
    model = tiny.build_model("llama")
    expected = tiny.naive_gradient(copy.deepcopy(model).eval(), rollout, advantages, 1.0)
    trainer = tiny.build_trainer(model)
    monkeypatch.setattr(teacher_forcing, "first_of_equals", lambda rollout: torch.tensor([0, 0]))
    difference, _ = tiny.gap(trainer.gradient(rollout, advantages), expected)
    assert difference > 1e-2
