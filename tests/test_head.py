"""The closed form of a linear head, against autograd through the same head."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from rl4lm.estimator import logprobs
from rl4lm.estimator.head import LinearHead, is_plain
from rl4lm.estimator.logprobs import tiled_gradient, tiled_logprobs

ROWS, SIZE, VOCABULARY = 11, 6, 37


def problem(bias=False, dtype=torch.float64, std=1.0):
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(SIZE, VOCABULARY, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    hidden = torch.randn(ROWS, SIZE, generator=generator).to(dtype)
    targets = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
    targets[3] = targets[2]  # one row of the weight receives two contributions
    weights = torch.randn(ROWS, generator=generator, dtype=torch.float64)
    return head, hidden, targets, weights


def by_autograd(head, hidden, targets, weights, temperature):
    """log π, ∂S/∂hidden and the gradients of the parameters, of S = Σ w log π, by autograd."""
    head, leaf = copy.deepcopy(head), hidden.clone().requires_grad_()
    log_pi = torch.log_softmax(head(leaf).double() / temperature, dim=-1)
    chosen = log_pi.gather(1, targets[:, None]).squeeze(1)
    (chosen * weights).sum().backward()
    return chosen.detach(), leaf.grad, [p.grad for p in head.parameters()]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("tile", [VOCABULARY, 4 * VOCABULARY, 10**6])
def test_the_closed_form_is_the_derivative(bias, temperature, tile, monkeypatch):
    head, hidden, targets, weights = problem(bias)
    expected = by_autograd(head, hidden, targets, weights, temperature)
    monkeypatch.setattr(logprobs, "TILE_ELEMENTS", tile)
    assert is_plain(head)
    found, of_hidden = tiled_gradient(hidden, head, targets, weights, temperature, VOCABULARY)
    assert torch.allclose(found, expected[0], rtol=0, atol=1e-13)
    assert torch.allclose(of_hidden, expected[1], rtol=0, atol=1e-13)
    for parameter, gradient in zip(head.parameters(), expected[2], strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=0, atol=1e-13)
    alone = tiled_logprobs(hidden, head, targets, temperature, VOCABULARY)
    assert torch.equal(alone, found)


def test_gradients_are_added_to_those_at_hand():
    head, hidden, targets, weights = problem()
    tiled_gradient(hidden, head, targets, weights, 1.0, VOCABULARY)
    once = head.weight.grad.clone()
    tiled_gradient(hidden, head, targets, weights, 1.0, VOCABULARY)
    assert torch.allclose(head.weight.grad, 2 * once, rtol=1e-14)


def test_a_frozen_head_receives_no_gradient_and_passes_one_on():
    head, hidden, targets, weights = problem()
    expected = by_autograd(head, hidden, targets, weights, 1.0)
    head.requires_grad_(False)
    _, of_hidden = tiled_gradient(hidden, head, targets, weights, 1.0, VOCABULARY)
    assert head.weight.grad is None
    assert torch.allclose(of_hidden, expected[1], rtol=0, atol=1e-13)


def test_a_token_of_almost_no_probability_has_a_finite_log_prob():
    """e^-300 is 0 in float32; its logarithm is not."""
    head, hidden, targets, weights = problem(dtype=torch.float32, std=60.0)
    expected = by_autograd(head, hidden, targets, weights, 1.0)
    assert float(expected[0].min()) < -300
    found, of_hidden = tiled_gradient(hidden, head, targets, weights, 1.0, VOCABULARY)
    assert torch.allclose(found.double(), expected[0], rtol=1e-5)
    assert torch.allclose(of_hidden, expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_it_is_as_near_as_autograd_in_bfloat16_is(autocast):
    head, hidden, targets, weights = problem(dtype=torch.float32)
    expected = by_autograd(head, hidden, targets, weights, 1.0)
    if not autocast:
        head, hidden = head.bfloat16(), hidden.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found, of_hidden = tiled_gradient(hidden, head, targets, weights, 1.0, VOCABULARY)
    assert found.dtype == torch.float32
    assert of_hidden.dtype == hidden.dtype
    assert float((found - expected[0]).abs().max()) < 0.1

    def relative(one: Tensor, other: Tensor) -> float:
        return float((one.double() - other.double()).norm() / other.double().norm())

    assert relative(of_hidden, expected[1]) < 0.03
    assert relative(head.weight.grad, expected[2][0]) < 0.03


def test_only_a_linear_layer_as_it_is_made_is_plain():
    model = nn.Sequential(nn.Linear(4, 5))
    assert is_plain(model[0])
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert not is_plain(model[0])
    adapted = get_peft_model(nn.Sequential(nn.Linear(4, 5)), LoraConfig(target_modules=["0"]))
    assert not is_plain(adapted.base_model.model[0])
    assert not is_plain(lambda hidden: hidden)


def test_one_tile_is_held_and_used_again():
    """Memory does not grow with the number of tokens times the vocabulary."""
    head, hidden, targets, _ = problem()
    closed = LinearHead(head, 1.0, rows=4)
    places = set()
    for start in range(0, 8, 4):
        closed.logprobs(hidden[start : start + 4], targets[start : start + 4])
        places.add(closed._exact.data_ptr())
    assert len(places) == 1
    assert closed._exact.shape == (4, VOCABULARY)
