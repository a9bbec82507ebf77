"""Which of several readings of a completion is run: done in the confined child."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Sequence

from rewards.sandbox.child import compiled


def chosen(programs: Sequence[Sequence[str]], entry: str | None) -> str:
    """The first program that compiles and whose part defines `entry`; the last if there is none.

    `programs` are pairs `(program, part)`. Where `entry` is None it is enough to compile.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a stray backslash must not fill the standard error
        for program, part in programs[:-1]:
            if _compiles(program) and (entry is None or _defines(part, entry)):
                return program
    return programs[-1][0]


def _compiles(program: str) -> bool:
    try:
        compiled(program, "<program>")
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def _defines(part: str, entry: str) -> bool:
    try:
        tree = ast.parse(part)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return entry in _top_level_names(tree.body)


def _top_level_names(statements: Sequence[ast.stmt]) -> Iterator[str]:
    """Names that a module binds by def, class, assignment or import, also under `if` or `try`."""
    for statement in statements:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield statement.name
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in statement.names)
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(statement, (ast.If, ast.Try, ast.With)):
            for block in ("body", "orelse", "finalbody"):
                yield from _top_level_names(getattr(statement, block, []))
