"""Known bugs of masks, ends, padding, positions and tokens (12 to 17).

Every docstring begins with the public threads; conftest.py tells how the tests are made.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from rl4lm import Rollout
from rl4lm.diagnostics import gap_is_suspicious
from rl4lm.estimator import logprobs
from rl4lm.model import decoding
from rl4lm.passes import microbatch

TIGHT = 1e-10  # on the norm of the difference and on the ratio of norms, float64
NOTICED = 1e-3  # what a planted bug must exceed


def test_a_completion_without_an_end_never_trains_on_padding(tiny, kit):
    """verl#3805: without an end token the response mask was all ones, padding included. Here a
    short completion that has not ended stands beside a long one, pad == eos."""
    model = tiny.build_model("gpt2", vocabulary=kit.VOCABULARY, dtype=torch.float64)
    reference = copy.deepcopy(model).eval()
    trainer = tiny.build_trainer(model, temperature=kit.TEMPERATURE, dtype="float64")
    rows, ended = [[4, 5], [6, 7, 8, 9, 1, 0], [3], [2, 2, 2]], [False, True, False, False]
    rollout = Rollout.from_lists([[1, 2]] * 2 + [[0, 3, 0]] * 2, rows, 2, ended)
    advantages = torch.tensor([1.0, -0.5, 2.0, 0.7], dtype=torch.float64)
    actual = trainer.gradient(rollout, advantages)
    expected = tiny.naive_gradient(reference, rollout, advantages, kit.TEMPERATURE)
    assert max(tiny.gap(actual, expected)) < TIGHT
    for fill in range(kit.VOCABULARY):
        ids = rollout.completion_ids.where(rollout.completion_mask, fill)
        again = trainer.gradient(replace(rollout, completion_ids=ids), advantages)
        assert all(torch.equal(again[name], value) for name, value in actual.items()), fill
    all_ones = rollout.completion_mask | ~rollout.ended[:, None]
    bug = trainer.gradient(replace(rollout, completion_mask=all_ones), advantages)
    assert max(tiny.gap(bug, expected)) > NOTICED


def test_the_pad_token_is_an_ordinary_action_where_it_is_sampled(tiny, kit):
    """trl PR#4970: the mask was guessed by `!= pad_token_id`, which drops real tokens where pad
    and eos are one. Harder here: two other ids end a completion, so that the pad token is drawn
    in the middle of completions, and stands in a prompt."""
    model = tiny.build_model("gpt2", vocabulary=kit.VOCABULARY, dtype=torch.float64)
    model.generation_config.eos_token_id = [5, 7]
    run = kit.Run(tiny, model=model, max_completion_length=8)
    run.step()
    pad = run.trainer.policy.codec.tokenizer.pad_token_id
    assert pad == tiny.EOS
    lists = run.rollout.completion_lists()
    assert sum(ids[:-1].count(pad) for ids in lists) > 3
    for ids, ended in zip(lists, run.rollout.ended.tolist(), strict=True):
        first = next((t for t, token in enumerate(ids) if token in (5, 7)), None)
        assert (first is not None) == ended
        assert len(ids) == (8 if first is None else first + 1)
    assert run.gap() < TIGHT
    guessed = replace(run.rollout, completion_mask=run.rollout.completion_ids != pad)
    advantages = kit.leave_one_out(run.experience.scores)
    spread = advantages[:, None] * guessed.completion_mask
    assert run.gap(run.naive(spread)) > NOTICED


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_left_padding_shifts_no_learned_position(architecture, tiny, monkeypatch, kit):
    """OpenRLHF#217, trl#469, trl#6800: left padding without positions gave the log-probs of other
    places. Here through sampling, the update, and the prompt features of `linear_value`."""
    model = tiny.build_model(architecture, vocabulary=kit.VOCABULARY, dtype=torch.float64)
    run = kit.Run(tiny, model=model, baseline="linear_value", fast_path=False)
    stats = run.step()
    assert len(set(run.rollout.prompt_lengths.tolist())) > 2, "prompts must be padded"
    table = tiny.naive_table(run.before, run.rollout, kit.TEMPERATURE)
    assert float((run.rollout.sampling_logprobs - table).abs().max()) < 1e-12
    assert stats.metrics["sampler_gap_max"] < 1e-12
    # In the first step linear_value has no past: b = 0.
    rewards = run.experience.scores.rewards.flatten()
    assert run.gap(run.naive(rewards)) < TIGHT

    def features(rollout: Rollout) -> Tensor:
        return run.policy.prompt_features(rollout.prompt_ids, rollout.prompt_mask)

    together = features(run.rollout)
    for k, prompt in enumerate(run.rollout.prompt_lists()):
        alone = features(Rollout.from_lists([prompt], [[1]]))
        assert float((together[k] - alone[0]).abs().max()) < 1e-12
    # The bug: places are counted from the left edge, padding included.
    monkeypatch.setattr(decoding, "_positions", lambda m: torch.arange(m.shape[1]).expand(m.shape))
    assert float((features(run.rollout) - together).abs().max()) > NOTICED
    broken = run.learner.step().metrics
    assert broken["sampler_gap_max"] > NOTICED
    assert gap_is_suspicious(broken, torch.float64)


def test_logits_and_tokens_are_never_one_place_apart(tiny, monkeypatch, kit):
    """trl#3681, prime-rl PR#1525: the completion's logits were cut out one place off. Here at the
    edges: prompts and completions of one token, the smallest tiles, and every micro-batch."""
    rows = [([3], [4]), ([3], [0]), ([1, 2, 0, 5], [6]), ([0], [7, 8, 9]), ([9, 9], [9, 9, 9, 0])]
    rollout = Rollout.from_lists(*map(list, zip(*rows, strict=True)))
    advantages = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0], dtype=torch.float64)
    model = tiny.build_model("opt", vocabulary=kit.VOCABULARY, dtype=torch.float64)
    reference = copy.deepcopy(model).eval()
    trainer = tiny.build_trainer(model, temperature=kit.TEMPERATURE, dtype="float64")
    table = tiny.naive_table(reference, rollout, kit.TEMPERATURE)
    expected = tiny.naive_gradient(reference, rollout, advantages, kit.TEMPERATURE)
    monkeypatch.setattr(logprobs, "TILE_ELEMENTS", 1)
    for budget in (1, 5, 10**6):
        found = trainer.policy.completion_logprobs(rollout, kit.TEMPERATURE, budget)
        assert float((found - table).abs().max()) < 1e-12
    assert max(tiny.gap(trainer.gradient(rollout, advantages), expected)) < TIGHT
    for batch in microbatch.micro_batches(rollout, range(5), 10**6):
        # A target stands right after the place that predicts it, wherever that is an input too.
        following = nn.functional.pad(batch.input_ids[:, 1:], (0, 1)).flatten()[batch.predicts]
        real = nn.functional.pad(batch.attention_mask[:, 1:], (0, 1)).bool()
        inside = real.flatten()[batch.predicts]
        assert inside.sum() == 5
        assert torch.equal(following[inside], batch.targets[inside])
    for form, name in ((True, "_pack"), (False, "_build")):
        trainer.policy.module.packs = form
        assert max(tiny.gap(trainer.gradient(rollout, advantages), expected)) < TIGHT
        build = getattr(microbatch, name)

        def one_off(rows, sequences, build=build):
            batch = build(rows, sequences)
            return replace(batch, predicts=(batch.predicts - 1).clamp(min=0))

        monkeypatch.setattr(microbatch, name, one_off)
        assert max(tiny.gap(trainer.gradient(rollout, advantages), expected)) > NOTICED


def merging_tokenizer() -> Any:
    """ "a" and "b" side by side are read back as the one token "ab", and the end is not written."""
    vocabulary = {"<e>": 0, "a": 1, "b": 2, "ab": 3, "c": 4, "ca": 5}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("c", "a")]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<e>", pad_token="<e>")


def test_a_completion_is_never_made_of_its_text_again(tiny, monkeypatch, kit):
    """trl#5224: completions were decoded and tokenised again, so that the log-probs were those of
    other tokens. Here with a tokenizer whose round trip merges tokens and loses the end."""
    tokenizer = merging_tokenizer()
    seen: list[list[list[int]]] = []

    def reward(completions, completion_ids, **kwargs):
        seen.append(completion_ids)
        return [kit.worth(ids) for ids in completion_ids]

    model = tiny.build_model("gpt2", vocabulary=6, dtype=torch.float64)
    prompts = ["ab", "c", "ac", "bbb"]
    run = kit.Run(tiny, reward, model, prompts, tokenizer, max_completion_length=9)
    encoded: list[str] = []
    plain = type(tokenizer).__call__

    def noted(self, text, **kwargs):
        encoded.extend(text)
        return plain(self, text, **kwargs)

    monkeypatch.setattr(type(tokenizer), "__call__", noted)
    stats = run.step()
    assert set(encoded) == set(prompts), "only prompts are tokenised"
    lists = run.rollout.completion_lists()
    assert lists == seen[0] == [row["completion_ids"] for row in stats.completions]
    texts = [row["completion"] for row in stats.completions]
    again = [tokenizer(text)["input_ids"] if text else [] for text in map(str, texts)]
    changed = [i for i in range(kit.N) if again[i] != lists[i] and again[i]]
    assert len(changed) > 3, "the round trip is not the identity"
    assert run.gap() < TIGHT
    other = [again[i] or lists[i] for i in range(kit.N)]
    prompts = tiny.prompts_of_rows(run.rollout)
    advantages = kit.leave_one_out(run.experience.scores)
    retokenised = Rollout.from_lists(prompts, other, kit.G)
    wrong = tiny.naive_gradient(run.before, retokenised, advantages, kit.TEMPERATURE)
    assert run.gap(wrong) > NOTICED


@pytest.mark.parametrize("end", [0, 6, "stop string"])
def test_stopping_is_reinforced(end, tiny, kit):
    """unsloth-zoo PR#832: the sampled end token was dropped from the loss, so that stopping was
    never learned. Here for the end token (which is the padding too), a second end id, and the
    ids that complete a stop string."""
    ends = {0: {}, 6: {"stop_token_ids": [6]}, "stop string": {"stop_strings": ["t6"]}}[end]
    last = 6 if end == "stop string" else end

    def stops(completion_ids, **kwargs):
        return [float(ids[-1] == last) for ids in completion_ids]

    run = kit.Run(tiny, stops, learning_rate=0.5, num_generations=8, **ends)
    prompts = [run.policy.codec.encode([prompt])[0] for prompt in kit.PROMPTS]
    rows = Rollout.from_lists(prompts, [[last]] * kit.P)

    def chance() -> float:
        return float(run.policy.completion_logprobs(rows, kit.TEMPERATURE).exp().mean())

    first = chance()
    run.step()
    assert (run.rollout.completion_ids == last)[run.rollout.completion_mask].any()
    assert run.gap() < TIGHT
    # The bug: the last token of what ended has no weight.
    places = torch.arange(run.rollout.completion_ids.shape[1])
    is_last = (places == run.rollout.lengths[:, None] - 1) & run.rollout.ended[:, None]
    spread = kit.leave_one_out(run.experience.scores)[:, None] * ~is_last
    assert run.gap(run.naive(spread)) > NOTICED
    for _ in range(5):
        run.step()
    assert chance() > 1.5 * first
    only_end = torch.ones(kit.P, 1, dtype=torch.float64)
    assert tiny.global_norm(run.trainer.gradient(rows, only_end).values()) > NOTICED
