"""Rewards for short answers in words.

    exact_match   it is one of the row's answers, but for capitals, articles and punctuation
    word_f1       how many words it has in common with the nearest of them

Source: the measures of SQuAD (arXiv:1606.05250). Unlike there, what changes the meaning of a number
stays: -3 is not 3, and 1.5 is not 15.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from rewards.adapters import Graded, per_sample

MAX_CHARACTERS = 100_000

_WORD = re.compile(
    r"(?<![^\W_])[-\u2212]?[0-9]+(?:[.,:/][0-9]+)*%?|[^\W_]+(?:['’][^\W_]+)*[+#]{0,2}"
)
_ARTICLES = ("a", "an", "the")


@per_sample
def exact_match(completion: str, answer: str | Sequence[str] | None) -> Graded:
    """1.0 if the completion has the words of one of the answers and no others, else 0.0.

    `answer` is a text or several, any of which is right; where it is `None` the reward does not
    apply (`None`). Capitals, articles, punctuation and the way of writing characters (Unicode NFKC)
    do not count; the order of the words does.

    Gamed by nothing but the answer: there is no partial credit, and no room for a second guess.

    Raises:
        ValueError: if an answer has no words.
    """
    if answer is None:
        return Graded(None, "answer is None: does not apply")
    said = words(completion)
    right = said in _references(answer)
    return Graded(float(right), f"read {' '.join(said)!r:.60}")


@per_sample
def word_f1(completion: str, answer: str | Sequence[str] | None) -> Graded:
    """The F1 of words that the completion shares with the nearest answer; 0.0 to 1.0.

        F1 = 2 · shared / (words of the completion + words of the answer)

    Words are counted as often as they are written, in any order. `answer` is as for `exact_match`.

    Gamed by the words of an answer without its sense (`not Paris` earns 2/3 where `Paris` is
    right), and by usual words. It is a dense signal to begin with; measure with `exact_match`.

    Raises:
        ValueError: if an answer has no words.
    """
    if answer is None:
        return Graded(None, "answer is None: does not apply")
    said = words(completion)
    best = max(_f1(said, reference) for reference in _references(answer))
    return Graded(best, f"F1 {best:.2f}")


def words(text: str) -> list[str]:
    """The words and numbers of a text, in small letters and without articles.

    Of a text longer than `MAX_CHARACTERS` nothing is read, so that it equals no answer.
    """
    if len(text) > MAX_CHARACTERS:
        return []
    plain = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")
    return [word for word in _WORD.findall(plain) if word not in _ARTICLES]


def _references(answer: str | Sequence[str]) -> list[list[str]]:
    texts = [answer] if isinstance(answer, str) else list(answer)
    references = [words(text) for text in texts]
    if not references or not all(references):
        raise ValueError(
            f"answer {answer!r:.80} has no words; expected a text or a list of texts such as "
            "'Paris'. Correct the row, or set its answer to None to skip it"
        )
    return references


def _f1(said: list[str], reference: list[str]) -> float:
    shared = sum((Counter(said) & Counter(reference)).values())
    return 2 * shared / (len(said) + len(reference))
