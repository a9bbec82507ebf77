"""The programming task that ships with the package, and a checkpoint that is weak but sound."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl4lm import builtin
from rl4lm.builtin.code import CodeTask, code_rows, code_tasks
from rl4lm.builtin.code_kinds import FAMILIES

MODEL = "builtin:tiny-code"
RECIPES = Path(__file__).parents[1] / "recipes"
KINDS = {name: kind for family in FAMILIES.values() for name, kind in family.items()}
COMPLETION = 48  # tokens, the end token included


@pytest.fixture(scope="module")
def recipe() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPES))
        yield importlib.import_module("make_tiny_code")


@pytest.fixture(scope="module")
def tasks() -> dict[str, list[CodeTask]]:
    return {split: code_tasks(split) for split in ("train", "test")}


@pytest.fixture(scope="module")
def of_each_kind(tasks) -> list[CodeTask]:
    """Twelve tasks of every kind, from both splits."""
    chosen: dict[str, list[CodeTask]] = {name: [] for name in KINDS}
    for task in tasks["test"] + tasks["train"]:
        if len(chosen[task.kind]) < 12:
            chosen[task.kind].append(task)
    return [task for group in chosen.values() for task in group]


def passes(task: CodeTask, body: str) -> bool:
    """Run a body of this repository's own, with the same value and the same type asked for."""
    scope: dict[str, Any] = {"print": lambda *_: None}
    try:
        exec(task.prompt + body, scope)
        return all(
            repr(scope[task.function](*test["args"])) == repr(test["expected"])
            for test in json.loads(task.tests())["tests"]
        )
    except (
        AttributeError,
        IndexError,
        NameError,
        NotImplementedError,
        SyntaxError,
        TypeError,
        ValueError,
        ZeroDivisionError,
    ):
        return False


def test_no_prompt_of_the_test_split_is_in_the_train_split(tasks):
    prompts = {split: [task.prompt for task in tasks[split]] for split in tasks}
    assert not set(prompts["train"]) & set(prompts["test"])
    for split, expected in (("train", 10_000), ("test", 1_000)):
        assert len(prompts[split]) == len(set(prompts[split])) == expected


def test_no_task_is_in_both_splits_under_another_comment_or_function_name_or_seed(tasks):
    def seen(split: str) -> set[tuple[str, tuple[str, ...], str]]:
        drawn = [*tasks[split], *code_tasks(split, 3_000, seed=1)]
        return {(task.kind, task.names, json.dumps(task.constants)) for task in drawn}

    assert not seen("train") & seen("test")


def test_a_prompt_says_the_names_and_the_constants_of_its_task(tasks):
    for task in tasks["test"]:
        comment, signature = task.prompt.splitlines()
        assert signature == f"def {task.function}({', '.join(task.names)}):"
        words = re.findall(r"\w+", comment)
        assert {*task.names, *map(str, task.constants.values())} <= {*words}


