r"""Rewards for answers that are formulas, by symbolic equivalence. Needs the extra `math`.

    boxed_math   the formula in `\boxed{...}` is equivalent to the row's `answer`

`math-verify` reads the LaTeX and compares with `sympy`, which can take for ever (`9^{9^{9}}`). It
runs in a process beside, and a row that takes more than `SECONDS` there is a wrong answer.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from itertools import islice

from rewards.adapters import Graded, per_sample
from rewards.killable import Killable, Lost
from rewards.reading import marks, only_number

MAX_CHARACTERS = 500  # of a formula
SECONDS = 3.0  # of processor time for one comparison; ordinary ones take some hundredths
_MOST_BOXES = 20

_WORKER = Killable("rewards.formulas", SECONDS)


@per_sample
def boxed_math(completion: str, answer: str | float | None) -> Graded:
    r"""1.0 if the formula in the completion's `\boxed{...}` is equivalent to `answer`, else 0.0.

    `answer` is LaTeX, or a text with its result in `\boxed{}`, or a number; where it is `None` the
    reward does not apply (`None`). Where the completion has a `</think>`, what is behind the last
    one counts. A box must be there; several must hold the same text.

    Where `answer` is a number, the box must hold that number and nothing is computed for it: `2+1`
    is not 3. Otherwise formulas are equivalent as `math-verify` has it: `\frac{1}{\sqrt{2}}` and
    `\frac{\sqrt{2}}{2}` are.

    Gamed by handing the problem back where it is a formula to be transformed: `(x+1)^2` is
    equivalent to its expansion. Ten correct decimals pass for a root, `(1,2)` for `\{1,2\}`, and
    capitals do not count. What takes too long to compare is wrong, and counted. Source:
    `math-verify`, also behind TRL's `accuracy_reward`.

    Raises:
        ImportError: the extra `math` is not installed.
        ValueError: if `answer` cannot be read.
    """
    if answer is None:
        return Graded(None, "answer is None: does not apply")
    gold = (_only_box(str(answer)) or str(answer)).strip().rstrip(".")
    said = _only_box(completion.rpartition("</think>")[2])
    if said is None:
        return Graded(0.0, "no box, or several that differ")
    number = only_number(gold) if _is_plain(gold) else None
    note = f"read {said!r:.60}, expected {gold!r:.60}"
    if number is not None:
        return Graded(float(only_number(said) == number), note)
    try:
        return Graded(float(_equivalent(gold, said)), note)
    except Lost as lost:
        return Graded(0.0, f"{note}; {lost}", lost=lost.kind)


# The type of a function has no room for attributes.
boxed_math.counts_lost = True  # type: ignore[attr-defined]
boxed_math.seconds_per_sample = _WORKER.most_seconds  # type: ignore[attr-defined]


def _only_box(text: str) -> str | None:
    places = list(islice(marks(text, hashes=False), _MOST_BOXES + 1))
    boxed = {"".join(text[start:end].split()): text[start:end] for start, end in places}
    if len(boxed) != 1 or len(places) > _MOST_BOXES:
        return None
    found = next(iter(boxed.values())).strip().rstrip(".")
    return found if found and len(found) <= MAX_CHARACTERS else None


def _is_plain(formula: str) -> bool:
    """Whether there is nothing but a number: no name, bracket or sign that makes it more."""
    bare = formula.replace("\\$", "").replace("\\%", "").replace("{,}", ",").strip(" $%")
    for command in ("\\dfrac", "\\tfrac", "\\frac"):
        bare = bare.replace(command, "")
    return all(character in "0123456789.,/-{}\u2212 " for character in bare)


def _equivalent(gold: str, said: str) -> bool:
    if not _is_readable(gold):
        raise ValueError(
            f"answer {gold!r:.80} cannot be read as a formula; expected LaTeX such as "
            "'\\frac{1}{2}'. Correct the row, or set its answer to None to skip it"
        )
    return said == gold or bool(_WORKER.call("equivalent", gold, said))


@lru_cache(maxsize=4096)
def _is_readable(gold: str) -> bool:
    if find_spec("math_verify") is None:
        raise ImportError(
            "rewards.symbolic needs the library math-verify, which is not installed; "
            "install it by: pip install 'rl4lm[math]'"
        )
    try:
        return bool(_WORKER.call("readable", gold))
    except Lost:
        return False
