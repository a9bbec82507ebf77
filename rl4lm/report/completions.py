"""The completions of a run as columns, as many as a page can hold.

A page that opens from disk holds its data itself. Columns instead of rows keep it small, and let
the browser filter a hundred thousand rows in a few milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rl4lm.builtin import is_builtin, model_path
from rl4lm.errors import ConfigError
from rl4lm.rules.findings import Row, number

_MOST_TOKENS = 8_000_000  # of all completions on a page: about 60 MB in the browser
_PER_NAT = 100  # log-probs are kept as whole hundredths


def read_completions(run: Path, config: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Completions of evenly spread steps, the first and the last among them, as columns.

    Args:
        run: the run directory.
        config: its options, which name the tokenizer where the run has saved none yet.
        most: completions; steps are taken whole.

    Returns:
        ``rows`` on the page, ``logged`` in the run as far as is known, ``columns`` and the
        ``vocabulary`` of the token ids that occur.
    """
    pages = sorted(run.glob("completions/step-*.jsonl"))
    columns = _Columns()
    for page in _chosen(pages, most):
        columns.add(_read(page))
    return {
        "rows": len(columns.step),
        "steps": len(set(columns.step)),
        "logged_steps": len(pages),
        "columns": columns.to_dict(),
        "vocabulary": _pieces(_tokenizer(run, config), columns.tokens),
    }


def _chosen(pages: Sequence[Path], most: int) -> list[Path]:
    """Pages with about `most` rows in all; the last page tells how long a page is."""
    if not pages or most < 1:
        return []
    last = _read(pages[-1])
    tokens = sum(len(row.get("completion_ids") or ()) for row in last)
    count = min(
        len(pages),
        max(1, most // max(1, len(last))),
        max(1, _MOST_TOKENS // max(1, tokens)),
    )
    if count == 1:
        return [pages[-1]]
    places = {round(k * (len(pages) - 1) / (count - 1)) for k in range(count)}
    return [pages[place] for place in sorted(places)]


def _read(page: Path) -> list[Row]:
    """The rows of a page, but for lines that are none, as the last one of a run that goes on."""
    try:
        text = page.read_text(encoding="utf-8", errors="replace")
    except OSError:  # the doctor names files that cannot be read
        return []
    return list(_rows(text))


def _rows(text: str) -> Iterator[Row]:
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


class _Columns:
    """Rows taken apart; texts that repeat are held once."""

    def __init__(self) -> None:
        self.step: list[int] = []
        self._prompts: dict[str, int] = {}
        self._prompt: list[int] = []
        self._key: list[str] = []
        self._sample: list[int] = []
        self._text: list[str] = []
        self._reward: list[float | None] = []
        self._parts: dict[str, list[float | None]] = {}
        self._advantage: list[float | None] = []
        self._logprob: list[float | None] = []
        self._truncated: list[int] = []
        self._detail: list[str] = []
        self._starts: list[int] = [0]
        self.tokens: list[int] = []
        self._hundredths: list[int] = []

    def add(self, rows: Sequence[Row]) -> None:
        """Add the rows of a step."""
        for row in rows:
            self._add(row)

    def _add(self, row: Row) -> None:
        before = len(self.step)
        self.step.append(int(number(row.get("step")) or 0))
        prompt = _as_text(row.get("prompt"))
        self._prompt.append(self._prompts.setdefault(prompt, len(self._prompts)))
        self._key.append(str(row.get("prompt_id")))
        self._sample.append(int(number(row.get("sample")) or 0))
        self._text.append(_as_text(row.get("completion")))
        self._reward.append(number(row.get("reward")))
        self._advantage.append(_short(row.get("advantage")))
        self._logprob.append(_short(row.get("sampling_logprob")))
        self._truncated.append(int(bool(row.get("truncated"))))
        self._detail.append("\n".join(_reasons(row)))
        parts = row.get("rewards")
        for name, value in (parts if isinstance(parts, dict) else {}).items():
            if name not in self._parts:
                self._parts[name] = [None] * before
            self._parts[name].append(number(value))
        for column in self._parts.values():  # a function that this row does not have
            column += [None] * (before + 1 - len(column))
        self._add_tokens(row)

    def _add_tokens(self, row: Row) -> None:
        ids = row.get("completion_ids")
        logprobs = row.get("sampling_logprobs")
        if isinstance(ids, list) and isinstance(logprobs, list) and len(ids) == len(logprobs):
            self.tokens += [int(token) for token in ids]
            self._hundredths += [round(_PER_NAT * (number(p) or 0.0)) for p in logprobs]
        self._starts.append(len(self.tokens))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists under the names that the page's script reads."""
        return {
            "step": self.step,
            "prompts": list(self._prompts),
            "prompt": self._prompt,
            "key": self._key,
            "sample": self._sample,
            "text": self._text,
            "reward": self._reward,
            "parts": self._parts,
            "advantage": self._advantage,
            "logprob": self._logprob,
            "truncated": self._truncated,
            "detail": self._detail,
            "starts": self._starts,
            "tokens": self.tokens,
            "hundredths": self._hundredths,
        }


def _reasons(row: Row) -> list[str]:
    """Why a row scored as it did: one text, or one of each function under its name."""
    named = [f"{name}: {row[name]}" for name in row if name.endswith("/detail")]
    return [*([str(row["detail"])] if row.get("detail") is not None else []), *named]


def _as_text(value: Any) -> str:
    """A prompt or completion as one text; of chat messages, each with its role."""
    if isinstance(value, list):
        return "\n".join(
            f"{m.get('role')}: {m.get('content')}" for m in value if isinstance(m, dict)
        )
    return str(value)


def _short(value: Any) -> float | None:
    """A number with as many digits as a page shows."""
    found = number(value)
    return None if found is None else round(found, 4)


def _tokenizer(run: Path, config: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of a run, from its weights, a checkpoint, or the model that it began with."""
    name = str(config.get("model_name_or_path") or "")
    try:
        begun = model_path(name) if is_builtin(name) else Path(name)
    except ConfigError:
        begun = Path(name)
    folders = [run / "model", *sorted(run.glob("checkpoint-*"), reverse=True), begun]
    for file in (folder / "tokenizer.json" for folder in folders):
        if file.is_file():
            return Tokenizer.from_file(str(file))
    return None


def _pieces(tokenizer: Tokenizer | None, tokens: Sequence[int]) -> dict[str, str]:
    """The text of each token that occurs; ids are shown where there is none."""
    if tokenizer is None:
        return {}
    return {
        str(token): tokenizer.decode([token], skip_special_tokens=False)
        for token in sorted(set(tokens))
    }