def test_about_a_fifth_of_the_tasks_is_held_out_and_some_of_every_kind(tasks):
    held_out = Counter(task.kind for task in tasks["test"])
    assert set(held_out) == set(KINDS)
    keys = {split: {t.key for t in code_tasks(split, 100_000)} for split in tasks}
    share = len(keys["test"]) / (len(keys["test"]) + len(keys["train"]))
    assert 0.18 < share < 0.22


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_families_take_turns(split, tasks):
    families = [task.family for task in tasks[split]]
    assert families == [*FAMILIES] * (len(families) // len(FAMILIES))


def test_the_rows_are_fixed_by_the_seed_and_a_smaller_size_is_a_prefix():
    rows = code_rows("test")
    assert rows == code_rows("test")
    assert code_rows("test", 123) == rows[:123]
    assert code_rows("test", seed=1) != rows
    # Written down once, so that a change of the data cannot pass unseen.
    assert [row["prompt"] for row in rows[:2]] == [
        "# k plus e\ndef f(k, e):\n",
        "# larger of b and r\ndef go(b, r):\n",
    ]


@pytest.mark.parametrize(("split", "size"), [("validation", None), ("test", -1)])
def test_a_split_or_size_that_does_not_exist_is_refused(split, size):
    with pytest.raises(ValueError, match=f"{size if size else split}"):
        code_rows(split, size)


def test_a_row_has_a_prompt_that_parses_with_a_body_and_at_least_eight_tests_as_json():
    for row in code_rows("test"):
        assert set(row) == {"prompt", "tests", "family"}
        tests = json.loads(row["tests"])
        compile(row["prompt"] + "    pass\n", "row", "exec")
        assert f"def {tests['entry']}(" in row["prompt"]
        assert (tests["kind"], tests["compare"]) == ("call", "exact")
        assert len(tests["tests"]) >= 8


def test_no_constant_passes_more_than_all_but_two_tests(tasks):
    for task in tasks["test"]:
        expected = [json.dumps(test["expected"]) for test in json.loads(task.tests())["tests"]]
        assert Counter(expected).most_common(1)[0][1] <= len(expected) - 2, task.prompt


def test_no_test_that_is_the_same_for_a_function_that_returns_its_argument(of_each_kind):
    for task in of_each_kind:
        assert not passes(task, f"    return {task.names[0]}\n"), task.prompt


def test_every_right_body_passes_and_every_wrong_one_fails(recipe, of_each_kind):
    bodies = recipe.read_bodies()
    assert set(bodies) == set(KINDS)
    for task in of_each_kind:
        for sort, expected in (("right", True), ("wrong", False)):
            for template in bodies[task.kind][sort]:
                assert passes(task, recipe.body(task, template)) is expected, (
                    task.prompt,
                    template,
                )


def test_every_body_fits_into_a_completion_with_its_end(recipe, tasks):
    bodies = recipe.read_bodies()
    for task in tasks["train"]:
        for template in bodies[task.kind]["right"]:
            assert len(recipe.body(task, template)) + 1 <= COMPLETION


def test_the_supervised_data_come_from_the_train_split_in_the_stated_shares(recipe, tasks):
    batches = [row for batch in recipe.supervised_batches(150, seed=0) for row in batch]
    assert {row["prompt"] for row in batches} <= {task.prompt for task in tasks["train"]}
    ends = [row for row in batches if recipe.ENDING.search(row["answer"])]
    assert len(ends) / len(batches) == pytest.approx(recipe.SHARES["ends the program"], abs=0.01)
    by_prompt = {task.prompt: task for task in tasks["train"]}
    right = [passes(by_prompt[row["prompt"]], row["answer"]) for row in batches if row not in ends]
    share = sum(right) / len(batches)
    assert share == pytest.approx(recipe.SHARES["right"], abs=0.02)


def test_names_lead_to_the_checkpoint_its_settings_and_the_rows():
    assert builtin.model_settings(MODEL)["dataset_name"] == "builtin:code"
    assert builtin.model_settings(MODEL)["max_completion_length"] == COMPLETION
    assert builtin.dataset_rows("builtin:code", "test") == code_rows("test")


def test_the_checkpoint_is_small_and_has_the_tokenizer_of_tiny_arithmetic():
    path = builtin.model_path(MODEL)
    assert sum(file.stat().st_size for file in path.iterdir()) <= 5_000_000
    vocabularies = [
        AutoTokenizer.from_pretrained(builtin.model_path(name)).get_vocab()
        for name in ("builtin:tiny-arithmetic", MODEL)
    ]
    assert vocabularies[0] == vocabularies[1]


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
def test_the_checkpoint_is_weak_at_programming_and_sound_in_form(recipe, tasks):
    tokenizer = AutoTokenizer.from_pretrained(builtin.model_path(MODEL))
    model = AutoModelForCausalLM.from_pretrained(builtin.model_path(MODEL))
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    chosen = tasks["test"][:200]
    prompts = [task.prompt for task in chosen]
    greedy = recipe.complete(model, tokenizer, prompts, sample=False)
    assert 0.3 <= sum(recipe.solved(chosen, greedy)) / len(chosen) <= 0.5
    torch.manual_seed(0)
    sampled = recipe.complete(model, tokenizer, prompts, sample=True)
    sound = [recipe.is_python(*pair) for pair in zip(prompts, sampled, strict=True)]
    assert sum(sound) / len(sound) >= 0.9
    assert any(recipe.ENDING.search(text) for text in sampled)


def test_what_is_called_python_has_an_end_and_compiles(recipe):
    assert recipe.is_python("def f(a):\n", "    return a\n<eos>")
    assert not recipe.is_python("def f(a):\n", "    return a\n")
    assert not recipe.is_python("def f(a):\n", "    return a +\n<eos>")
