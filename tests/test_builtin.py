"""What ships with the package: the arithmetic task, and a checkpoint that is weak but sound."""

from __future__ import annotations

import importlib.util
import itertools
import re
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl4lm import builtin
from rl4lm.builtin.arithmetic import PATTERN, arithmetic_rows, canonical_key
from rl4lm.errors import ConfigError

MODEL = "builtin:tiny-arithmetic"
RECIPE = Path(__file__).parents[1] / "recipes" / "make_tiny_arithmetic.py"
TEXTS = st.text(st.sampled_from("\n" + "".join(map(chr, range(32, 127)))), max_size=60)


@pytest.fixture(scope="module")
def recipe() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("make_tiny_arithmetic", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(builtin.model_path(MODEL))


def operands(prompt: str) -> tuple[int, str, int]:
    match = re.fullmatch(r"(\d+)([+-])(\d+)=", prompt)
    assert match is not None, prompt
    return int(match[1]), match[2], int(match[3])


def problem(prompt: str) -> tuple[str, tuple[int, ...]]:
    """A problem whatever the order of its sum, without the package's own canonical key."""
    a, sign, b = operands(prompt)
    return sign, tuple(sorted((a, b))) if sign == "+" else (a, b)


def written_carry(a: int, sign: str, b: int) -> bool:
    """Long addition and subtraction by digit sums: a carry removes 9 from the sum of digits."""
    digits = [sum(map(int, str(n))) for n in (a, b, a + b if sign == "+" else a - b)]
    return digits[0] + digits[1] != digits[2] if sign == "+" else digits[0] != digits[1] + digits[2]


def test_the_splits_share_no_problem_in_any_order_of_its_terms():
    train = {problem(row["prompt"]) for row in arithmetic_rows("train")}
    test = {problem(row["prompt"]) for row in arithmetic_rows("test")}
    assert train
    assert test
    assert not train & test


def test_a_seed_never_moves_a_problem_to_the_other_split():
    test = {
        problem(row["prompt"]) for seed in range(3) for row in arithmetic_rows("test", seed=seed)
    }
    train = {problem(r["prompt"]) for seed in range(3) for r in arithmetic_rows("train", seed=seed)}
    assert not train & test


def test_about_a_tenth_of_the_problems_is_held_out():
    two_digit = {
        split: {
            problem(row["prompt"]) for row in arithmetic_rows(split) if row["family"] == "addition"
        }
        for split in ("train", "test")
    }
    share = len(two_digit["test"]) / (len(two_digit["test"]) + len(two_digit["train"]))
    assert 0.08 < share < 0.12


def test_the_canonical_key_is_one_for_all_orders_and_keeps_sums_from_differences():
    assert canonical_key("12+34=") == canonical_key("34+12=")
    assert canonical_key("10+20-5=") == canonical_key("20-5+10=")
    assert len({canonical_key(p) for p in ("12+34=", "34-12=", "12-34=", "1+234=")}) == 4


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_answer_and_carry_flag_is_right_and_every_operand_in_range(split):
    for row in arithmetic_rows(split):
        a, sign, b = operands(row["prompt"])
        assert row["answer"] == str(a + b if sign == "+" else a - b)
        assert row["answer"].isdigit()
        assert row["carry"] == written_carry(a, sign, b)
        assert 10 <= b <= 99
        assert (100 <= a <= 999) == (row["family"] == "three_digit")
        assert row["family"] == "three_digit" or (row["family"] == "addition") == (sign == "+")


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_row_comes_twice(split):
    prompts = [row["prompt"] for row in arithmetic_rows(split)]
    assert len(set(prompts)) == len(prompts)


def test_the_first_500_held_out_rows_ask_no_problem_twice():
    rows = arithmetic_rows("test", 500)
    assert len({problem(row["prompt"]) for row in rows}) == 500


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_families_keep_their_proportion_at_any_prefix(split):
    rows = arithmetic_rows(split)
    assert len(rows) >= {"train": 18_000, "test": 1_900}[split]
    for size in (5, 64, 500, 512, len(rows)):
        counts = Counter(row["family"] for row in rows[:size])
        for family in PATTERN:
            assert abs(counts[family] - size * PATTERN.count(family) / len(PATTERN)) <= 1


def test_the_rows_are_fixed_by_the_seed_and_a_smaller_size_is_a_prefix():
    rows = arithmetic_rows("train")
    assert rows == arithmetic_rows("train")
    assert arithmetic_rows("train", 777) == rows[:777]
    assert arithmetic_rows("train", seed=1) != rows
    # Written down once, so that a change of the data cannot pass unseen.
    assert [row["prompt"] for row in rows[:3]] == ["95+65=", "632+82=", "94-47="]


@pytest.mark.parametrize(("split", "size"), [("validation", None), ("test", -1)])
def test_a_split_or_size_that_does_not_exist_is_refused(split, size):
    with pytest.raises(ValueError, match=f"{size if size else split}"):
        arithmetic_rows(split, size)


def test_the_supervised_data_come_from_the_train_split_only(recipe):
    train = {row["prompt"] for row in arithmetic_rows("train")}
    test = {problem(row["prompt"]) for row in arithmetic_rows("test")}
    batches = list(itertools.chain.from_iterable(recipe.supervised_batches(200, seed=0)))
    assert len(batches) == 200 * recipe.BATCH_SIZE
    assert {row["prompt"] for row in batches} <= train
    shares = Counter(row["family"] for row in batches)
    for family, share in recipe.SHARES.items():
        assert shares[family] / len(batches) == pytest.approx(share, abs=0.02)
    assert not {problem(row["prompt"]) for row in batches} & test


def test_the_supervised_loss_covers_the_answer_and_its_end_only(recipe):
    tokenizer = recipe.build_tokenizer()
    rows = arithmetic_rows("train", 5)
    for row, ids, labels in zip(rows, *recipe.encode_batch(tokenizer, rows), strict=True):
        learned = labels != recipe.IGNORED
        assert tokenizer.decode(ids[learned]) == row["answer"] + "<eos>"
        assert torch.equal(ids[learned], labels[learned])
        start = int(learned.nonzero()[0])
        assert ids[:start].tolist() == tokenizer(row["prompt"])["input_ids"]


@given(text=TEXTS)
def test_the_tokenizer_gives_back_every_printable_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=TEXTS.filter(lambda text: "<" not in text))
def test_the_tokenizer_has_one_token_per_character_and_adds_none(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_the_recipe_and_the_checkpoint_have_the_same_tokenizer(recipe, tokenizer):
    assert recipe.build_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_the_checkpoint_is_small_and_stops_at_its_end_token(tokenizer):
    path = builtin.model_path(MODEL)
    assert sum(file.stat().st_size for file in path.iterdir()) <= 5_000_000
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.dtype == torch.float32
    assert model.config.max_position_embeddings >= 256
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id}) == 3


