"""What test code can be judged: asserts that only see plain values that a function returned.

The tests run in another process than the program, with a stand-in for the function (see
`rewards.sandbox.grader`). So they may do anything with what it returns, but they cannot hand it
functions or objects of their own classes, cannot ask whether a result is the very same object as
another, and do not see an argument that it changed in place. `checked_tests` finds such tests by
their syntax tree, so that a row is refused when the data is loaded and not scored 0 for ever.
"""

from __future__ import annotations

import ast
import functools
import sys

from rewards.grading.review import CodeNames, Reviewer, UnfitTask


@functools.lru_cache(maxsize=1 << 10)
def checked_tests(tests: str, setup: str, entry: str, call_check: bool) -> str:
    """The set-up code, with the modules imported that the tests use and do not import.

    Args:
        tests: test code; asserts about the function `entry`.
        setup: code that runs before it.
        entry: name of the function that the program is to define.
        call_check: whether the tests define `check(candidate)`, which is to be called.

    Raises:
        UnfitTask: the tests cannot be judged, or never call the function.
    """
    trees = [_parsed(setup, "set-up code"), _parsed(tests, "tests")]
    names = CodeNames(trees)
    _check_imports(trees)
    if call_check and "check" not in names.definitions:
        raise UnfitTask("the tests define no function check")
    if not call_check and entry not in names.loaded:
        raise UnfitTask(f"the tests never call {entry}")
    missing = [name for name in names.undefined() if name != entry]
    modules = [name for name in missing if name in sys.stdlib_module_names]
    if len(modules) < len(missing):
        unknown = ", ".join(name for name in missing if name not in modules)
        raise UnfitTask(f"the tests use {unknown}, which they do not define")
    Reviewer(names, {entry, *(names.check_parameter() if call_check else ())}).visit(trees[1])
    return "".join(f"import {name}\n" for name in modules) + setup


@functools.lru_cache(maxsize=1 << 10)
def tallied(tests: str) -> tuple[str, int]:
    """The tests with every assert counted and none ending the run, and how many asserts there are.

    Each `assert` reports its number to `__passed__` or, with the exception, to `__failed__`. Tests
    without an assert are left alone and count as one.
    """
    tree = ast.parse(tests)
    tally = _Tally()
    tree = tally.visit(tree)
    if not tally.asserts:
        return tests, 1
    return ast.unparse(ast.fix_missing_locations(tree)), tally.asserts


def count_asserts(tests: str) -> int:
    """How many asserts there are, at least 1: tests without one are a test."""
    return tallied(tests)[1]


def function_under_test(tests: list[str], setup: str) -> str:
    """The name of the function that asserts are about.

    It is what they call and do not define; the outermost such call of the first assert where there
    are several, and a builtin's name (redefined by the program) where there is none.

    Raises:
        UnfitTask: the tests call no function by its name.
    """
    trees = [_parsed(test, "tests") for test in tests]
    known = CodeNames([_parsed(setup, "set-up code"), *trees])
    called = [
        node.func.id
        for tree in trees
        for node in ast.walk(tree)  # outermost first
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    if not called:
        raise UnfitTask("entry not found: the tests call no function by its name")
    undefined = known.undefined()
    return next((name for name in called if name in undefined), called[0])


def _parsed(code: str, what: str) -> ast.Module:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UnfitTask(f"the {what} cannot be parsed: {error}") from None


def _check_imports(trees: list[ast.Module]) -> None:
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or "."]
        else:
            continue
        for module in modules:
            if module.split(".")[0] not in sys.stdlib_module_names:
                raise UnfitTask(
                    f"the tests import {module}; the sandbox has the standard library only"
                )


class _Tally(ast.NodeTransformer):
    """Wraps each assert so that it reports and does not end the run."""

    def __init__(self) -> None:
        self.asserts = 0

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        number = self.asserts
        self.asserts += 1
        wrapped = ast.parse(
            f"try: pass\nexcept Exception as __error__: __failed__({number}, __error__)\n"
            f"else: __passed__({number})"
        ).body[0]
        assert isinstance(wrapped, ast.Try)
        wrapped.body = [node]
        return wrapped
