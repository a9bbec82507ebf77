r"""The programming task `builtin:code`: little functions to write, made by rule, split by a hash.

A prompt is a comment and a signature, `# larger of a and b\ndef f(a, b):\n`; what completes it is
the body of the function, judged by running it: a row's `tests` are what
`rewards.programs:unit_tests` reads, as JSON. Five families take turns, so that any five rows in
line hold one of each; the kinds of a family (`rl4lm.builtin.code_kinds`) take turns as well.

Whether a task is held out depends on nothing but its kind, the names of its parameters and its
constants: a salted sha256 of these puts about a fifth into the test split, with every comment and
every function name that goes with them. Seeds order the rows and never move a task across.
Standard library and numpy only.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rl4lm.builtin.code_kinds import FAMILIES, Kind

Split = Literal["train", "test"]

DEFAULT_ROWS: dict[str, int] = {"train": 10_000, "test": 1_000}
"""Rows asked for by default."""

_SALT = "rl4lm:builtin:code:1"
_HELD_OUT_SHARE = 0.2
_FUNCTIONS = ("f", "g", "h", "fn", "go", "get", "run", "solve")
# Without i and t, which bodies use for themselves.
_LETTERS = tuple("abcdekmnpqrsuvwxyz")
_NAMES = {
    "number": _LETTERS,
    "count": _LETTERS,
    "list": (*_LETTERS, "ns", "vs", "xs", "ys", "zs"),
    "filled": (*_LETTERS, "ns", "vs", "xs", "ys", "zs"),
    "text": (*_LETTERS, "s1", "s2", "st", "tx", "w1"),
}
_DIGITS = tuple(range(2, 10))
_QUOTED = tuple("abdelnorst")
_PAIRS = ((0, 0), (1, 2), (2, 1), (5, 5), (-3, 4), (4, -3), (-6, -2), (0, 7), (7, 0))


@dataclass(frozen=True)
class CodeTask:
    """One function to write."""

    family: str
    kind: str
    comment: str
    function: str
    names: tuple[str, ...]  # of the parameters
    constants: dict[str, Any]  # by the letter that stands for them in the comments: k, p, q

    @property
    def prompt(self) -> str:
        """The comment and the signature."""
        return f"# {self.filled(self.comment)}\ndef {self.function}({', '.join(self.names)}):\n"

    @property
    def key(self) -> str:
        """What decides about the split: the same for all comments and names of the function."""
        return "|".join(map(str, (self.kind, *self.names, *self.constants.values())))

    def filled(self, template: str) -> str:
        """A comment, or a body, with names and constants in their places."""
        return template.format(**dict(zip("ab", self.names, strict=False)), **self.constants)

    def tests(self) -> str:
        """What `rewards.programs:unit_tests` is to check, as JSON."""
        kind = FAMILIES[self.family][self.kind]
        # Solved from JSON, so that a function that changes its argument changes nothing here.
        inputs = json.dumps(list(_inputs(kind, self.constants, random.Random(self.key))))
        tests = [
            {"args": args, "expected": kind.solve(*solved, *self.constants.values())}
            for args, solved in zip(json.loads(inputs), json.loads(inputs), strict=True)
        ]
        task = {"kind": "call", "entry": self.function, "compare": "exact", "tests": tests}
        return json.dumps(task)


def is_held_out(task: CodeTask) -> bool:
    """Whether a task belongs to the test split: fixed, whatever the seed or the size."""
    digest = hashlib.sha256(f"{_SALT}|{task.key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < _HELD_OUT_SHARE * 2**64


def code_tasks(split: Split, size: int | None = None, seed: int = 0) -> list[CodeTask]:
    """The tasks of a split; `code_rows` says the rest."""
    if split not in DEFAULT_ROWS:
        raise ValueError(f"split is {split!r}; builtin:code has 'train' and 'test'")
    size = DEFAULT_ROWS[split] if size is None else size
    if size < 0 or seed < 0:
        raise ValueError(f"size is {size} and seed is {seed}; both must be at least 0")
    streams = [_by_turns(_kind_streams(family, split, seed)) for family in FAMILIES]
    return list(itertools.islice(itertools.chain.from_iterable(zip(*streams, strict=False)), size))


def code_rows(split: Split, size: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """The rows of a split: `{"prompt": ..., "tests": JSON, "family": ...}`.

    Args:
        split: "train" or "test"; no task is in both, under whatever comment or function name.
        size: the most rows wanted; None for the default. No row is repeated.
        seed: orders the rows, and picks those that a size leaves room for; at least 0.

    Returns:
        Rows whose families take turns, in an order that the arguments fix.

    Raises:
        ValueError: for another split, or a size or a seed below zero.
    """
    tasks = code_tasks(split, size, seed)
    return [{"prompt": t.prompt, "tests": t.tests(), "family": t.family} for t in tasks]


def _by_turns(streams: Sequence[Iterator[CodeTask]]) -> Iterator[CodeTask]:
    """One of each stream, again and again; a stream that has run out is passed over."""
    for row in itertools.zip_longest(*streams):
        yield from (task for task in row if task is not None)


def _kind_streams(family: str, split: Split, seed: int) -> list[Iterator[CodeTask]]:
    return [
        (t for t in _all_tasks(family, name, seed) if is_held_out(t) == (split == "test"))
        for name in FAMILIES[family]
    ]


def _all_tasks(family: str, name: str, seed: int) -> Iterator[CodeTask]:
    """Every task of a kind once, in a random order."""
    kind = FAMILIES[family][name]
    types = kind.parameters.split()
    comments = kind.comments.split("; ")
    names = list(itertools.permutations(_NAMES[types[0]], len(types)))
    constants = list(_constants(kind))
    shape = (len(comments), len(_FUNCTIONS), len(names), len(constants))
    # Philox is counter-based: the kinds draw from streams of their own under one seed.
    place = [*itertools.chain.from_iterable(FAMILIES.values())].index(name)
    rng = np.random.Generator(np.random.Philox(key=[seed, place]))
    for index in rng.permutation(int(np.prod(shape))):
        c, f, n, k = np.unravel_index(index, shape)
        yield CodeTask(family, name, comments[c], _FUNCTIONS[f], names[n], constants[k])


def _constants(kind: Kind) -> Iterator[dict[str, Any]]:
    """All that the constants of a kind may be together; two letters are never the same."""
    letters = [letter for letter in "pq" if f"{{{letter}}}" in kind.comments]
    for digit in [{"k": k} for k in _DIGITS] if "{k}" in kind.comments else [{}]:
        for chosen in itertools.permutations(_QUOTED, len(letters)):
            yield {**digit, **dict(zip(letters, chosen, strict=True))}


def _inputs(kind: Kind, constants: dict[str, Any], rng: random.Random) -> list[list[Any]]:
    """The arguments of eight calls or more."""
    types = kind.parameters.split()
    if len(types) == 2:
        return [*map(list, _PAIRS), *([rng.randint(-99, 99), rng.randint(-99, 99)] for _ in "123")]
    return [[value] for value in _values(types[0], constants, rng)]


def _values(type_: str, constants: dict[str, Any], rng: random.Random) -> list[Any]:
    """Edges, values about the constants, and some at random."""
    k = constants.get("k", 4)
    if type_ == "number":
        near = [k - 1, k, k + 1, 2 * k, -k - 1]
        return [0, 1, -1, 2, *near, rng.randint(20, 99), -rng.randint(20, 99)]
    if type_ == "count":
        return [0, 1, 2, 3, 4, 7, 10, rng.randint(12, 30)]
    if type_ == "text":
        p, q = constants.get("p", "u"), constants.get("q", "a")
        word = "".join(rng.choices(_QUOTED, k=9))
        marked = [
            q,
            f"{q}and{p}",
            f"{p}x{q}",
            f"{q}x{p}{q}",
            f"{p}y{q}{p}",
            f"{word[:4]} {q}{q} Ab",
        ]
        return ["Hello World", " two  words ", "level", word, *marked, ""]
    near = [[k], [k, 2, k, k - 1, 1], [k + 1, k + 2], [0, -k, 2 * k, 10]]
    drawn = [[rng.randint(-9, 20) for _ in range(length)] for length in (6, 11, 13)]
    return [[3, 1, 2], [-1, -4, -2], *near, *drawn, *([] if type_ == "filled" else [[]])]
