r"""Rewards for the form of a completion: tags, JSON, patterns, length, repetition.

By name:

    think_answer      <think>...</think><answer>...</answer> and nothing else
    fits_schema       one JSON value that fits the row's `schema`
    matches_pattern   the row's `pattern` matches the whole

What needs settings is made by a function, in a file of your own, and named by that file:

    from rewards.formats import overlong, repetition, tagged

    brief = overlong(most=512, margin=128)        # --reward_funcs path/to/file.py:brief

A form is cheap to learn and says nothing about the content: every one of these can be earned by an
answer without sense. Pay it beside a reward for the answer, and less than that. Nothing here is
searched for within a completion; a form is the form of the whole, since what may stand anywhere is
soon written everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.adapters import Graded, PerSampleReward, per_sample
from rewards.schemas import MAX_CHARACTERS, NotJson, checked_schema, fault, read_json

_FENCE = re.compile(r"\s*```(?:json|JSON)?[ \t]*\n(.*)\n[ \t]*```\s*", re.DOTALL)

_BLANK_LETTERS = "\u115f\u1160\u3164\uffa0"  # to Unicode these are letters; they print as nothing


def tagged(
    *names: str,
    then_text: bool = False,
    first_is_open: bool = False,
    least: Mapping[str, int] | None = None,
) -> PerSampleReward:
    """A reward: 1.0 if the completion is these sections, in this order, and nothing else.

    Each section is written `<name>...</name>`, stands once, and has at least one letter or digit in
    it. Between and around the sections there is only white space. Any other spelling of one of
    their tags (`<THINK>`, `</think >`, `<think id=1>`), anywhere, scores 0.0, as does a section
    within another. Source: the format reward of DeepSeek-R1 (arXiv:2501.12948), made strict.

    Gamed by sections that are there and say nothing; `least` asks for more of them.

    Args:
        names: of the sections; letters, digits, `_` and `-`.
        then_text: text that is no section must follow the last one, as in
            `<think>...</think> The answer is 4.`
        first_is_open: the prompt ends with the first opening tag (as some chat templates do), so
            the completion must begin behind it.
        least: how many letters and digits a section needs, by name; 1 where nothing is said.

    Raises:
        ValueError: no names, a name twice, a name that cannot be a tag, or `least` for no section.
    """
    _check_names(names, least or {})
    tags = [tag for name in names for tag in (f"<{name}>", f"</{name}>")]
    # Bounded repeats keep the search linear, whatever is written behind a "<".
    tag = re.compile(rf"<[\s/]{{0,8}}(?:{'|'.join(names)})(?![\w-])[^<>]{{0,200}}>", re.IGNORECASE)

    @per_sample
    def in_tags(completion: str) -> Graded:
        text = tags[0] + completion if first_is_open else completion
        found = list(tag.finditer(text))
        if [each[0] for each in found] != tags:
            seen = " ".join(each[0] for each in found[:8])
            return Graded(0.0, f"tags {seen or 'none'}, expected {' '.join(tags)}")
        outside, inside = _parted(text, found)
        after = outside.pop() if then_text else None
        if any(piece.strip() for piece in outside):
            return Graded(0.0, "text outside of the sections")
        return _all_filled(names, inside, after, least or {})

    return in_tags


@per_sample
def fits_schema(completion: str, schema: Any) -> Graded:
    """1.0 if the completion is one JSON value that fits the row's `schema`, else 0.0.

    Only white space may stand around the value, or one Markdown fence around all of it. What JSON
    is, `rewards.schemas` says; `schema` is an object or its JSON text (Arrow columns need the
    text). Where it is `None` the reward does not apply (`None`).

    Gamed by values that fit and say nothing: `""`, `[]`, `{}`, ten thousand names that nobody asked
    for. JSON Schema allows all that the schema does not forbid, so write `required`, `minLength`,
    `minItems`, `additionalProperties: false`.

    Raises:
        ValueError: if `schema` is no schema, or has words that are not checked.
    """
    if schema is None:
        return Graded(None, "schema is None: does not apply")
    wanted = checked_schema(schema)
    fenced = _FENCE.fullmatch(completion) if len(completion) <= MAX_CHARACTERS else None
    try:
        value = read_json(fenced[1] if fenced else completion)
    except NotJson as error:
        return Graded(0.0, str(error))
    found = fault(value, wanted)
    return Graded(float(found is None), found or "fits the schema")


@per_sample
def matches_pattern(completion: str, pattern: str | None) -> Graded:
    r"""1.0 if the row's regular expression matches the whole completion, else 0.0.

    White space around it does not count. `.` does not match line ends and `\d` matches the digits
    of every script, as in Python; write `(?s)` and `[0-9]`. Completions of more than
    `MAX_CHARACTERS` characters score 0.0. Where `pattern` is `None` the reward does not apply.

    Gamed by whatever the pattern lets through: `.*` lets through everything. A pattern such as
    `(a+)+b` may need longer than the world exists; the time limit of rewards (`reward_timeout_s`)
    ends it, and the completion scores 0.

    Raises:
        re.error: if `pattern` is no regular expression.
    """
    if pattern is None:
        return Graded(None, "pattern is None: does not apply")
    expression = re.compile(pattern)
    if len(completion) > MAX_CHARACTERS:
        return Graded(0.0, f"longer than {MAX_CHARACTERS} characters")
    found = expression.fullmatch(completion.strip())
    return Graded(float(found is not None), "matches" if found else "does not match")


def overlong(most: int, margin: int) -> PerSampleReward:
    """A penalty: 0.0 up to `most - margin` tokens, then down to -1.0 at `most`, -1.0 beyond.

        r(o) = -(|o| - (most - margin)) / margin     for most - margin < |o| <= most

    Source: DAPO (arXiv:2503.14476), equation 13. `|o|` counts the completion's tokens, the end
    token included. With `max_completion_length` as `most`, what is cut off pays all of it.

    Gamed by saying less; it never pays for more than 0, so a wrong short answer earns nothing.

    Args:
        most: tokens.
        margin: tokens; 0 is a plain limit.

    Raises:
        ValueError: unless 0 <= margin <= most.
    """
    if not 0 <= margin <= most:
        raise ValueError(f"margin {margin}, most {most}: expected 0 <= margin <= most")

    @per_sample
    def overlong_penalty(completion: str, completion_ids: Sequence[int]) -> float:
        excess = len(completion_ids) - (most - margin)
        if excess <= 0:
            return 0.0
        return -min(excess / margin, 1.0) if margin else -1.0

    return _with_minimum(overlong_penalty, -1.0)


def length_penalty(most: int, penalty: float = -1.0) -> PerSampleReward:
    """A penalty: `penalty · min(|o| / most, 1)`, where `|o|` counts the completion's tokens.

    Gamed by the empty answer, which is the best of all; so weigh it well below the reward for a
    right answer, or pay `overlong`, which leaves usual lengths alone.

    Args:
        most: tokens from which on the whole penalty is due; at least 1.
        penalty: at most 0.

    Raises:
        ValueError: `most` or `penalty` is out of its range.
    """
    if most < 1 or penalty > 0:
        raise ValueError(f"most {most}, penalty {penalty}: expected most >= 1, penalty <= 0")

    @per_sample
    def long_penalty(completion: str, completion_ids: Sequence[int]) -> float:
        return penalty * min(len(completion_ids) / most, 1.0)

    return _with_minimum(long_penalty, penalty)


def repetition(size: int = 3, penalty: float = -1.0) -> PerSampleReward:
    """A penalty for saying the same again: `penalty · (1 - distinct n-grams / n-grams)`.

    Counted over token ids, so it holds for every language. 0.0 where nothing repeats or the
    completion has fewer than `size` tokens. Source: arXiv:2502.03373, appendix C.2.

    Gamed by small changes in what is repeated (other spaces, other capitals are other tokens); so
    it keeps honest texts from degenerating, and does not find those that dodge it.

    Args:
        size: n, in tokens; at least 1.
        penalty: at most 0.

    Raises:
        ValueError: `size` or `penalty` is out of its range.
    """
    if size < 1 or penalty > 0:
        raise ValueError(f"size {size}, penalty {penalty}: expected size >= 1, penalty <= 0")

    @per_sample
    def repetition_penalty(completion: str, completion_ids: Sequence[int]) -> float:
        ids = list(completion_ids)
        grams = list(zip(*(ids[start:] for start in range(size)), strict=False))
        return penalty * (1 - len(set(grams)) / len(grams)) if len(set(grams)) < len(grams) else 0.0

    return _with_minimum(repetition_penalty, penalty)


def _check_names(names: Sequence[str], least: Mapping[str, int]) -> None:
    usable = names and all(re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII) for name in names)
    if not usable or len({name.lower() for name in names}) < len(names):
        raise ValueError(f"tags {names!r}: expected distinct names such as 'think', 'answer'")
    unknown = [name for name in least if name not in names]
    if unknown:
        raise ValueError(f"least names {unknown[0]!r}, which is no section; sections: {names!r}")


def _parted(text: str, tags: Sequence[re.Match[str]]) -> tuple[list[str], list[str]]:
    """The pieces of a text between its tags: before, between and behind sections; in them."""
    ends = [0, *(each.end() for each in tags)]
    starts = [*(each.start() for each in tags), len(text)]
    pieces = [text[end:start] for end, start in zip(ends, starts, strict=True)]
    return pieces[::2], pieces[1::2]


def _all_filled(
    names: Sequence[str], sections: Sequence[str], after: str | None, least: Mapping[str, int]
) -> Graded:
    for name, section in zip(names, sections, strict=True):
        told = _told(section)
        if told < least.get(name, 1):
            wanted = least.get(name, 1)
            return Graded(0.0, f"{name} has {told} letters and digits, expected {wanted}")
    if after is not None and not _told(after):
        return Graded(0.0, "no text after the sections")
    return Graded(1.0, "the sections as expected")


def _told(text: str) -> int:
    """Letters and digits: dots, dashes and characters that nobody sees say nothing."""
    return sum(each.isalnum() and each not in _BLANK_LETTERS for each in text)


def _with_minimum(reward: PerSampleReward, minimum: float) -> PerSampleReward:
    # What a completion scores that hangs: no less than the worst that the reward gives. The type of
    # a function has no room for attributes.
    reward.minimum = minimum  # type: ignore[attr-defined]
    return reward


think_answer = tagged("think", "answer")
