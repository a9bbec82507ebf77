"""What the site takes from the code: tables of options, and the check that nothing is undocumented.

mkdocs calls the two `on_` functions. Everything else is read from the source or from the options'
own declarations, so that the pages cannot say anything else than the program does.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rl4lm.config import OPTIONS
from rl4lm.settings.refusals import NOT_OFFERED
from rl4lm.settings.schema import Option

ROOT = Path(__file__).parents[1]
PACKAGES = ("rl4lm", "rewards")
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def on_pre_build(config: Any) -> None:
    """End the build where something public has no docstring."""
    missing = list(undocumented())
    if missing:
        raise SystemExit("without a docstring:\n  " + "\n  ".join(missing))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables where a page asks for them, as in ``<!-- table: options -->``."""
    for name, table in TABLES.items():
        mark = f"<!-- table: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, table())
    return markdown


def undocumented() -> Iterator[str]:
    """Public modules, classes, functions and methods without a docstring, as ``file: name``."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            where = path.relative_to(ROOT).as_posix()
            yield from (f"{where}: {name}" for name in lacking(tree))


def lacking(tree: ast.Module) -> Iterator[str]:
    """Names in one module that are public and have no docstring; "module" for the module's own."""
    if ast.get_docstring(tree) is None:
        yield "module"
    yield from _lacking_in(tree, "")


def _lacking_in(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    for node in parent.body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None and not _has_it_elsewhere(node):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _lacking_in(node, f"{prefix}{node.name}.")


def _has_it_elsewhere(node: Definition) -> bool:
    """Whether it is a further signature, or the setter of a property."""
    return any(ast.unparse(each).endswith(("overload", ".setter")) for each in node.decorator_list)


def options_table() -> str:
    """Every option by theme: name, meaning, what may be given, default."""
    parts = []
    for theme in dict.fromkeys(option.theme for option in OPTIONS.values()):
        rows = [_row(each) for each in OPTIONS.values() if each.theme == theme]
        head = "| option | meaning | given | default |\n|---|---|---|---|"
        parts.append("\n".join([f"## {theme.capitalize()}\n", head, *rows]))
    return "\n\n".join(parts)


def _row(option: Option) -> str:
    values = option.default if isinstance(option.default, list) else [option.default]
    shown = " ".join(map(str, values))
    default = f"`{shown}`" if shown and option.default is not None else "none"
    cells = (f"`{option.name}`", option.help, option.expected, default)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def refusals_table() -> str:
    """Every option of other toolkits that is not taken, with its reason."""
    rows = [f"| `{name}` | {NOT_OFFERED[name]} |" for name in sorted(NOT_OFFERED)]
    return "\n".join(["| option | not taken, because |", "|---|---|", *rows])


TABLES = {"options": options_table, "refusals": refusals_table}
