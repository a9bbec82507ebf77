r"""The program in a completion.

A completion holds a program in one of these forms:

- **Fenced**: ```` ```python ````, ```` ```py ```` or a bare ```` ``` ````, also with `~~~`. Of
  several blocks the last one that compiles and defines the function is taken, so a block with an
  example of its use after it does no harm. Blocks marked with another language count only where
  there are no others. A fence that is never closed (a completion that was cut off) reaches to the
  end. Code before a first, bare fence is a block too: a completion may begin inside a fence that
  the prompt has opened.
- **Going on with the prompt**: where the prompt is code that begins the function, the completion
  follows it as it stands, whether it is the body only or also what comes after the function. Text
  after the body is kept: if it does not compile, neither does the program. Stop strings such as
  `"\ndef "` are the remedy.
- **Whole**: otherwise the completion is the program. If the prompt is code, the program has its
  imports and helpers before it.

A body in fences is put after the prompt, and indented if it is not.

Nothing is parsed here: that would let a completion crash the trainer (CPython's parser and compiler
overflow the stack on some texts). Instead `readings` lists what the completion may mean, best
first, and the confined process takes the first that compiles and defines the function.
"""

from __future__ import annotations

import ast
import functools
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MAX_BLOCKS = 8  # fenced blocks that are looked at, from the last one

# No two parts of this can share a character: it is run on anything, and must take linear time.
_FENCE = re.compile(r"^[ \t]{0,3}(```+(?!`)|~~~+(?!~))([^\n`]*)$", re.MULTILINE)
_PYTHON = ("", "python", "py", "python3", "python2", "pycon")
_RETURNS = re.compile(r"^[ \t]*(?:return|yield)\b", re.MULTILINE)


@dataclass(frozen=True)
class Reading:
    """A program that a completion may mean, and the part of it that must define the function."""

    program: str
    part: str


@dataclass(frozen=True)
class Opening:
    """A prompt that is code and begins the function."""

    text: str  # as it is; a completion goes on from here
    complete: str  # with a body, so that it compiles by itself


def readings(completion: str, opening: Opening | None = None) -> tuple[Reading, ...]:
    """What a completion may mean, best first; the last one stands where none fits."""
    found = list(_blocks(completion))[-MAX_BLOCKS:]
    if found:
        candidates = [*_of_blocks(found[::-1], opening), _fallback(found[-1], opening)]
    elif opening is None:
        candidates = [Reading(completion, completion)]
    else:
        going_on = opening.text + completion
        candidates = [
            Reading(going_on, going_on),
            Reading(_joined(opening.complete, completion), completion),
            Reading(completion, completion),
            Reading(going_on, going_on),
        ]
    return tuple(candidates)


@functools.lru_cache(maxsize=1 << 12)
def opening_of(prompt: str, entry: str) -> Opening | None:
    """The code in a prompt that begins the function `entry`; None if there is none.

    The code is the whole prompt, or the last fenced block of it that has a `def` of the function.
    Prompts come from a data set and are parsed here.
    """
    for text in (prompt, *reversed(list(_blocks(prompt)))):
        for complete in (text, text.rstrip() + "\n    pass\n"):
            if _begins(complete, entry):
                return Opening(text, complete)
    return None


def _begins(code: str, entry: str) -> bool:
    try:
        statements = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return any(isinstance(item, functions) and item.name == entry for item in statements)


def _of_blocks(blocks: Sequence[str], opening: Opening | None) -> Iterator[Reading]:
    """Readings of the blocks, the last block first: whole functions before mere bodies."""
    for block in blocks:
        indented = block.lstrip("\n")[:1] in (" ", "\t")
        whole = textwrap.dedent(block) if indented else block  # indented: perhaps inside a list
        if opening is not None:
            yield Reading(_joined(opening.complete, whole), whole)
        yield Reading(whole, whole)
        if opening is not None and indented:
            program = _joined(opening.text.rstrip("\n"), block)
            yield Reading(program, program)
    for block in blocks:
        if opening is not None and _RETURNS.search(block):
            program = _joined(opening.text.rstrip("\n"), textwrap.indent(block, "    "))
            yield Reading(program, program)


def _fallback(block: str, opening: Opening | None) -> Reading:
    program = block if opening is None else _joined(opening.complete, block)
    return Reading(program, block)


def _joined(before: str, after: str) -> str:
    return f"{before}\n{after}"


def _blocks(text: str) -> Iterator[str]:
    """The fenced blocks of Python; of all languages if there are none of Python."""
    blocks = list(_all_blocks(text))
    python = [code for language, code in blocks if language.lower() in _PYTHON]
    yield from python or [code for _, code in blocks]


def _all_blocks(text: str) -> Iterator[tuple[str, str]]:
    start, language, fence = 0, "", ""  # of the open block; at first the text before all fences
    is_open = False
    for mark in _FENCE.finditer(text):
        if is_open and mark[1][0] != fence[0]:
            continue  # ~~~ inside ``` is content
        code = text[start : mark.start()]
        # A mark with a language always opens; what stood open was never closed.
        info = mark[2].split(maxsplit=1)[:1]
        if is_open or (start == 0 and not info and code.strip()):
            yield language, code
        is_open = not is_open or bool(info)
        start, language, fence = mark.end() + 1, "".join(info), mark[1]
    if is_open:
        yield language, text[start:]
