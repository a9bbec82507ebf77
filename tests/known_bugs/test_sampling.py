"""Known bugs of sampling: the policy that samples is differentiated (18 to 23).

Every docstring begins with the public threads; conftest.py tells how the tests are made.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from rl4lm import ReinforceConfig
from rl4lm.assembly import end_rule
from rl4lm.diagnostics import gap_is_suspicious
from rl4lm.errors import ConfigError, ModelError
from rl4lm.experience import Gatherer
from rl4lm.model import preparing
from rl4lm.options import parse_options
from rl4lm.processes.world import World
from rl4lm.sampling import drawing, sampler

TIGHT = 1e-10  # on the norm of the difference and on the ratio of norms, float64
NOTICED = 1e-3  # what a planted bug must exceed


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "granite"])
@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_the_temperature_is_in_the_sampling_log_probs_too(
    architecture, temperature, tiny, monkeypatch, kit
):
    """trl#4159: a temperature other than 1 was missing from the sampler's log-probs. Here also
    where the head caps or scales its logits first."""
    exact = architecture == "gpt2"  # the norms of the others compute in float32 anyhow
    dtype, limit = (torch.float64, 1e-12) if exact else (torch.float32, 1e-4)
    model = tiny.build_model(architecture, vocabulary=kit.VOCABULARY, dtype=dtype)
    run = kit.Run(
        tiny, model=model, temperature=temperature, dtype="float64" if exact else "float32"
    )
    stats = run.step()
    table = tiny.naive_table(run.before, run.rollout, temperature)
    assert float((run.rollout.sampling_logprobs - table).abs().max()) < limit
    assert stats.metrics["sampler_gap_max"] < limit
    plain = drawing.softmax_in_place
    monkeypatch.setattr(drawing, "softmax_in_place", lambda logits, t: plain(logits, 1.0))
    broken = run.learner.step().metrics
    assert broken["sampler_gap_max"] > 0.05
    assert gap_is_suspicious(broken, dtype)


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_p", 0.9), ("top_k", 50), ("min_p", 0.1), ("repetition_penalty", 1.2)],
)
def test_training_refuses_to_truncate_the_distribution(
    name, value, tiny, monkeypatch, tmp_path, kit
):
    """trl#6789: top_p, top_k and min_p made the log-probs those of another function. Here the
    options are refused in Python, on the command line and in a file; the full vocabulary stays
    drawable; and a sampler that truncates all the same is noticed."""
    why = f"{name} is not offered, because training differentiates exactly the distribution it"
    with pytest.raises(ConfigError, match=why):
        ReinforceConfig(**{name: value})
    file = tmp_path / "options.yaml"
    file.write_text(f"{name}: {value}\n")
    for arguments in ([f"--{name}", str(value)], ["--config", str(file)]):
        with pytest.raises(ConfigError, match="training differentiates exactly the distribution"):
            _parse(arguments)
    if name != "top_k":
        return
    run = kit.Run(tiny, num_generations=64)
    run.step()
    drawn = run.rollout.completion_ids[run.rollout.completion_mask]
    assert set(drawn.tolist()) == set(range(kit.VOCABULARY))
    keep = drawing.keep_most_likely(3, 1.0)
    call = drawing.InverseCdf.__call__
    monkeypatch.setattr(
        drawing.InverseCdf, "__call__", lambda self, logits, *rest: call(self, keep(logits), *rest)
    )
    assert gap_is_suspicious(run.learner.step().metrics, torch.float64)


def _parse(arguments: list[str]) -> Any:
    return parse_options(arguments, prog="rl4lm train", description="")


NEAR_GREEDY = {"do_sample": True, "top_k": 1, "temperature": 0.01, "repetition_penalty": 5.0}


def test_settings_for_generation_in_the_checkpoint_do_not_reach_training(tiny, tmp_path, kit):
    """trl#5783: the checkpoint's generation_config was merged in, and samples became near-greedy:
    4 of 8 were identical. Only its end tokens are taken here."""
    for folder, settings in (("plain", {}), ("greedy", NEAR_GREEDY)):
        model = tiny.build_model("gpt2", dtype=torch.float64)
        for name, value in {**settings, "eos_token_id": [0, 7]}.items():
            setattr(model.generation_config, name, value)
        model.save_pretrained(tmp_path / folder)
        tiny.build_tokenizer().save_pretrained(tmp_path / folder)
    plain, greedy = (
        kit.Run(
            tiny, model=str(tmp_path / folder), num_generations=8, tokenizer=tiny.build_tokenizer()
        )
        for folder in ("plain", "greedy")
    )
    plain.step(), greedy.step()
    lists = greedy.rollout.completion_lists()
    assert lists == plain.rollout.completion_lists()
    assert greedy.policy.end_token_ids == (0, 7)
    table = tiny.naive_table(greedy.before, greedy.rollout, kit.TEMPERATURE)
    assert float((greedy.rollout.sampling_logprobs - table).abs().max()) < 1e-12
    different = [len({tuple(row) for row in lists[8 * k : 8 * k + 8]}) for k in range(kit.P)]
    assert min(different) >= 7
    # What those settings do where they are obeyed.
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "greedy", dtype=torch.float64)
    obeyed = loaded.generate(torch.tensor([[1, 2]] * 8), max_new_tokens=6, pad_token_id=0)
    assert len({tuple(row) for row in obeyed.tolist()}) == 1


@pytest.fixture
def lying_sampler(monkeypatch) -> None:
    """The sampler's log-probs are half a nat off for every token; its tokens are the same."""
    call = drawing.InverseCdf.__call__

    def off(self, *given):
        tokens, logprobs = call(self, *given)
        return tokens, logprobs + 0.5

    monkeypatch.setattr(drawing.InverseCdf, "__call__", off)


