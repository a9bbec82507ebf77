"""Asserts of the form `assert f(<literals>) == <literal>`, which need no process of their own.

Most tests of MBPP and many of HumanEval are nothing else. They say the same as calls with expected
values, so they are judged as such, in half the time: with Python's own `==` on plain data, which is
the policy "equal" of `rewards.grading.comparison`.
"""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Iterator

from rewards.grading.comparison import has_nan
from rewards.grading.task_forms import AssertTask, CallTask, CallTest
from rewards.sandbox.values import NotPlain, Wire, encode


class _Otherwise(Exception):
    """The tests do something else as well."""


@functools.lru_cache(maxsize=1 << 10)
def as_calls(task: AssertTask) -> CallTask | None:
    """The task as calls with expected values; None if its tests do anything else.

    An `assert True` is left out. The set-up code is not run: nothing in such tests refers to it.
    """
    statements = ast.parse(task.tests).body
    try:
        if task.call_check:
            tests = list(_of_check(statements))
        else:
            tests = list(_of_asserts(statements, task.entry))
    except _Otherwise:
        return None
    return CallTask(task.entry, "equal", tuple(tests)) if tests else None


def _of_check(statements: list[ast.stmt]) -> Iterator[CallTest]:
    """The asserts of the one function `check(candidate)`, beside which only literals are bound."""
    checks = [item for item in statements if isinstance(item, ast.FunctionDef)]
    others = [item for item in statements if not isinstance(item, ast.FunctionDef)]
    if len(checks) != 1 or checks[0].name != "check" or checks[0].decorator_list:
        raise _Otherwise
    if not all(isinstance(item, ast.Assign) and _is_literal(item.value) for item in others):
        raise _Otherwise
    arguments = checks[0].args
    if len(arguments.args) != 1 or arguments.vararg or arguments.kwonlyargs or arguments.kwarg:
        raise _Otherwise
    yield from _of_asserts(checks[0].body, arguments.args[0].arg)


def _of_asserts(statements: list[ast.stmt], function: str) -> Iterator[CallTest]:
    for statement in statements:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        if not isinstance(statement, ast.Assert):
            raise _Otherwise
        test = statement.test
        if isinstance(test, ast.Constant) and test.value is True:
            continue
        yield _of_comparison(test, function)


def _of_comparison(test: ast.expr, function: str) -> CallTest:
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        raise _Otherwise
    call, expected = test.left, test.comparators[0]
    if not isinstance(test.ops[0], ast.Eq) or not isinstance(call, ast.Call):
        raise _Otherwise
    if not isinstance(call.func, ast.Name) or call.func.id != function:
        raise _Otherwise
    args = [_encoded(argument) for argument in call.args]
    kwargs = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise _Otherwise
        kwargs[keyword.arg] = _encoded(keyword.value)
    wire = _encoded(expected)
    if has_nan(wire):
        raise _Otherwise
    return CallTest(json.dumps(args), json.dumps(kwargs), json.dumps(wire))


def _encoded(node: ast.expr) -> Wire:
    try:
        return encode(ast.literal_eval(node))
    except (NotPlain, ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise _Otherwise from None


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False
    return True
