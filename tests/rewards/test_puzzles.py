from __future__ import annotations

import importlib.util
import json
import sys
import types
from typing import Any

import pytest

from rewards.puzzles import final_text, score, solved

INSTALLED = importlib.util.find_spec("reasoning_gym") is not None
reasoning = pytest.mark.skipif(
    not INSTALLED, reason="needs reasoning-gym: pip install 'rl4lm[reasoning]'"
)


def entry(task: str, answer: str, config: dict[str, Any] | None = None, **metadata: Any) -> str:
    """A row's entry as `rl4lm.data.procedural_rows` writes it."""
    return json.dumps(
        {"task": task, "config": config or {}, "answer": answer, "metadata": metadata}
    )


LEGS = entry("leg_counting", "14")
INTEGRAL = entry("simple_integration", "x**2 + C", variable="x", integrand="2*x")
LETTERS = entry("string_insertion", "ABCDE", string="ABCD")
COUNTDOWN = entry("countdown", "3*4", numbers=[3, 4], target=12)


def paid(reward: Any, completion: str, row: str | None) -> float | None:
    return reward(completions=[completion], entry=[row])[0]


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("14", "14"),
        (" 14\n", "14"),
        ("<answer>14</answer>", "14"),
        ("so <answer>\n14\n</answer>.", "14"),
        ("<answer>13</answer> no: <answer>14</answer>", "14"),
        ("<answer>13<answer>14</answer>", "14"),
        ("<think><answer>13</answer></think>14", "14"),
        ("<answer>14", "<answer>14"),
        ("14</answer>", "14</answer>"),
        ("</answer>14<answer>", "</answer>14<answer>"),
        ("<answer>" * 50_000 + "14</answer>", "14"),
    ],
)
def test_the_answer_is_what_the_last_tags_hold_or_the_whole_text(
    completion: str, answer: str
) -> None:
    assert final_text(completion) == answer


def test_a_row_without_an_entry_is_left_out() -> None:
    assert paid(score, "14", None) is None
    assert paid(solved, "14", None) is None


@pytest.mark.parametrize("completion", ["", "  ", "<answer></answer>", "x" * 10_001])
def test_no_answer_and_far_too_much_of_it_are_wrong(completion: str) -> None:
    assert paid(score, completion, LEGS) == 0.0


@reasoning
@pytest.mark.parametrize(
    ("completion", "row", "given"),
    [
        ("<answer>14</answer>", LEGS, 1.0),
        ("<answer>15</answer>", LEGS, 0.0),
        ("x**2 + C", INTEGRAL, 1.0),
        ("<answer>x*x + 7</answer>", INTEGRAL, 1.0),
        ("x**3 + C", INTEGRAL, 0.0),
        ("ABCDE", LETTERS, 1.0),
        ("['A', 'B', 'C', 'D', 'E']", LETTERS, 0.1),
        ("4*3", COUNTDOWN, 1.0),
        ("3*4*1", COUNTDOWN, 0.05),
    ],
)
def test_the_tasks_own_grader_decides(completion: str, row: str, given: float) -> None:
    assert paid(score, completion, row) == pytest.approx(given)
    assert paid(solved, completion, row) == float(given == 1.0)


PROGRAMS = [
    ("__import__('os')._exit(0)", LETTERS),
    ("[c for c in 'ABCDE']", LETTERS),
    ("open('/etc/passwd').read()", LETTERS),
    ("(lambda: 'ABCDE')()", LETTERS),
    ("list('ABCDE')", LETTERS),
    ("'ABC' + 'DE'", LETTERS),
    ("'A' * 10 ** 9", LETTERS),
    ("f'{1}'", LETTERS),
    ("x.__class__", LETTERS),
    ("__import__('os')._exit(0)", INTEGRAL),
    ("Integral(2*x, x)", INTEGRAL),
    ("integrate(2*x, x)", INTEGRAL),
    ("open", INTEGRAL),
    ("x.diff(x)", INTEGRAL),
    ("x if 1 else x", INTEGRAL),
    ("x; import os", INTEGRAL),
    ("x**2 + C # it", INTEGRAL),
    ("'x**2'", INTEGRAL),
    ("(3*4)[0]", COUNTDOWN),
    ("sum((3, 4, 5))", COUNTDOWN),
    ("eval(12)", COUNTDOWN),
]


@reasoning
@pytest.mark.parametrize(("program", "row"), PROGRAMS, ids=range(len(PROGRAMS)))
def test_an_answer_that_is_a_program_never_reaches_a_grader_that_would_run_it(
    program: str, row: str
) -> None:
    logged: dict[str, list[str]] = {}
    assert score(completions=[program], entry=[row], log_extra=logged.__setitem__) == [0.0]
    assert logged["detail"][0].endswith(("a program is no answer", "no formula"))


@reasoning
def test_a_grader_that_raises_for_the_right_answer_too_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="raised KeyError"):
        paid(score, "A,B", entry("word_ladder", "A,B"))  # without the metadata that it reads


class Grader:
    """A task whose grader reads numbers, and raises at anything else."""

    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        return float(answer) / float(entry["answer"])


@pytest.fixture
def grading(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`rewards.puzzle_grading` with that one task and without the library."""
    factory = types.ModuleType("reasoning_gym.factory")
    factory.create_dataset = lambda task: Grader()
    monkeypatch.setitem(sys.modules, "reasoning_gym", types.ModuleType("reasoning_gym"))
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)
    monkeypatch.delitem(sys.modules, "rewards.puzzle_grading", raising=False)
    yield importlib.import_module("rewards.puzzle_grading")
    sys.modules.pop("rewards.puzzle_grading", None)


@pytest.mark.parametrize(
    ("answer", "graded"),
    [
        ("2", (0.5, "")),
        ("40", (1.0, "")),
        ("-4", (0.0, "")),
        ("four", (0.0, "its grader raised ValueError")),
    ],
)
def test_scores_lie_between_0_and_1_and_a_text_that_a_grader_trips_over_is_wrong(
    grading: Any, answer: str, graded: tuple[float, str]
) -> None:
    assert grading.score(entry("halves", "4"), answer) == graded


def test_a_score_that_is_no_number_and_a_grader_that_always_raises_are_errors(
    grading: Any,
) -> None:
    with pytest.raises(ValueError, match="the grader of halves returned nan"):
        grading.score(entry("halves", "4"), "nan")
    with pytest.raises(ValueError, match="could not convert"):
        grading.score(entry("halves", "none"), "four")


@reasoning
@pytest.mark.slow
def test_an_answer_that_cannot_be_computed_is_wrong_and_counted() -> None:
    logged: dict[str, list[str]] = {}
    texts = ["9**9**9**9", "x**2 + C"]
    given = score(completions=texts, entry=[INTEGRAL] * 2, log_extra=logged.__setitem__)
    assert given == [0.0, 1.0]
    assert logged["lost"] == ["timeouts", ""]


@pytest.mark.skipif(INSTALLED, reason="reasoning-gym is installed")
def test_without_the_library_the_error_names_the_extra() -> None:
    with pytest.raises(ImportError, match=r"rl4lm\[reasoning\]"):
        paid(score, "14", LEGS)