LONG = {"max_completion_length": 40, "num_generations": 2, "learning_rate": 1e-3}


def long_run(kit: Any, tiny: Any, **options: Any) -> Any:
    return kit.Run(tiny, model=tiny.build_model("gpt2", dtype=torch.float64), **LONG, **options)


def test_a_sampler_that_is_slightly_off_scales_no_gradient(tiny, lying_sampler, kit):
    """trl#4772, trl#5814, NeMo-RL#2269, Liger PR#1088: a product of ratios over a long sequence
    blew gradients up or shrank them 17 times. Here the first update on a sampling has no ratio,
    and the gap between sampler and policy is told instead of corrected."""
    run = long_run(kit, tiny)
    stats = run.step()
    assert int(run.rollout.lengths.max()) == 40
    assert run.gap() < 1e-9  # a small rate costs digits
    assert stats.metrics["sampler_gap_mean"] == pytest.approx(0.5, abs=1e-9)
    assert gap_is_suspicious(stats.metrics, torch.float64)
    # Where the ratio is asked for, it is logged as it is, and not after a clamp.
    asked = long_run(kit, tiny, num_iterations=2)
    metrics = asked.step().metrics
    assert metrics["importance_ratio/min"] == pytest.approx(math.exp(-0.5 * 40), rel=1e-6)
    assert asked.gap(run.naive()) > NOTICED


