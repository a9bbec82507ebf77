"""Out of memory in the training pass: smaller micro-batches, the same gradient."""

from __future__ import annotations

import pytest
import torch

from rl4lm.errors import TrainingError
from rl4lm.model.module import PolicyModule


class SmallDevice:
    """A device that runs out of memory at micro-batches of more than some tokens."""

    def __init__(self, monkeypatch, tokens):
        self._run, self._tokens, self.failed = PolicyModule.run, tokens, 0
        monkeypatch.setattr(PolicyModule, "run", lambda module, *args: self.run(module, *args))

    def run(self, module, batch, read):
        result = self._run(module, batch, read)
        if batch.input_ids.numel() > self._tokens:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return result


def trainer(tiny, **options):
    model = tiny.build_model("llama", dtype=torch.float64)
    return tiny.build_trainer(model, dtype="float64", **options)


@pytest.mark.parametrize("fast_path", [True, False])
def test_the_step_is_made_again_with_half_the_tokens_and_gives_the_same_gradient(
    fast_path, tiny, monkeypatch
):
    rollout = tiny.random_rollout()
    advantages = torch.tensor([0.5, -1.0, 2.0, 0.25, -0.5, 1.0], dtype=torch.float64)
    options = {"fast_path": fast_path, "max_tokens_per_micro_batch": 64}
    expected = trainer(tiny, **options).gradient(rollout, advantages)
    small = trainer(tiny, **options)
    device = SmallDevice(monkeypatch, tokens=20)
    found = small.gradient(rollout, advantages)
    assert device.failed == 2  # at 64 and at 32
    assert small.learner.backward.max_tokens == 16
    difference, scale = tiny.gap(found, expected)
    assert difference < 1e-12
    assert scale < 1e-12
    small.gradient(rollout, advantages)
    assert device.failed == 2  # the smaller size stays


def test_half_a_gradient_is_never_kept(tiny, monkeypatch):
    """The control: without starting from zero the failed attempt's part would count twice."""
    rollout = tiny.random_rollout()
    advantages = torch.tensor([0.5, -1.0, 2.0, 0.25, -0.5, 1.0], dtype=torch.float64)
    options = {"max_tokens_per_micro_batch": 16}
    expected = trainer(tiny, **options).gradient(rollout, advantages)
    small = trainer(tiny, **options)
    run, calls = PolicyModule.run, iter(range(100))

    def fails_later(module, batch, read):
        if next(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(module, batch, read)

    monkeypatch.setattr(PolicyModule, "run", fails_later)
    assert tiny.gap(small.gradient(rollout, advantages), expected)[0] < 1e-12
    again = trainer(tiny, **options)
    calls = iter(range(100))
    monkeypatch.setattr(again.learner.backward, "_clear", lambda: _zeros_once(again))
    assert tiny.gap(again.gradient(rollout, advantages), expected)[0] > 0.1


def _zeros_once(trainer):
    for parameter in trainer.learner.backward.parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def test_one_sequence_that_does_not_fit_ends_the_run_with_what_to_do(tiny, monkeypatch):
    small = trainer(tiny, max_tokens_per_micro_batch=64)
    SmallDevice(monkeypatch, tokens=0)
    rollout = tiny.random_rollout()
    with pytest.raises(TrainingError, match=r"no memory for a micro-batch of one sequence of 13"):
        small.gradient(rollout, torch.ones(6))
