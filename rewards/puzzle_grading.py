"""Graders of `reasoning-gym`, which read any text; runs in a `Killable`.

Some graders call `eval`, or `parse_expr` of sympy, which calls it. A completion would then be a
program that runs beside the reward, so only plain data and formulas get through to them.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
from functools import lru_cache
from typing import Any

from reasoning_gym.factory import create_dataset

# Nodes of plain data; a name is worth nothing, and stands for an answer that is a word.
_DATA = (
    *(ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.Name, ast.Load),
    *(ast.UnaryOp, ast.USub, ast.UAdd),
)
_FORMULA = re.compile(
    r"(?:(?P<name>[A-Za-z]+[0-9]*)|[0-9]+(?:\.[0-9]*)?|\.[0-9]+|[-+*/^(), \t\n])*"
)
_WORD = re.compile(r"[A-Za-z]+")
_FUNCTIONS = frozenset(
    (
        *("sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "sinh", "cosh", "tanh"),
        *("asinh", "acosh", "atanh", "exp", "log", "ln", "sqrt", "Abs", "pi"),
    )
)


def warm_up() -> None:
    """Nothing is imported later than this module."""


def score(entry_json: str, answer: str) -> tuple[float, str]:
    """What a task's own grader gives an answer, and a note where it was not asked or raised.

    Raises:
        Exception: of any kind, if the grader raises for the right answer as well.
    """
    entry = _plain(json.loads(entry_json))
    made, grader = _made(entry["task"], json.dumps(entry["config"], sort_keys=True))
    refusal = _refusal(grader, answer)
    if refusal:
        return 0.0, refusal
    try:
        given = float(made.score_answer(answer, entry))
    except Exception as error:  # noqa: BLE001, a text that it did not expect, if this passes:
        made.score_answer(entry["answer"] or "", entry)
        return 0.0, f"its grader raised {type(error).__name__}"
    if not math.isfinite(given):
        raise ValueError(f"the grader of {entry['task']} returned {given} for {answer!r:.80}")
    return min(max(given, 0.0), 1.0), ""


@lru_cache(maxsize=64)
def _made(task: str, config: str) -> tuple[Any, str]:
    """A task, and the program text of its grader."""
    made = create_dataset(task, **json.loads(config))
    return made, inspect.getsource(made.score_answer)


def _refusal(grader: str, answer: str) -> str:
    """Why an answer must not reach a grader; empty where it may."""
    if re.search(r"\beval\(", grader) and not is_data(answer):
        return "a program is no answer"
    if re.search(r"\b(?:parse_expr|sympify)\(", grader) and not is_formula(answer):
        return "no formula"
    return ""


def is_data(text: str) -> bool:
    """Whether Python would read it as plain data, or not at all."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError):
        return True
    except (MemoryError, RecursionError):
        return False
    return all(isinstance(node, _DATA) for node in ast.walk(tree))


def is_formula(text: str) -> bool:
    """Whether there is nothing but numbers, signs, variables of one letter and known functions."""
    if len(text) > 1000 or not _FORMULA.fullmatch(text):
        return False
    return all(len(word) == 1 or word in _FUNCTIONS for word in _WORD.findall(text))


def _plain(value: Any) -> Any:
    """What was written as JSON, with its tuples and its mappings by other keys than texts."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"()"}:
        return tuple(_plain(each) for each in value["()"])
    if value.keys() == {"{}"}:
        return {_plain(key): _plain(each) for key, each in value["{}"]}
    return {key: _plain(each) for key, each in value.items()}
