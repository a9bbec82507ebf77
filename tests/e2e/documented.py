"""What the documentation tells people to type, and the files that it tells them to write."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "recipes/README.md",
    *sorted(
        path.relative_to(ROOT).as_posix()
        for path in ROOT.glob("docs/**/*.md")
        if path.name != "LOG.md"
    ),
]
PROGRAMS = (
    "make|python|accelerate|torchrun|pip|vllm|tensorboard|srun|bash|source|export|hf|docker|pytest"
)
LINE = re.compile(rf"(?:\$ )?((?:\.venv/bin/)?rl4lm(?: +[a-z#-].*)?|(?:{PROGRAMS}) .*|[A-Z]+=.*)$")
SPAN = re.compile(rf"(?:rl4lm|{PROGRAMS}) \S")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IN_PROSE = re.compile(r"^ {4}(?P<line>\S.*)$|`(?P<span>[^`]+)`", re.MULTILINE)
COMMENT = re.compile(r"\s+#\s.*$")
FILE = re.compile(r"# (\w+\.py)\n")


@dataclass(frozen=True)
class Shown:
    """Something that a page shows: a command, or a block of Python."""

    kind: str  # "command", or "python"
    text: str

    @property
    def words(self) -> list[str]:
        """Of a command."""
        return shlex.split(self.text)

    @property
    def file(self) -> str | None:
        """The name that a block begins with, where it is a file to write."""
        named = FILE.match(self.text)
        return named[1] if named else None


def text_of(page: str) -> str:
    """A page, with lines that go on after a backslash put together."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.sub(r" *\\\n\s*", " ", text)


@cache
def shown(page: str) -> list[Shown]:
    """All that a page shows, from top to bottom."""
    text, found, end = text_of(page), [], 0
    for block in FENCED.finditer(text):
        found += _in_prose(text[end : block.start()])
        found += _in_block(block[1], block[2])
        end = block.end()
    return [*found, *_in_prose(text[end:])]


def commands(page: str) -> list[Shown]:
    """The commands of a page: lines of code, be they indented or fenced, and those in sentences."""
    return [each for each in shown(page) if each.kind == "command"]


def blocks(page: str) -> list[str]:
    """The blocks of Python of a page."""
    return [each.text for each in shown(page) if each.kind == "python"]


def _in_block(language: str, code: str) -> Iterator[Shown]:
    if language == "python":
        yield Shown("python", code)
    elif language in ("", "text", "bash"):
        yield from filter(None, map(_command, code.splitlines()))


def _in_prose(text: str) -> Iterator[Shown]:
    for code in IN_PROSE.finditer(text):
        if code["line"]:
            command = _command(code["line"])
        else:
            span = " ".join(code["span"].split())
            # `rl4lm eval` is the name of a verb, `rl4lm eval --by level` a command.
            whole = SPAN.match(span) and (span.count(" ") > 1 or "/" in span)
            command = _command(span) if whole else None
        if command is not None:
            yield command


def _command(line: str) -> Shown | None:
    typed = LINE.match(COMMENT.sub("", line))
    return Shown("command", typed[1].removeprefix(".venv/bin/")) if typed else None


def write_files(page: str, folder: Path) -> None:
    """Write the files that a page shows: blocks that begin with their name."""
    for each in shown(page):
        if each.kind == "python" and each.file:
            (folder / each.file).write_text(each.text, encoding="utf-8")


def results(code: str, namespace: dict) -> Iterator[tuple]:
    """Run a block; for every line `expression  # value` what it gave, and what is written."""
    for node in ast.parse(code).body:
        source = ast.unparse(node)
        told = code.splitlines()[node.end_lineno - 1].partition("  # ")[2]
        if isinstance(node, ast.Expr) and told:
            yield eval(source, namespace), ast.literal_eval(told)
        else:
            exec(source, namespace)