def test_the_ratio_starts_at_one_for_long_completions_too(tiny, kit):
    """The honest sampler: same model, same log-probs, so the first update of a window is plain."""
    run = long_run(kit, tiny, num_iterations=2)
    metrics = run.step().metrics
    assert abs(metrics["importance_ratio/max"] - 1) < 1e-11
    assert abs(metrics["importance_ratio/min"] - 1) < 1e-11
    assert run.gap() < 1e-9


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "adapter"])
@pytest.mark.parametrize("architecture", ["opt", "llama"])
def test_sampling_and_training_see_no_dropout(architecture, lora, tiny, monkeypatch, kit):
    """trl#3000, trl PR#3234: dropout was on in rollouts, or in the adapter, and the ratio was not
    1. Here with half of everything dropped by the configuration, checkpointed activations, and
    adapters."""
    dropping = {
        "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
        "llama": {"attention_dropout": 0.5},
    }[architecture]

    def build(**settings: Any) -> Any:
        return tiny.build_model(
            architecture, vocabulary=kit.VOCABULARY, dtype=torch.float64, **settings
        ).train()

    def adapter(**settings: Any) -> LoraConfig | None:
        targets = {"task_type": "CAUSAL_LM", "r": 3, "target_modules": "all-linear"}
        return LoraConfig(**targets, **settings) if lora else None

    options = {"activation_checkpointing": True, "learning_rate": 2.0**-5}
    runs = [
        kit.Run(tiny, model=model, peft_config=adapter(), **options)
        for model in (build(**dropping), build())
    ]
    metrics = [run.step().metrics for run in runs]
    assert metrics[0]["sampler_gap_max"] < 1e-6  # llama's norms compute in float32
    assert runs[0].rollout.completion_lists() == runs[1].rollout.completion_lists()
    assert runs[0].gap(runs[1].moved) < TIGHT
    if lora:
        with pytest.raises(ModelError, match=r"lora_dropout=0.1 is refused: dropout would make"):
            kit.Run(tiny, model=build(), peft_config=adapter(lora_dropout=0.1))
        with pytest.raises(ConfigError, match="lora_dropout is not offered, because dropout"):
            ReinforceConfig(lora_dropout=0.1)
    monkeypatch.setattr(preparing, "switch_dropout_off", lambda model: None)
    monkeypatch.setattr("rl4lm.assembly.probe", lambda *_: [])  # it would refuse
    broken = kit.Run(tiny, model=build(**dropping), peft_config=adapter(), **options).step().metrics
    assert broken["sampler_gap_max"] > NOTICED
    assert gap_is_suspicious(broken, torch.float64)


def of_rank(run: Any, rank: int, size: int) -> Gatherer:
    """The gatherer of one process among several; sampling needs nothing of the others."""
    world = World()
    world.rank, world.size = rank, size
    trainer = run.trainer
    return Gatherer(
        trainer.config, run.policy, trainer.task, end_rule(trainer.config, run.policy), None, world
    )


@pytest.mark.parametrize("size", [2, 4])
def test_processes_never_draw_the_same_samples(size, tiny, monkeypatch, kit):
    """trl PR#2824, trl#2803, trl#3098: ranks drew identical samples, or mixed them up. Here every
    prompt of the step is the same text, so that nothing but the random numbers can differ."""
    run = kit.Run(tiny, prompts=["t1 t2"], max_completion_length=12)

    def drawn(ranks: int, step: int) -> list[list[int]]:
        found: dict[int, list[list[int]]] = {}  # place of a prompt -> its completions
        for rank in range(ranks):
            gatherer = of_rank(run, rank, ranks)
            deal, examples = gatherer.deal(gatherer.prompt_keys(step))
            lists = gatherer.sample(examples, step, deal.mine).completion_lists()
            group = len(lists) // len(deal.mine)
            for k, place in enumerate(deal.mine):
                found[place] = lists[k * group : (k + 1) * group]
        return [ids for place in sorted(found) for ids in found[place]]

    whole = drawn(1, 0)
    assert len(whole) == kit.N
    assert drawn(size, 0) == whole
    assert drawn(1, 1) != whole, "another step draws other samples"
    repeats = kit.N - len({tuple(row) for row in whole})
    assert repeats <= 4, "short ones may be equal by chance"
    # The bug: every rank counts its prompts from 0.
    choose = sampler.InverseCdf
    monkeypatch.setattr(
        sampler, "InverseCdf", lambda **given: choose(**{**given, "places": range(kit.N)})
    )
    mixed = drawn(size, 0)
    repeats = kit.N - len({tuple(row) for row in mixed})
    assert repeats >= kit.N - kit.N // size
