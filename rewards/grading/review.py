"""What the syntax tree of test code tells: its names, and uses that no stand-in can serve."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator

# Callables whose results are no plain data, although they are often handed on like lists.
_LAZY = frozenset({"map", "filter", "zip", "range", "iter", "enumerate", "reversed", "object"})
_BY_IDENTITY = frozenset({"id", "callable", "next", "hasattr", "getattr", "setattr"})
_PLAIN = (int, float, complex, bool, str, bytes, list, tuple, set, frozenset, dict)
_PLAIN_ATTRIBUTES = frozenset(name for kind in _PLAIN for name in dir(kind))
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class UnfitTask(ValueError):
    """The tests of a row cannot be expressed, or are no tests; the message says why."""


class CodeNames:
    """The names that code defines and uses, whatever the scope."""

    def __init__(self, trees: list[ast.Module]) -> None:
        self.definitions: dict[str, ast.AST] = {}  # functions and classes
        self.loaded: dict[str, None] = {}  # in order
        self._bound: set[str] = set()
        for tree in trees:
            for node in ast.walk(tree):
                self._note(node)

    def undefined(self) -> list[str]:
        """Names that are used, and neither defined nor builtin."""
        if "*" in self._bound:  # `from math import *` may define any of them
            return []
        known = self._bound | set(self.definitions) | set(dir(builtins))
        return [name for name in self.loaded if name not in known]

    def is_callable(self, name: str) -> bool:
        """Whether a name stands for a function or class: of the code itself, or a builtin."""
        if name in self.definitions:
            return True
        return name not in self._bound and callable(getattr(builtins, name, None))

    def is_class(self, name: str) -> bool:
        """Whether a name stands for a class of the code."""
        return isinstance(self.definitions.get(name), ast.ClassDef)

    def check_parameter(self) -> list[str]:
        """The names of the parameters of `check`."""
        check = self.definitions.get("check")
        if not isinstance(check, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return []
        return [argument.arg for argument in check.args.args]

    def _note(self, node: ast.AST) -> None:
        if isinstance(node, _DEFINITIONS):
            self.definitions[node.name] = node
        elif isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load):
                self.loaded[node.id] = None
            else:
                self._bound.add(node.id)
        elif isinstance(node, ast.arg):
            self._bound.add(node.arg)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            self._bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ExceptHandler) and node.name:
            self._bound.add(node.name)


class Reviewer(ast.NodeVisitor):
    """Raises `UnfitTask` where tests do what cannot be done with a stand-in."""

    def __init__(self, names: CodeNames, functions: set[str]) -> None:
        self._names = names
        self._functions = functions  # the names under which the tests call the function
        self._results: set[str] = set()  # variables that hold what it returned
        self._discarded: set[str] = set()  # variables that were handed to it for nothing in return

    def visit_Assign(self, node: ast.Assign) -> None:
        """Remember variables that hold results."""
        self.generic_visit(node)
        if self._is_result(node.value):
            self._results |= {name.id for name in node.targets if isinstance(name, ast.Name)}

    def visit_Expr(self, node: ast.Expr) -> None:
        """Remember variables handed to a call whose result is not looked at."""
        self.generic_visit(node)
        if self._is_call(node.value):
            arguments = node.value.args  # type: ignore[attr-defined]  # of a call
            self._discarded |= {item.id for item in arguments if isinstance(item, ast.Name)}

    def visit_Assert(self, node: ast.Assert) -> None:
        """Refuse asserts about such variables."""
        self.generic_visit(node)
        names = {item.id for item in ast.walk(node.test) if isinstance(item, ast.Name)}
        if names & self._discarded:
            raise UnfitTask("the tests look at an argument that the function changed in place")

    def visit_Call(self, node: ast.Call) -> None:
        """Refuse arguments that cannot be sent, and uses that need the very object."""
        self.generic_visit(node)
        if self._is_call(node):
            for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                self._check_argument(argument)
        elif isinstance(node.func, ast.Name) and any(self._is_result(item) for item in node.args):
            self._check_use(node.func.id, node)

    def visit_Compare(self, node: ast.Compare) -> None:
        """Refuse comparisons by identity."""
        self.generic_visit(node)
        by_identity = any(isinstance(operator, (ast.Is, ast.IsNot)) for operator in node.ops)
        parts = [node.left, *node.comparators]
        others = [part for part in parts if not isinstance(part, ast.Constant)]
        if by_identity and len(others) > 1 and any(self._is_result(part) for part in others):
            raise UnfitTask("the tests compare results by identity")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Refuse attributes that plain data does not have."""
        self.generic_visit(node)
        if self._is_result(node.value) and node.attr not in _PLAIN_ATTRIBUTES:
            raise UnfitTask(f"the tests use .{node.attr} of a result; results are plain data")

    def _is_call(self, node: ast.AST) -> bool:
        return (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in self._functions
        )

    def _is_result(self, node: ast.AST) -> bool:
        return self._is_call(node) or (isinstance(node, ast.Name) and node.id in self._results)

    def _check_argument(self, node: ast.AST) -> None:
        for item in _items(node):
            # `_calls_name` has looked at the types.
            called = item.func.id if _calls_name(item) else ""  # type: ignore[attr-defined]
            is_function = isinstance(item, ast.Name) and self._names.is_callable(item.id)
            if isinstance(item, ast.Lambda) or is_function:
                raise UnfitTask("the tests pass a callable to the function")
            is_lazy = isinstance(item, ast.GeneratorExp) or called in _LAZY
            if is_lazy or self._names.is_class(called):
                raise UnfitTask(
                    "the tests pass an object to the function that is no plain data: "
                    + ast.unparse(item)[:80]
                )

    def _check_use(self, name: str, node: ast.Call) -> None:
        if name in _BY_IDENTITY:
            raise UnfitTask(f"the tests use {name}() of a result; results are plain data")
        kinds = node.args[1:] if name == "isinstance" else []
        if any(isinstance(kind, ast.Name) and self._names.is_class(kind.id) for kind in kinds):
            raise UnfitTask("the tests expect an object of a class; results are plain data")


def _items(node: ast.AST) -> Iterator[ast.AST]:
    """An argument, or what is in it where it is written out as a container."""
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        for element in node.elts:
            yield from _items(element)
    elif isinstance(node, ast.Dict):
        for part in (*node.keys, *node.values):
            if part is not None:  # the key of **other
                yield from _items(part)
    else:
        yield node


def _calls_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