def naive_completions(model: Any, tokenizer: Any, prompts: list[str], sample: bool) -> list[str]:
    """Eight whole forward passes over prompts of one length: no cache, no generate()."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"] for prompt in prompts])  # int64 [B, L]
    with torch.no_grad():
        for _ in range(8):
            p = model(input_ids=ids).logits[:, -1].float().softmax(-1)  # float32 [B, V]
            choice = torch.multinomial(p, 1) if sample else p.argmax(-1, keepdim=True)
            ids = torch.cat([ids, choice], dim=1)
    return [tokenizer.decode(row[len(prompts[0]) :]) for row in ids]


def test_the_checkpoint_is_weak_at_arithmetic_and_sound_in_form(tokenizer):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(builtin.model_path(MODEL))
    right, formed, total = 0, 0, 0
    rows = arithmetic_rows("test", 200)
    for length in (6, 7):
        group = [row for row in rows if len(row["prompt"]) == length]
        prompts = [row["prompt"] for row in group]
        greedy = naive_completions(model, tokenizer, prompts, sample=False)
        right += sum(
            text.startswith(row["answer"] + "<eos>")
            for text, row in zip(greedy, group, strict=True)
        )
        sampled = naive_completions(model, tokenizer, prompts * 4, sample=True)
        formed += sum(re.match(r"\d+<eos>", text) is not None for text in sampled)
        total += len(sampled)
    assert 0.30 <= right / len(rows) <= 0.60
    assert formed / total >= 0.98


def test_names_lead_to_the_checkpoint_its_settings_and_the_rows():
    assert (builtin.model_path(MODEL) / "config.json").is_file()
    assert builtin.model_settings(MODEL)["dataset_name"] == "builtin:arithmetic"
    assert builtin.dataset_rows("builtin:arithmetic", "test") == arithmetic_rows("test")
    for name in builtin.BUILTIN_MODELS:
        assert (builtin.model_path(name) / "README.md").is_file()
        assert builtin.model_settings(name)


def test_an_unknown_name_is_answered_with_the_nearest_one():
    with pytest.raises(ConfigError, match="did you mean 'builtin:tiny-arithmetic'"):
        builtin.model_path("builtin:tiny-aritmetic")
    with pytest.raises(ConfigError, match="did you mean 'builtin:tiny-arithmetic'"):
        builtin.model_settings("builtin:arithmetic-tiny")
    with pytest.raises(ConfigError, match="did you mean 'builtin:arithmetic'"):
        builtin.dataset_rows("builtin:aritmetic", "train")
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        builtin.dataset_rows("builtin:arithmetic", "tests")


def test_the_names_are_known_without_loading_torch():
    code = "import sys, rl4lm.builtin; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
