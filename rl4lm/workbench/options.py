"""The options of ``rl4lm score`` that are none of training. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

_ADVERSARIAL_ROWS = 20


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} given, expected a whole number >= 1")
    return int(text)


# Name -> what argparse is told.
OWN: Mapping[str, Mapping[str, Any]] = {
    "reward": {
        "nargs": "+",
        "action": "extend",
        "metavar": "NAME",
        "help": "package.module:function or path/to/file.py:function; several are added up",
    },
    "weights": {
        "nargs": "+",
        "type": float,
        "metavar": "X",
        "help": "one for each reward [default 1 each]",
    },
    "data": {
        "help": "rows with prompt, completion and columns: a jsonl, json, csv or parquet file, "
        "or any data set of training",
    },
    "split": {"default": "train", "help": "of a data set that is no file [default train]"},
    "samples": {"type": _count, "metavar": "N", "help": "the first N rows only [default all]"},
    "out": {"help": "where the rows go with `reward` and `detail` added"},
    "json": {"action": "store_true", "help": "print what was found as JSON"},
    "quiet": {"action": "store_true", "help": "show what was found without the scored rows"},
    "threshold": {
        "type": float,
        "default": 0.5,
        "metavar": "X",
        "help": "a reward of X or more says that a completion is right [default 0.5]",
    },
    "label": {
        "default": "label",
        "metavar": "COLUMN",
        "help": "says whether a completion is right: true or false, 1 or 0 [default label]",
    },
    "adversarial": {
        "type": _count,
        "nargs": "?",
        "const": _ADVERSARIAL_ROWS,
        "metavar": "N",
        "help": "try texts made to earn reward, for the first N rows [default off; "
        f"N {_ADVERSARIAL_ROWS}]",
    },
    "answer_column": {
        "metavar": "COLUMN",
        "help": "holds the right answer, for --adversarial [default one of the usual names]",
    },
    "tokenizer": {
        "metavar": "NAME",
        "help": "makes completion_ids of texts, for rewards that read them: a folder, hub id, "
        "or builtin:NAME",
    },
}
