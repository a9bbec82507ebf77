"""Score completions while others are still being sampled.

A per-sample reward (`rewards.per_sample`) says of a completion what it would say in any company. So
it is asked about a completion as soon as that has finished, on one thread beside the one that
samples. All other rewards see the whole list, once, when the thread is through: no reward ever runs
beside another one.

What comes out is what `Scorer` gives for everything at once, errors included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rl4lm.errors import RewardError, RewardFailedError
from rl4lm.processes.background import Background
from rl4lm.rewarding.calls import Answer, Batch, RewardContext, merged
from rl4lm.rewarding.performing import is_async
from rl4lm.scoring import Scorer
from rl4lm.types import Completion, Example, Scores

# What a thread costs is some 10 ms a step: rewards that take less than this in all gain nothing.
_WORTH_S = 0.1
_PATIENCE_S = 5.0  # for a reward in the middle of its work, when sampling has failed

_Failure = RewardError | RewardFailedError


class _Finished(NamedTuple):
    """A completion that has ended."""

    row: int
    text: Completion
    ids: Sequence[int]


class EarlyScores:
    """The scores of one step, open while it samples; a context manager.

    On the way out of the ``with`` block, rows that wait are dropped. A call in hand is waited for,
    except after an interrupt: a reward that hangs must not keep a run from stopping.
    """

    def __init__(
        self,
        scorer: Scorer,
        examples: Sequence[Example],
        num_generations: int,
        decode: Callable[[Sequence[Sequence[int]]], list[str]],
        context: RewardContext,
    ) -> None:
        """Open the scores of B = P·G completions; no thread runs until one is offered.

        Args:
            scorer: the rewards.
            examples: P of them.
            num_generations: G, the completions of an example, side by side.
            decode: gives the text of each list of ids; called by the thread that calls this object.
            context: for rewards that ask where training stands.
        """
        self._scorer = scorer
        self._examples = examples
        self._rows = [example for example in examples for _ in range(num_generations)]
        self._decode = decode
        self._context = context
        self._parts: dict[int, list[tuple[Sequence[int], Answer]]] = {
            place: [] for place, r in enumerate(scorer.rewards) if _asked_early(r.function)
        }  # place of a per-sample reward -> rows, and its answer about them
        self._texts: dict[int, str] = {}  # of what was offered, by row
        self._thread = Background(self._ask)

    def __enter__(self) -> EarlyScores:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        if interrupted:
            self._scorer.close()  # a process that is being asked would keep the next one waiting
        self._thread.close(0.0 if interrupted else _PATIENCE_S)

    @property
    def listener(self) -> Callable[[list[int], list[list[int]]], None] | None:
        """`offer`; None where it is not worth while, so that nothing is paid for it.

        It is where the per-sample rewards would take 0.1 s for these completions, going by what a
        completion took them when `scorer` last called them for itself: in the first step at least.
        """
        per_completion = sum(self._scorer.seconds[place] for place in self._parts)
        worth = self._parts and per_completion * len(self._rows) >= _WORTH_S
        return self.offer if worth else None

    def offer(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        """Hand over completions that have finished, each once; returns at once.

        Args:
            rows: places among the B completions.
            ids: of each of these completions.
        """
        texts = self._decode(ids)
        self._texts.update(zip(rows, texts, strict=True))
        self._thread.hand_over(list(map(_Finished, rows, texts, ids)))

    def finish(self, completion_ids: Sequence[Sequence[int]]) -> tuple[list[str], Scores]:
        """Score what has not been scored yet.

        Args:
            completion_ids: of all B completions.

        Returns:
            The texts of the completions, and their scores.

        Raises:
            RewardError, RewardFailedError: what `Scorer` raises for all completions at once.
        """
        texts = self._all_texts(completion_ids)
        known, failure = self._known(self._batch(texts, completion_ids))
        # After a failure nothing is known and all is asked again, in order: rows then bear their
        # own numbers in the message, and the first one that fails is the one that is named.
        scores = self._scorer(self._examples, texts, completion_ids, self._context, known)
        if failure is not None:
            raise _only_beside(failure) from failure
        return texts, scores

    def _batch(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> Batch:
        return Batch(self._rows, texts, ids, self._context, range(len(texts)))

    def _all_texts(self, completion_ids: Sequence[Sequence[int]]) -> list[str]:
        rest = [row for row in range(len(completion_ids)) if row not in self._texts]
        if rest:
            texts = self._decode([completion_ids[row] for row in rest])
            self._texts.update(zip(rest, texts, strict=True))
        return [self._texts[row] for row in range(len(completion_ids))]

    def _known(self, batch: Batch) -> tuple[Mapping[int, Answer], _Failure | None]:
        """By place, what the per-sample rewards say of all rows, or the error that one met."""
        try:
            self._thread.wait()
            self._ask_about_the_rest(batch)
        except (RewardError, RewardFailedError) as failure:
            return {}, failure
        whole = {k: merged(parts, len(self._rows)) for k, parts in self._parts.items() if parts}
        # One that logs a number for the step has looked at more than one completion after all.
        return {k: answer for k, answer in whole.items() if not answer.metrics}, None

    def _ask_about_the_rest(self, batch: Batch) -> None:
        """Ask the per-sample rewards about what was never offered, unless that is everything."""
        offered = {row for parts in self._parts.values() for rows, _ in parts for row in rows}
        rest = [
            _Finished(row, batch.completions[row], batch.completion_ids[row])
            for row in range(len(self._rows))
            if row not in offered
        ]
        if offered and rest:
            self._ask(rest)

    def _ask(self, finished: Sequence[_Finished]) -> None:
        """Ask every per-sample reward about these completions."""
        rows = [each.row for each in finished]
        batch = Batch(
            [self._rows[row] for row in rows],
            [each.text for each in finished],
            [each.ids for each in finished],
            self._context,
            rows,
        )
        for place, parts in self._parts.items():
            parts.append((rows, self._scorer.ask(place, batch)))


def _asked_early(function: Callable[..., Any]) -> bool:
    """Whether a reward says that its scores do not depend on the other completions."""
    alone = getattr(function, "per_sample", False) is True
    return alone and not is_async(function)


def _only_beside(failure: _Failure) -> RewardFailedError:
    return RewardFailedError(
        f"{failure}; it was called while others were still being sampled, on a thread beside the "
        "main one, and did not fail when it was called again on the main thread. If it runs in "
        "this process and needs the main thread, say so: set the attribute `per_sample` of the "
        "function to False"
    )
