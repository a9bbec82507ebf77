"""Memory and minutes before the start: the formula by hand, the advice, and what a run takes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rl4lm.costs.estimate import Sizes, about, advice, describe, estimate, largest_micro_batch, pace
from rl4lm.costs.footprint import free_bytes, held_bytes, saved_bytes_per_token
from rl4lm.metrics import step_seconds

ROOT = Path(__file__).parents[1]
SIZES = Sizes(
    held=1000_000_000,
    trained=10_000_000,
    trained_bytes=40_000_000,
    copies=7,
    saved_per_token=50_000,
    cache_per_token=1_000,
    hidden=100,
    vocabulary=1_000,
    prompt_tokens=(20, 30),
    generations=4,
    longest=101,
    micro_batch=16_384,
    packed=True,
    optimizer="adamw",
    noise=False,
    reuses=True,
)


def changed(**options):
    return dataclasses.replace(SIZES, **options)


def test_the_formula_is_that_of_its_parts():
    memory = estimate(SIZES)
    tokens = 20 + 30 + 8 * 100  # the last token of a completion is predicted, and not fed
    assert memory.tokens == tokens
    assert memory.optimizer == 40_000_000 * 3
    searched = 512 * (8 + 8 + 4 + 8)  # of a row: places, those within, probabilities, their sums
    assert memory.sampling == 7 + (50 + 8 * 101) * 1_000 + 8 * (1_000 * 8 + searched)
    assert memory.gradient == tokens * 50_000 + 2 * 4 * tokens * 1_000 + 12 * tokens * 100
    assert memory.peak == 10**9 + memory.optimizer + memory.gradient


def test_on_a_cpu_one_part_of_a_step_does_not_fit_into_what_another_has_freed():
    shared, apart = estimate(SIZES), estimate(changed(reuses=False))
    assert apart.peak == shared.peak + shared.sampling
    there = apart.peak - apart.held
    assert advice(apart, changed(reuses=False), there, 1) is None
    said = advice(apart, changed(reuses=False), apart.optimizer + apart.sampling + 10**7, 1)
    budget = int(apart.tokens * 10**7 / apart.gradient)
    assert f"set max_tokens_per_micro_batch={budget}" in said
    smaller = changed(reuses=False, micro_batch=budget)
    assert advice(estimate(smaller), smaller, apart.optimizer + apart.sampling + 10**7, 1) is None
    assert "while sampling and 50 MB" in describe(apart, None, 1)
    assert "while sampling or 50 MB" in describe(shared, None, 1)


def test_other_optimizers_and_the_noise_have_their_own():
    assert estimate(changed(optimizer="sgd")).optimizer == 40_000_000
    assert estimate(changed(optimizer="adamw_8bit")).optimizer == 60_000_000
    more = estimate(changed(noise=True)).gradient - estimate(SIZES).gradient
    assert more == 40_000_000


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, 850),
        ({"packed": False}, 4 * 50 + 800),  # a prompt again for each of its completions
        ({"micro_batch": 300}, 300),
        ({"micro_batch": 50}, 130),  # the longest sequence goes alone
    ],
)
def test_the_largest_micro_batch_is_the_budget_or_all_there_is(options, tokens):
    assert largest_micro_batch(changed(**options)) == tokens


def test_what_fits_needs_no_advice_and_what_is_not_known_gets_none():
    memory = estimate(SIZES)
    needed = memory.peak - memory.held
    assert advice(memory, SIZES, needed, 1) is None
    assert advice(memory, SIZES, None, 1) is None
    assert advice(memory, SIZES, needed, 2) is not None, "two processes need twice as much"


def test_the_advice_names_a_budget_that_fits():
    memory = estimate(SIZES)
    there = memory.optimizer + memory.gradient // 2
    said = advice(memory, SIZES, there, 1)
    assert f"set max_tokens_per_micro_batch={memory.tokens // 2}" in said
    smaller = estimate(changed(micro_batch=memory.tokens // 2))
    assert advice(smaller, SIZES, there, 1) is None


@pytest.mark.parametrize(
    ("options", "there", "words"),
    [
        ({}, 10**8, "use_peft, or optim=adamw_8bit"),
        ({"optimizer": "sgd"}, 10**7, "set use_peft"),
        ({}, 121_000_000, "activation_checkpointing, or a smaller max_completion_length"),
        ({"cache_per_token": 10**6}, 549_120_000, "to 50 % of what it is"),
    ],
)
def test_the_advice_names_what_is_too_large(options, there, words):
    sizes = changed(**options)
    assert words in advice(estimate(sizes), sizes, there, 1)


def test_the_line_says_what_is_held_and_what_is_free():
    said = describe(estimate(SIZES), 2 * 10**9, 1)
    assert said.startswith("memory about 1.2 GB: 1.0 GB held now, 120 MB gradient and")
    assert said.endswith("; 2.0 GB are free")
    assert "in each process" in describe(estimate(SIZES), None, 2)


def test_the_pace_is_told_once_without_the_first_step():
    seconds = [100.0, 1.0, 2.0, 3.0]
    assert pace(seconds, 360).startswith("about 12 min for the 360 steps that remain, at 2 s a")
    assert pace(seconds[:3], 360) is None
    assert pace([*seconds, 1.0], 359) is None
    assert pace(seconds, 19) is None, "not worth a line"
    assert [about(s) for s in (3, 119, 120, 7199, 7200)] == [
        "about 3 s",
        "about 119 s",
        "about 2.0 min",
        "about 120 min",
        "about 2.0 h",
    ]
    assert step_seconds({"time/sample_s": 1.5, "time/idle_s": 9, "reward": 3, "time/a_s": 1}) == 2.5


def test_what_a_token_keeps_grows_with_the_model(tiny):
    policy = tiny.build_policy(tiny.build_model("llama"))
    kept = saved_bytes_per_token(policy)
    shape = policy.module.causal_lm.config
    assert kept > 4 * shape.num_hidden_layers * (4 * shape.hidden_size + shape.intermediate_size)
    assert all(p.grad is None for p in policy.trainable().values())


def test_the_machine_says_what_it_has():
    cpu = torch.device("cpu")
    assert held_bytes(cpu) > 50e6
    assert free_bytes(cpu) is None or free_bytes(cpu) > 0


MEASURED = """
import json, sys
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.builtin import model_path, model_settings
from rl4lm.screen.console import Screen
from rl4lm.costs.forecast import forecast

