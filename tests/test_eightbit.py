"""AdamW with moments of 8 bits: asked about before anything is loaded, stepped, saved, resumed.

Where bitsandbytes is not installed a stand-in has its place, which keeps its state as bitsandbytes
does, in a mapping of its own. With it installed the same tests run on the real one.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.commandline.commands import run_training
from rl4lm.eightbit import check_replicated
from rl4lm.errors import ConfigError
from rl4lm.optim import make_optimizer
from rl4lm.screen.console import Screen

INSTALLED = importlib.util.find_spec("bitsandbytes") is not None
ROWS = [{"prompt": f"{a}+{a + 1}=", "answer": str(2 * a + 1)} for a in range(10)]


class StandIn(torch.optim.AdamW):
    """AdamW whose saved state is nested, as that of bitsandbytes is."""

    def state_dict(self):
        saved = super().state_dict()
        return {
            **saved,
            "state": {place: {"nested": dict(each)} for place, each in saved["state"].items()},
        }

    def load_state_dict(self, saved):
        flat = {place: each["nested"] for place, each in saved["state"].items()}
        super().load_state_dict({**saved, "state": flat})


@pytest.fixture(autouse=True)
def bitsandbytes(monkeypatch):
    """The real one, or a stand-in."""
    if not INSTALLED:
        package, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
        package.__spec__, optim.AdamW8bit = ModuleSpec("bitsandbytes", None), StandIn
        monkeypatch.setitem(sys.modules, "bitsandbytes", package)
        monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)


def train(output, **options):
    trainer = ReinforceTrainer(
        args=ReinforceConfig(
            output_dir=str(output),
            optim="adamw_8bit",
            prompts_per_step=4,
            num_generations=4,
            max_completion_length=5,
            save_steps=2,
            eval_samples=0,
            learning_rate=1e-3,
            torch_threads=1,
            **options,
        ),
        reward_funcs=lambda completions, **_: [len(text) / 8 for text in completions],
        train_dataset=ROWS,
        screen=Screen(quiet=True),
    )
    begun = [p.detach().clone() for p in trainer.policy.trainable().values()]
    trainer.train()
    return begun, [p.detach().clone() for p in trainer.policy.trainable().values()]


def test_a_resumed_run_is_bit_for_bit_the_one_that_was_not_cut_off(tmp_path):
    begun, whole = train(tmp_path / "whole", max_steps=4)
    assert any(not torch.equal(a, b) for a, b in zip(begun, whole, strict=True))
    train(tmp_path / "cut", max_steps=2)
    _, resumed = train(
        tmp_path / "cut", max_steps=4, resume_from_checkpoint="true", resume_anyway=True
    )
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_its_steps_are_those_of_adamw_but_for_rounding():
    config = ReinforceConfig(optim="adamw_8bit", learning_rate=1e-3, weight_decay=0.1)
    ends = {}
    for optim in ("adamw", "adamw_8bit"):
        generator = torch.Generator().manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(64, 128, generator=generator))
        begun = parameter.detach().clone()
        chosen = ReinforceConfig(**{**config.to_dict(), "optim": optim})
        optimizer = make_optimizer(chosen, [parameter])
        for _ in range(5):
            parameter.grad = torch.randn(64, 128, generator=generator)
            optimizer.step()
        ends[optim] = parameter.detach() - begun
    gap = (ends["adamw"] - ends["adamw_8bit"]).norm() / ends["adamw"].norm()
    assert gap < 0.05
    if INSTALLED:
        assert gap > 1e-4, "bits were saved"


def test_without_the_package_it_is_refused_before_anything_is_loaded(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = ReinforceConfig(
        optim="adamw_8bit", output_dir=str(tmp_path / "run"), model_name_or_path="no/such-model"
    )
    for start in (run_training, lambda config: ReinforceTrainer(args=config)):
        with pytest.raises(ConfigError, match=r"pip install 'rl4lm\[bnb\]'"):
            start(config)
    assert not (tmp_path / "run").exists()


def test_moments_in_blocks_are_not_dealt():
    config = ReinforceConfig(optim="adamw_8bit")
    check_replicated(config, sharded=False)
    with pytest.raises(ConfigError, match="use optim=adamw with sharded parameters"):
        check_replicated(config, sharded=True)


def test_the_names_of_others_are_answered():
    with pytest.raises(ConfigError, match="bitsandbytes' AdamW is called adamw_8bit here"):
        ReinforceConfig(optim="adamw_bnb_8bit")
