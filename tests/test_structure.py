"""The shape of the code: short files and functions, reasons beside exceptions, rooms on the map."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MEASURED = ["rl4lm", "rewards", "recipes", "benchmarks"]
MOST_LINES = 300  # of a file
MOST_OF_A_FUNCTION = 40  # lines, from its `def` on, docstring not counted

# What is longer, and why. An entry that is no longer needed fails.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}

MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (`[a-z_0-9`, ]+`) \| ([^|]*)\|", re.MULTILINE)
NAME = re.compile(r"`([a-z_0-9]+)`")
_CODES = r"(?::?\s*(?:no cover|\[[\w\-, ]+\]|[A-Z]+\d+(?:, ?[A-Z]+\d+)*))?"
WAIVER = re.compile(r"#\s*(?:noqa|type:\s*ignore|pragma)\b" + _CODES)


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def long_functions(source: str, most: int = MOST_OF_A_FUNCTION) -> dict[str, int]:
    """Name of each function of a file that is too long -> its lines without the docstring."""
    found = {}
    for node in statements(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1 - _docstring_lines(node)
            if lines > most:
                found[node.name] = lines
    return found


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)):
            yield child
            yield from statements(child)


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if ast.get_docstring(node) is None:
        return 0
    return (node.body[0].end_lineno or 0) - node.body[0].lineno + 1


def test_no_file_is_longer_than_a_person_holds_in_mind():
    lines = {
        name_of(path): len(path.read_text("utf-8").splitlines()) for path in sources(*MEASURED)
    }
    assert len(lines) > 200
    assert {name for name, count in lines.items() if count > MOST_LINES} == set(LONG_FILES)


def test_no_function_is_longer_than_a_screen():
    found = {
        f"{name_of(path)}:{function}"
        for path in sources(*MEASURED)
        for function in long_functions(path.read_text("utf-8"))
    }
    assert found == set(LONG_FUNCTIONS)


def test_the_docstring_of_a_function_is_not_counted_and_everything_else_is():
    body = "    x = 1\n" * 4
    described = 'def f():\n    """Two\n    lines."""\n'
    assert long_functions(described + body, most=4) == {"f": 5}
    assert long_functions("async def g():\n" + body, most=4) == {"g": 5}
    assert long_functions("async def g():\n" + body, most=5) == {}


def waivers_without_reason(source: str) -> Iterator[int]:
    """Lines that switch a check off and do not say why, there or in the comment above."""
    if not WAIVER.search(source):
        return
    lines = source.splitlines()
    reasons = set()  # lines with a waiver and its reason; the next line may share it
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or not WAIVER.search(token.string):
            continue
        row = token.start[0]
        said = re.sub(r"[^\w ]", " ", WAIVER.sub("", token.string)).split()
        above = lines[row - 2].strip() if row > 1 else ""
        if len(said) >= 1 or above.startswith("#") or row - 1 in reasons:
            reasons.add(row)
        else:
            yield row


@pytest.mark.parametrize("folder", [*MEASURED, "tests", "docs"])
def test_a_check_that_is_switched_off_has_its_reason_beside_it(folder):
    silent = [
        f"{name_of(path)}:{line}"
        for path in sources(folder)
        for line in waivers_without_reason(path.read_text("utf-8"))
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = 1  # noqa: E731\n", [1]),
        ("x = 1  # type: ignore[misc]  # noqa: SIM115\n", [1]),
        ("x = 1  # pragma: no cover\n", [1]),
        ("x = 1  # noqa: BLE001, raised again\n", []),
        ("x = 1  # type: ignore[misc]  # frozen\n", []),
        ("# The reason.\nx = 1  # noqa: E731\ny = 1  # noqa: E731\n\nz = 1  # noqa: E731\n", [5]),
        ('x = "# noqa: E731"\n', []),
    ],
)
def test_a_reason_is_words_on_the_line_or_in_the_comment_above(source, found):
    assert list(waivers_without_reason(source)) == found


def described() -> dict[str, set[str]]:
    """Room -> the modules that the map names of it; "" has the modules beside the rooms."""
    beside, rooms = MAP.split("\n## The rooms\n")[1].split("\n## ")[0].split("| room | modules |")
    found = {"": {name for row in ROW.findall(beside) for name in NAME.findall(row[0])}}
    for room, modules in ROW.findall(rooms):
        found[room.strip("`")] = set(NAME.findall(modules))
    return found


def modules_of(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")}


ROOMS = sorted(path.parent for path in (ROOT / "rl4lm").glob("*/__init__.py"))


def test_every_room_is_on_the_map_and_no_other():
    assert set(described()) == {"", *(room.name for room in ROOMS)}


@pytest.mark.parametrize("room", [ROOT / "rl4lm", *ROOMS], ids=lambda room: room.name)
def test_the_map_has_every_module_of_a_room_and_nothing_that_is_not_there(room):
    named = described()["" if room.name == "rl4lm" else room.name]
    assert modules_of(room) - named == set()
    folders = {path.name for path in room.iterdir() if path.is_dir()}
    assert named - modules_of(room) - folders == set()