def shipped():
    settings = model_settings("builtin:tiny-arithmetic", adapters=False)
    config = ReinforceConfig(**{**settings, "max_steps": 3})
    return ReinforceTrainer(args=config, screen=Screen(quiet=True))

def made(hidden, layers, peft):
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=4000, hidden_size=hidden, intermediate_size=2 * hidden, eos_token_id=2,
        num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=4,
        tie_word_embeddings=True,
    ))
    return ReinforceTrainer(
        model=model,
        reward_funcs=lambda completion_ids, **_: [sum(ids) % 7 / 7 for ids in completion_ids],
        args=ReinforceConfig(
            num_generations=8, prompts_per_step=8, max_completion_length=48, eval_samples=0,
            max_steps=2, use_peft=bool(peft), torch_threads=1,
        ),
        train_dataset=[{"prompt": f"{a}+{a + 1}="} for a in range(20)],
        processing_class=AutoTokenizer.from_pretrained(model_path("builtin:tiny-arithmetic")),
        screen=Screen(quiet=True),
    )

sizes = [int(word) for word in sys.argv[1:]]
trainer = made(*sizes) if sizes else shipped()
expected = forecast(trainer.policy, trainer.config, trainer.learner.gatherer, 0).memory
summary = trainer.train()
print(json.dumps([expected.held, expected.peak, summary["peak_memory_bytes"]]))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "sizes",
    [(), (128, 3, 0), (384, 6, 0), (384, 6, 1)],
    ids=["built-in", "S", "M", "M-LoRA"],
)
def test_a_run_takes_the_memory_that_was_foretold(sizes):
    """Within 20 %, and what a step adds within a half."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, sizes)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    held, foretold, found = json.loads(done.stdout.splitlines()[-1])
    assert 0.85 < foretold / found < 1.2, (held, foretold, found)
    assert 0.67 < (foretold - held) / (found - held) < 1.5, (held, foretold, found)
