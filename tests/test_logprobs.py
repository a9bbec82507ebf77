"""Log-probabilities and entropies of tokens, and the head that is differentiated tile by tile."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rl4lm.estimator import logprobs
from rl4lm.estimator.logprobs import (
    log_softmax,
    tiled_entropies,
    tiled_gradient,
    tiled_logprobs,
    token_entropies,
    token_logprobs,
)

N, H, V = 11, 6, 13
TEMPERATURE = 0.7
TILES = [1, 3 * V, 5 * V + 1, 10**9]  # one row, three rows, five rows, everything at once


def problem(bias: bool = False, seed: int = 0):
    """A head, and hidden states, targets and weights for it, in float64."""
    torch.manual_seed(seed)
    head = nn.Linear(H, V, bias=bias).double()
    hidden = torch.randn(N, H, dtype=torch.float64)
    weights = torch.randn(N, dtype=torch.float64)
    weights[3] = 0.0
    return head, hidden, torch.randint(V, (N,)), weights


def by_autograd(head, hidden, targets, weights, temperature=TEMPERATURE):
    """Log-probs, ∂S/∂hidden and ∂S/∂head of S = Σ weights · log π on the untiled head."""
    leaf = hidden.clone().requires_grad_()
    scores = head(leaf) / temperature
    values = scores[torch.arange(N), targets] - scores.logsumexp(-1)
    grads = torch.autograd.grad((values * weights).sum(), [leaf, *head.parameters()])
    return values.detach(), {"hidden": grads[0], **dict(enumerate(grads[1:]))}


def by_tiles(head, hidden, targets, weights, temperature=TEMPERATURE):
    head.zero_grad()
    values, gradient = tiled_gradient(hidden, head, targets, weights, temperature, V)
    parameters = (p.grad.clone() for p in head.parameters())
    return values, {"hidden": gradient, **dict(enumerate(parameters))}


def test_the_probability_of_a_token_is_its_share_of_exp_logit_over_temperature():
    logits = torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64)
    shares = [math.exp(x / TEMPERATURE) for x in (1.0, 2.0, -1.0)]
    for token, share in enumerate(shares):
        (value,) = token_logprobs(logits, torch.tensor([token]), TEMPERATURE)
        assert float(value) == pytest.approx(math.log(share / sum(shares)), abs=1e-14)
    (ignoring,) = token_logprobs(logits, torch.tensor([0]), 1.0)
    assert abs(float(ignoring) - math.log(shares[0] / sum(shares))) > 0.1


def test_bfloat16_logits_are_normalised_in_float32():
    """In bfloat16 the probabilities of a vocabulary do not even sum to one."""
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    ours = log_softmax(logits, 1.0)
    assert ours.dtype == torch.float32
    assert float((ours.exp().double().sum(-1) - 1).abs().max()) < 1e-5
    coarse = torch.log_softmax(logits, -1)
    assert float((coarse.double().exp().sum(-1) - 1).abs().max()) > 1e-3
    assert log_softmax(logits.double(), 1.0).dtype == torch.float64


def test_logits_without_a_row_per_target_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) must have one row per target \(3,\)"):
        token_logprobs(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), 1.0)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("bias", [False, True])
def test_the_tiled_head_equals_autograd_on_the_whole_head(monkeypatch, tiny, tile, bias):
    monkeypatch.setattr(logprobs, "TILE_ELEMENTS", tile)
    parts = problem(bias)
    expected_values, expected = by_autograd(*parts)
    values, actual = by_tiles(*parts)
    difference, scale = tiny.gap(actual, expected)
    assert difference < 1e-13
    assert scale < 1e-13
    assert torch.allclose(values, expected_values, rtol=0, atol=1e-13)
    forward_only = tiled_logprobs(parts[1], parts[0], parts[2], TEMPERATURE, V)
    assert torch.allclose(forward_only, expected_values, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("mistake", "change"),
    [
        ("targets shifted by one", lambda h, x, y, w, t: (h, x, y.roll(1), w, t)),
        ("temperature ignored", lambda h, x, y, w, t: (h, x, y, w, 1.0)),
        ("a mean over tokens", lambda h, x, y, w, t: (h, x, y, w / N, t)),
        ("the last token dropped", lambda h, x, y, w, t: (h, x, y, w * (torch.arange(N) < 10), t)),
    ],
)
def test_mistakes_would_be_noticed(tiny, mistake, change):
    parts = (*problem(), TEMPERATURE)
    _, expected = by_autograd(*parts)
    _, actual = by_tiles(*change(*parts))
    assert tiny.gap(actual, expected)[0] > 1e-2, mistake


def test_a_wrong_scale_shows_in_the_norm_ratio_and_not_in_the_cosine(tiny):
    parts = problem()
    _, expected = by_autograd(*parts)
    scaled = {name: 1.001 * g for name, g in expected.items()}
    flat = [torch.cat([g.flatten() for g in each.values()]) for each in (scaled, expected)]
    assert float(torch.cosine_similarity(*flat, dim=0)) > 1 - 1e-12
    assert tiny.gap(scaled, expected)[1] > 9e-4


def test_a_tied_head_collects_both_parts_of_its_gradient(monkeypatch, tiny):
    """The matrix is used by embedding and head; forgetting one of them is a silent half."""
    monkeypatch.setattr(logprobs, "TILE_ELEMENTS", 2 * V)
    torch.manual_seed(0)
    embedding = nn.Embedding(V, H).double()
    head = nn.Linear(H, V, bias=False).double()
    head.weight = embedding.weight
    inputs, targets = torch.randint(V, (N,)), torch.randint(V, (N,))
    weights = torch.randn(N, dtype=torch.float64)

    values = token_logprobs(head(embedding(inputs).tanh()), targets, TEMPERATURE)
    (expected,) = torch.autograd.grad((values * weights).sum(), embedding.weight)

    hidden = embedding(inputs).tanh()
    _, gradient = tiled_gradient(hidden, head, targets, weights, TEMPERATURE, V)
    head_alone = embedding.weight.grad.clone()
    (hidden * gradient).sum().backward()
    difference, scale = tiny.gap({"tied": embedding.weight.grad}, {"tied": expected})
    assert difference < 1e-13
    assert scale < 1e-13
    assert tiny.gap({"tied": head_alone}, {"tied": expected})[0] > 1e-2


def test_gradients_add_to_what_is_there_already(tiny):
    head, hidden, targets, weights = problem()
    _, once = by_tiles(head, hidden, targets, weights)
    tiled_gradient(hidden, head, targets, weights, TEMPERATURE, V)
    assert torch.allclose(head.weight.grad, 2 * once[0], rtol=1e-13)


def test_a_frozen_head_still_passes_the_gradient_on(tiny):
    parts = problem()
    _, expected = by_autograd(*parts)
    parts[0].requires_grad_(False)
    _, gradient = tiled_gradient(parts[1], parts[0], *parts[2:], TEMPERATURE, V)
    assert tiny.gap({"hidden": gradient}, {"hidden": expected["hidden"]})[0] < 1e-13
    assert parts[0].weight.grad is None


def test_it_differentiates_inside_no_grad_and_of_no_rows_too():
    head, hidden, targets, weights = problem()
    with torch.no_grad():
        values, gradient = tiled_gradient(hidden, head, targets, weights, TEMPERATURE, V)
    assert not values.requires_grad
    assert head.weight.grad.any()
    values, gradient = tiled_gradient(hidden[:0], head, targets[:0], weights[:0], 1.0, V)
    assert values.shape == (0,)
    assert gradient.shape == (0, H)


def test_rows_that_do_not_belong_together_are_refused():
    head, hidden, targets, weights = problem()
    with pytest.raises(ValueError, match=r"hidden \(11\), targets \(11\) and weights \(10\)"):
        tiled_gradient(hidden, head, targets, weights[1:], TEMPERATURE, V)


def entropy_weights_of(seed: int = 3):
    weights = torch.randn(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights[5] = 0.0
    return weights


def both_by_autograd(head, hidden, targets, weights, entropy_weights, temperature=TEMPERATURE):
    """∂S/∂hidden and ∂S/∂head of S = Σ w · log π + Σ v · H, through the full softmax."""
    leaf = hidden.clone().requires_grad_()
    scores = (head(leaf) / temperature).exp()
    shares = scores / scores.sum(-1, keepdim=True)
    total = (shares[torch.arange(N), targets].log() * weights).sum()
    total = total - ((shares * shares.log()).sum(-1) * entropy_weights).sum()
    grads = torch.autograd.grad(total, [leaf, *head.parameters()])
    return {"hidden": grads[0], **dict(enumerate(grads[1:]))}


def both_by_tiles(head, hidden, targets, weights, entropy_weights, temperature=TEMPERATURE):
    head.zero_grad()
    _, gradient = tiled_gradient(hidden, head, targets, weights, temperature, V, entropy_weights)
    return {"hidden": gradient, **{i: p.grad.clone() for i, p in enumerate(head.parameters())}}


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("bias", [False, True])
def test_the_tiled_gradient_of_log_probs_and_entropies_is_that_of_the_full_softmax(
    monkeypatch, tiny, tile, bias
):
    monkeypatch.setattr(logprobs, "TILE_ELEMENTS", tile)
    parts = (*problem(bias), entropy_weights_of())
    difference, scale = tiny.gap(both_by_tiles(*parts), both_by_autograd(*parts))
    assert difference < 1e-13
    assert scale < 1e-13


@pytest.mark.parametrize(
    ("mistake", "change"),
    [
        ("no entropies", lambda h, x, y, w, v, t: (h, x, y, w, 0 * v, t)),
        ("the sign of the entropy", lambda h, x, y, w, v, t: (h, x, y, w, -v, t)),
        ("entropies of the next row", lambda h, x, y, w, v, t: (h, x, y, w, v.roll(1), t)),
        ("temperature ignored", lambda h, x, y, w, v, t: (h, x, y, w, v, 1.0)),
    ],
)
def test_mistakes_in_the_entropies_would_be_noticed(tiny, mistake, change):
    parts = (*problem(), entropy_weights_of(), TEMPERATURE)
    assert tiny.gap(both_by_tiles(*change(*parts)), both_by_autograd(*parts))[0] > 1e-2, mistake


def test_the_entropies_of_all_rows_are_weighed_alone_too(tiny):
    head, hidden, targets, weights = problem()
    parts = (head, hidden, targets, 0 * weights, entropy_weights_of())
    assert max(tiny.gap(both_by_tiles(*parts), both_by_autograd(*parts))) < 1e-13


def test_without_entropy_weights_no_entropy_is_computed_and_no_bit_changes(monkeypatch):
    parts = problem()
    _, zero = by_tiles(*parts)
    with_zeros = both_by_tiles(*parts, torch.zeros(N, dtype=torch.float64))
    assert all(torch.allclose(zero[name], with_zeros[name], atol=1e-15) for name in zero)

    def never(*_):
        raise AssertionError("an entropy was computed")

    monkeypatch.setattr(logprobs, "_entropies", never)
    _, gradient = by_tiles(*parts)
    assert torch.equal(gradient["hidden"], zero["hidden"])
    assert torch.equal(gradient[0], zero[0])
    with pytest.raises(AssertionError, match="an entropy was computed"):
        both_by_tiles(*parts, entropy_weights_of())


def test_the_head_runs_once_per_tile_with_entropies_too(monkeypatch):
    monkeypatch.setattr(logprobs, "TILE_ELEMENTS", 4 * V)
    head, hidden, targets, weights = problem()
    rows = []

    def counting(tile):
        rows.append(len(tile))
        return head(tile)

    tiled_gradient(hidden, counting, targets, weights, TEMPERATURE, V, entropy_weights_of())
    assert rows == [4, 4, 3]


@pytest.mark.parametrize("tile", TILES)
def test_tiled_entropies_are_those_of_the_full_softmax(monkeypatch, tile):
    monkeypatch.setattr(logprobs, "TILE_ELEMENTS", tile)
    head, hidden, _, _ = problem()
    actual = tiled_entropies(hidden, head, TEMPERATURE, V)
    for row, value in zip(head(hidden).tolist(), actual.tolist(), strict=True):
        scores = [math.exp(x / TEMPERATURE) for x in row]
        shares = [x / sum(scores) for x in scores]
        assert value == pytest.approx(-sum(p * math.log(p) for p in shares), abs=1e-13)
    assert not actual.requires_grad
    assert tiled_entropies(hidden[:0], head, TEMPERATURE, V).shape == (0,)


def test_equal_logits_have_the_entropy_log_v_and_a_certain_token_none():
    uniform = torch.full((1, V), 3.0, dtype=torch.float64)
    assert float(token_entropies(uniform, TEMPERATURE)) == pytest.approx(math.log(V), abs=1e-14)
    certain = torch.full((1, V), -math.inf, dtype=torch.float64)
    certain[0, 4] = 2.0
    assert float(token_entropies(certain, TEMPERATURE)) == 0.0
    nearly = torch.zeros(1, V, dtype=torch.float64)
    nearly[0, 4] = 1e4  # probabilities that underflow without being forbidden
    assert float(token_entropies(nearly, TEMPERATURE)) == 0.0


def test_a_warmer_distribution_has_more_entropy():
    """Two tokens, logits (1, 0): H = -σ log σ - (1-σ) log(1-σ) with σ = σ(1/τ)."""
    entropies = []
    for temperature in (0.5, 1.0, 2.0):
        share = 1 / (1 + math.exp(-1 / temperature))
        expected = -share * math.log(share) - (1 - share) * math.log(1 - share)
        logits = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        entropies.append(float(token_entropies(logits, temperature)))
        assert entropies[-1] == pytest.approx(expected, abs=1e-15)
    assert entropies == sorted(entropies)
    assert entropies[2] - entropies[0] > 0.2


def test_tokens_that_cannot_be_drawn_add_nothing_to_entropy_or_gradient():
    allowed = torch.tensor([[1.0, -0.5, 0.3]], dtype=torch.float64, requires_grad=True)
    with_forbidden = torch.tensor(
        [[1.0, -math.inf, -0.5, 0.3]], dtype=torch.float64, requires_grad=True
    )
    values, gradients = [], []
    for logits in (allowed, with_forbidden):
        value = token_entropies(logits, TEMPERATURE).sum()
        values.append(value.item())
        gradients.append(torch.autograd.grad(value, logits)[0])
    assert values[0] == pytest.approx(values[1], abs=1e-15)
    assert gradients[1][0, 1] == 0
    kept = gradients[1][:, [0, 2, 3]]
    assert torch.allclose(kept, gradients[0], rtol=0, atol=1e-15)
    assert kept.abs().min() > 1e-3


def test_entropies_are_taken_in_float32_at_least():
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    ours = token_entropies(logits, 1.0)
    assert ours.dtype == torch.float32
    exact = token_entropies(logits.double(), 1.0)
    assert float((ours - exact).abs().max()) < 1e-4
    coarse = torch.distributions.Categorical(logits=logits).entropy()
    assert float((coarse - exact).abs().max()) > 1e-3


def test_entropy_weights_that_do_not_fit_are_refused():
    head, hidden, targets, weights = problem()
    with pytest.raises(ValueError, match=r"entropy_weights \(10,\) and weights \(11,\)"):
        tiled_gradient(hidden, head, targets, weights, TEMPERATURE, V, weights[1:])
