"""What the documentation tells people to type, and the files that it tells them to write."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "recipes/README.md",
    *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md") if path.name != "LOG.md"),
]
PROGRAM = r"(?:\.venv/bin/)?(?:rl4lm [a-z]|make [a-z]|python |accelerate launch|torchrun |pip )"
COMMAND = re.compile(rf"^(?:\$ )?({PROGRAM}.*)$")
FENCE = re.compile(r"^```(\w*)$")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.py)\n")


def text_of(page):
    """A page, with lines that go on after a backslash put together."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.sub(r" *\\\n\s*", " ", text)


def commands(page):
    """Every command of a page as words: lines of code, be they indented or fenced."""
    language = None  # of the fenced block around the line
    found = []
    for line in text_of(page).splitlines():
        if fence := FENCE.match(line):
            language = (fence[1] or "text") if language is None else None
            continue
        code = line if language in ("text", "bash") else line[4:] if line[:4] == " " * 4 else ""
        if language != "python" and (command := COMMAND.match(code)):
            words = shlex.split(command[1].removeprefix(".venv/bin/"), comments=True)
            found.append(words)
    return found


def mentioned(page):
    """Commands of rl4lm with options that stand within a sentence, as words."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`(rl4lm [^`]*--[^`]*)`", text)]
    return [span.split() for span in spans]


def blocks(page):
    """The blocks of Python of a page."""
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def write_files(page, folder):
    """Write the files that a page shows: blocks that begin with their name."""
    for block in blocks(page):
        if name := FILE.match(block):
            (folder / name[1]).write_text(block, encoding="utf-8")


def results(code, namespace):
    """Run a block; for every line `expression  # value` what it gave, and what is written."""
    for node in ast.parse(code).body:
        source = ast.unparse(node)
        told = code.splitlines()[node.end_lineno - 1].partition("  # ")[2]
        if isinstance(node, ast.Expr) and told:
            yield eval(source, namespace), ast.literal_eval(told)
        else:
            exec(source, namespace)
