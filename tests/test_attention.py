"""Attention that shares prompts, against attention of each sequence alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rl4lm.passes.attention import NotPackableError, attend, shared_prompts
from rl4lm.passes.decoding_attention import Decoding, PromptStore
from rl4lm.passes.microbatch import micro_batches
from rl4lm.passes.packed_attention import PackedRow
from rl4lm.passes.packing import pack
from rl4lm.preflight.probe import probe

HEADS, KEY_HEADS, SIZE = 4, 2, 3
SHAPES = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(1, 6), min_size=2, max_size=2)),
    min_size=1,
    max_size=4,
)


@dataclass
class Row:
    """A packed row with random queries, keys and values, and what each sequence alone is."""

    query: Tensor  # [1, heads, L, d]
    key: Tensor  # [1, key heads, L, d]
    value: Tensor
    layout: PackedRow
    sequences: list[tuple[list[int], int]]  # places of prompt and continuation, first own place


def packed_row(shapes, dtype=torch.float64, key_heads=KEY_HEADS, seed=0) -> Row:
    sequences = {
        2 * p + k: ([100 * p + j for j in range(q)], list(range(t)))
        for p, (q, lengths) in enumerate(shapes)
        for k, t in enumerate(lengths)
    }
    row = pack(sequences, list(sequences))
    generator = torch.Generator().manual_seed(seed)

    def draw(heads):
        shape = (1, heads, len(row.ids), SIZE)
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    places = []
    for k, (prompt, completion) in sequences.items():
        end = row.prompt_ends[k]
        of_prompt = list(range(end + 1 - len(prompt), end + 1))
        start = row.starts.get(k, 0)
        places.append((of_prompt + list(range(start, start + len(completion) - 1)), len(prompt)))
    layout = PackedRow(row.packing, torch.device("cpu"))
    return Row(draw(HEADS), draw(key_heads), draw(key_heads), layout, places)


def alone(query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None) -> Tensor:
    """Causal attention of one sequence by its definition: [heads, L, d] -> [L, heads, d]."""
    shared = len(query) // len(key)
    key, value = key.repeat_interleave(shared, 0), value.repeat_interleave(shared, 0)
    scores = query @ key.transpose(1, 2) * (SIZE**-0.5 if scaling is None else scaling)
    later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    return (scores.masked_fill(later, -torch.inf).softmax(-1) @ value).transpose(0, 1)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.sampled_from([1, 2, 4]), st.sampled_from([None, 0.3]))
def test_every_sequence_of_a_packed_row_is_as_it_would_be_alone(shapes, key_heads, scaling):
    row = packed_row(shapes, key_heads=key_heads)
    found = row.layout.attend(0, row.query, row.key, row.value, scaling)[0]  # [L, heads, d]
    inputs = [row.query, row.key, row.value]
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    total = torch.zeros((), dtype=torch.float64)
    seen = torch.zeros(len(found), dtype=torch.bool)
    for places, prompt in row.sequences:
        expected = alone(*(x[0][:, places] for x in inputs), scaling)
        assert torch.allclose(found[places], expected, rtol=0, atol=1e-12)
        new = torch.tensor([not seen[place] for place in places])
        total = total + (expected * weights[places])[new].sum()
        seen[places] = True
        assert prompt <= len(places)
    assert seen.all()
    expected = torch.autograd.grad(total, inputs)
    actual = torch.autograd.grad((found * weights).sum(), inputs)
    for one, other in zip(actual, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-11)


def test_one_token_of_the_future_would_be_noticed():
    row = packed_row([(3, [4, 3])])
    for part in row.layout._continuations:
        part._seen = part._seen | part._seen.roll(1, dims=-1)
    found = row.layout.attend(0, row.query, row.key, row.value, None)[0]
    places, _ = row.sequences[0]
    expected = alone(*(x[0][:, places] for x in (row.query, row.key, row.value)))
    assert float((found[places] - expected).abs().max()) > 0.01


def decoded(shapes: list[int], rows: list[list[int]], tokens: int, hidden: bool = True) -> float:
    """Largest gap to attention alone when `tokens` are drawn for rows that are then thinned out.

    `rows` are the selections that follow one another, the first of them of prompts.
    """
    generator = torch.Generator().manual_seed(0)
    sequences = {p: ([100 * p + j for j in range(q)], [0]) for p, q in enumerate(shapes)}
    row = pack(sequences, list(sequences))
    store = PromptStore(row.packing, row.prompt_order, torch.device("cpu"))

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    length = len(row.ids)
    key, value = draw(1, KEY_HEADS, length, SIZE), draw(1, KEY_HEADS, length, SIZE)
    PackedRow(row.packing, torch.device("cpu"), store).attend(
        0, draw(1, HEADS, length, SIZE), key, value, None
    )
    if not hidden:
        store.hidden = None
    layout = Decoding(store)
    of_prompt = {}
    for p, q in enumerate(shapes):
        places = slice(row.prompt_ends[p] + 1 - q, row.prompt_ends[p] + 1)
        of_prompt[p] = key[0, :, places], value[0, :, places]
    owners = list(range(len(shapes)))
    own_k, own_v = draw(len(owners), KEY_HEADS, 0, SIZE), draw(len(owners), KEY_HEADS, 0, SIZE)
    worst = 0.0
    for selected in rows:
        layout.select(torch.tensor(selected))
        owners = [owners[k] for k in selected]
        own_k, own_v = own_k[selected], own_v[selected]
        for _ in range(tokens):
            own_k = torch.cat([own_k, draw(len(owners), KEY_HEADS, 1, SIZE)], 2)
            own_v = torch.cat([own_v, draw(len(owners), KEY_HEADS, 1, SIZE)], 2)
            query = draw(len(owners), HEADS, 1, SIZE)
            found = layout.attend(0, query, own_k, own_v, None)  # [b, 1, heads, d]
            for k, owner in enumerate(owners):
                prompt_k, prompt_v = of_prompt[owner]
                all_k, all_v = (
                    torch.cat([prompt_k, own_k[k]], 1),
                    torch.cat([prompt_v, own_v[k]], 1),
                )
                shared = HEADS // KEY_HEADS
                scores = query[k] @ all_k.repeat_interleave(shared, 0).transpose(1, 2) * SIZE**-0.5
                expected = scores.softmax(-1) @ all_v.repeat_interleave(shared, 0)  # [heads, 1, d]
                worst = max(worst, float((found[k] - expected.transpose(0, 1)).abs().max()))
    return worst


@pytest.mark.parametrize(
    "rows",
    [
        [[0, 0, 0, 1, 1, 1, 2, 2, 2]],
        [[0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 2, 3, 6, 7, 8], [1, 2, 5], [2]],
        [[0, 0, 1, 1, 2, 2], [0, 1, 4, 5], [0, 3]],  # a prompt in the middle is through
    ],
)
def test_drawn_tokens_see_their_prompt_and_themselves_while_rows_leave(rows):
    assert decoded([5, 2, 9], rows, tokens=3) < 1e-12


def test_padding_of_a_prompt_would_be_noticed():
    assert decoded([5, 2, 9], [[0, 1, 2]], tokens=1, hidden=False) > 0.01


ASKED = [
    ({"sliding_window": 8}, "it asks its attention for sliding_window"),
    ({"softcap": 30.0}, "it asks its attention for softcap"),
    ({"s_aux": torch.zeros(2)}, "it asks its attention for s_aux"),
    ({"is_causal": False}, "its attention looks ahead"),
    ({"dropout": 0.1}, "it has attention dropout 0.1"),
]


@pytest.mark.parametrize(("asked", "why"), ASKED)
def test_what_is_not_done_is_refused(asked, why):
    row = packed_row([(3, [2, 2])])
    inputs = (numbered(), row.query, row.key, row.value, None)
    harmless = {"sliding_window": None, "output_attentions": False, "use_cache": True}
    attend(*inputs, layout=row.layout, **harmless)
    with pytest.raises(NotPackableError, match=why):
        attend(*inputs, layout=row.layout, **asked)


def numbered() -> nn.Module:
    layer = nn.Module()
    layer.layer_idx = 0
    return layer


def test_a_layer_without_a_number_is_refused():
    row = packed_row([(3, [2, 2])])
    with pytest.raises(NotPackableError, match="does not say which layer it is"):
        attend(nn.Module(), row.query, row.key, row.value, None, layout=row.layout)


def test_a_model_that_hands_nothing_on_is_refused():
    row = packed_row([(3, [2, 2])])
    with pytest.raises(NotPackableError, match="does not hand arguments on"):
        attend(nn.Module(), row.query, row.key, row.value, None)


def test_the_configuration_of_a_model_is_given_back(tiny):
    model = tiny.build_model("llama")
    before = model.config._attn_implementation

    def broken():
        with shared_prompts(model):
            assert model.config._attn_implementation == "rl4lm_shared_prompts"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert model.config._attn_implementation == before
    assert "rl4lm" not in model.config.to_json_string()


ARCHITECTURES = ["gpt2", "opt", "llama", "qwen2", "gemma"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("lora", "checkpointing"),
    [
        pytest.param(False, True, id="all weights, recomputed"),
        pytest.param(True, False, id="adapter, kept"),
        pytest.param(False, False, id="all weights, kept", marks=pytest.mark.slow),
        pytest.param(True, True, id="adapter, recomputed", marks=pytest.mark.slow),
    ],
)
def test_packed_and_padded_rows_give_the_same_log_probs_and_gradient(
    architecture, lora, checkpointing, tiny
):
    from peft import LoraConfig, get_peft_model

    model = tiny.build_model(architecture, std=0.2)
    if lora:
        adapter = LoraConfig(task_type="CAUSAL_LM", r=3, target_modules="all-linear")
        model = get_peft_model(model, adapter)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    policy = tiny.build_policy(model, activation_checkpointing=checkpointing)
    assert probe(policy) == []
    assert policy.module.packs
    rollout = tiny.random_rollout(((1, (4, 2, 1)), (6, (3, 7, 7)), (3, (1, 5, 2)), (9, (1, 1, 1))))
    found = {}
    for packs in (True, False):
        policy.module.packs = packs
        for budget in (12, 10**6):
            logprobs = policy.completion_logprobs(rollout, 0.7, budget)
            gradient = gradient_of(policy, rollout, budget)
            found[packs, budget] = (logprobs, gradient)
    expected_logprobs, expected = found[False, 10**6]
    for logprobs, gradient in found.values():
        assert float((logprobs - expected_logprobs).abs().max()) < 2e-5
        assert max(tiny.gap(gradient, expected)) < 2e-5


def gradient_of(policy, rollout, budget):
    from rl4lm.estimator.losses import TokenWeights

    for parameter in policy.trainable().values():
        parameter.grad = torch.zeros_like(parameter)
    shape = rollout.completion_ids.shape
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    entropies = torch.zeros_like(weights)
    policy.accumulate_gradient(rollout, TokenWeights(weights, entropies), 0.7, budget)
    return {name: p.grad.clone() for name, p in policy.trainable().items()}


def test_a_copy_of_a_policy_packs_as_the_policy_does(tiny):
    policy = tiny.build_policy(tiny.build_model("gpt2"))
    probe(policy)
    rollout = tiny.random_rollout()
    frozen = policy.frozen_copy()
    assert frozen.module.packs
    copied = copy.deepcopy(policy.module)
    assert copied.packs
    assert torch.equal(frozen.completion_logprobs(rollout), policy.completion_logprobs(rollout))


def test_recomputed_activations_hold_less_memory(tiny):
    """Bytes that the forward pass of a packed row keeps for the backward pass."""
    held = {}
    for checkpointing in (False, True):
        model = tiny.build_model("llama", num_hidden_layers=6)
        policy = tiny.build_policy(model, activation_checkpointing=checkpointing)
        probe(policy)
        assert policy.module.packs
        rollout = tiny.random_rollout(((8, (9, 9, 9)), (6, (9, 9, 9)), (9, (9, 9, 9))))
        kept: dict[int, int] = {}

        def keep(tensor, kept=kept):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            (batch,) = micro_batches(rollout, range(9), 10**6, packed=True)
            row = PackedRow(batch.packing, torch.device("cpu"))
            with shared_prompts(policy.module.causal_lm):
                policy.module(
                    lambda hidden, head: hidden,
                    batch.input_ids,
                    None,
                    batch.position_ids,
                    layout=row,
                )
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        held[checkpointing] = sum(n for place, n in kept.items() if place not in weights)
    assert held[True] < 0.35 * held[False]
