"""Which prompts are trained on and which evaluated on: splits, limits, prompts held out.

The choice depends on the seed and on the prompts themselves, never on their order or number, so
that a resumed run chooses alike, and rows that come to a data set move no others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rl4lm.config import OPTIONS, ReinforceConfig
from rl4lm.data.columns import Row, Shape, shape_of
from rl4lm.data.examples import PromptData, from_dataset, load_split
from rl4lm.data.sources import Access, load_rows
from rl4lm.errors import DataError, MissingSplitError
from rl4lm.types import Message

T = TypeVar("T")

HELD_OUT = "held_out"  # the name of the split that `held_out_share` makes

# Options for rows whose prompts are as they should be, of a log for instance.
AS_GIVEN: Mapping[str, Any] = {
    "prompt_column": "prompt",
    "max_prompt_length": None,
    "dataset_config": None,
    "dataset_streaming": False,
    "max_train_samples": None,
    "rename": [],
    "prompt_template": None,
    "as_chat": False,
    "system_prompt": None,
    "long_prompts": "refuse",
    "held_out_share": 0.0,
}


@dataclass(frozen=True)
class Splits:
    """The prompts of a run."""

    train: PromptData
    evaluation: PromptData | None  # None where nothing is kept for it
    notes: Sequence[str]  # lines about what was chosen
    warnings: Sequence[str]
    further: Mapping[str, PromptData] = field(default_factory=dict)  # evaluated on too, by name


def training_splits(
    config: ReinforceConfig, train_dataset: Any = None, eval_dataset: Any = None
) -> Splits:
    """Read what the options name, or what was handed over, and choose the rows of each split.

    Args:
        config: the options.
        train_dataset: rows handed over; None means `dataset_name`.
        eval_dataset: rows to evaluate on, or several such by name, the main one first; None means
            `dataset_test_split`, or what is held out.

    Raises:
        DataError: what cannot be read, or both a split to evaluate on and a share to hold out.
    """
    train = _train(config, train_dataset).first(config.max_train_samples)
    first, further = _parted(eval_dataset)
    evaluation = _evaluation(config, train_dataset, first)
    notes = [*_on_columns(config, train), *_on_names(eval_dataset)]
    if not config.held_out_share:
        warnings = _on_overlap(config, train, evaluation)
        others = {name: _handed_over(config, rows, name) for name, rows in further.items()}
        return Splits(train, evaluation, notes, warnings, others)
    if evaluation is not None:
        raise DataError(
            f"held_out_share={config.held_out_share} is for data without a split to evaluate on, "
            f"and here there is one, of {len(evaluation)} rows; leave held_out_share out, or the "
            "other (--dataset_test_split none, or no eval_dataset)"
        )
    rest, held_out = hold_out(train, config.held_out_share, config.seed)
    line = (
        f"{len(held_out)} of the {len(train)} rows of split {train.split!r} are held out, and "
        "evaluated on"
    )
    return Splits(rest, held_out, [*notes, line], [])


def split_rows(
    config: ReinforceConfig, made: Callable[[Row], Row]
) -> tuple[list[Row], list[Row] | None]:
    """The rows that the options name, each made into another one by a function of yours.

    For columns that no option makes: `train_dataset` and `eval_dataset` of `ReinforceTrainer`.

    Args:
        config: the options; those about columns are for the trainer.
        made: gives the row to train on for a row of the data.

    Returns:
        What is trained on, and what is evaluated on; None where the data have no split for that.

    Raises:
        DataError: what cannot be read, or a split to evaluate on that was named and is not there.
    """

    def read(split: str) -> list[Row]:
        return [made(row) for row in load_rows(config.dataset_name, split, access)]

    access = Access(config.dataset_config)
    return read(config.dataset_train_split), _held_out(config, read)


def evaluated_split(config: ReinforceConfig) -> PromptData:
    """The prompts that ``rl4lm eval`` takes: those that training with the same options would.

    Raises:
        DataError: what cannot be read.
    """
    if config.held_out_share:
        splits = training_splits(config)
        assert splits.evaluation is not None
        return splits.evaluation
    return _named(config, config.dataset_test_split or config.dataset_train_split)


def _train(config: ReinforceConfig, given: Any) -> PromptData:
    if given is None:
        return _named(config, config.dataset_train_split, config.max_train_samples)
    column, shape = config.prompt_column, shape_of(config)
    return from_dataset(given, column, "train", shape, config.max_train_samples)


def _parted(given: Any) -> tuple[Any, dict[str, Any]]:
    """What is evaluated on first, and what else, by name.

    Raises:
        DataError: a mapping without data sets, or with a name that numbers cannot go by.
    """
    if not isinstance(given, Mapping):
        return given, {}
    if not given or not all(isinstance(name, str) and name for name in given):
        raise DataError(
            "eval_dataset must be rows, or a mapping with at least one name and its rows, such as "
            f"{{'easy': rows}}, got the names {list(given)}"
        )
    (_, first), *further = given.items()
    return first, dict(further)


def _on_names(given: Any) -> list[str]:
    if not isinstance(given, Mapping) or len(given) == 1:
        return []
    first, *further = given
    told = ", ".join(f"{name}/…" for name in further)
    return [f"numbers of evaluations without a name are those of {first!r}; others are {told}"]


def _handed_over(config: ReinforceConfig, rows: Any, split: str) -> PromptData:
    column, shape = config.prompt_column, shape_of(config)
    return from_dataset(rows, column, split, shape, config.eval_samples or None)


def _evaluation(config: ReinforceConfig, train_given: Any, given: Any) -> PromptData | None:
    if given is not None:
        return _handed_over(config, given, "test")
    if train_given is not None:
        return None
    return _held_out(config, lambda split: _named(config, split))


def _held_out(config: ReinforceConfig, read: Callable[[str], T]) -> T | None:
    """What is read of the split to evaluate on; None where none is there or wanted."""
    if config.dataset_test_split is None:
        return None
    try:
        return read(config.dataset_test_split)
    except MissingSplitError:
        if config.dataset_test_split != OPTIONS["dataset_test_split"].default:
            raise  # it was asked for by name
        return None


def _named(config: ReinforceConfig, split: str, rows: int | None = None) -> PromptData:
    """A split of the data set of the options; of a stream so many rows, or those evaluated on."""
    streamed = (rows or config.eval_samples or 1) if config.dataset_streaming else None
    access = Access(config.dataset_config, streamed)
    shape: Shape = shape_of(config)
    return load_split(config.dataset_name, split, config.prompt_column, shape, access)


def _on_columns(config: ReinforceConfig, data: PromptData) -> list[str]:
    if data.prompt_column == config.prompt_column:
        return []
    return [
        f"there is no column {config.prompt_column!r}: prompts are the conversations in the column "
        f"{data.prompt_column!r}, up to the last turn of the user"
    ]


def _on_overlap(
    config: ReinforceConfig, train: PromptData, evaluation: PromptData | None
) -> list[str]:
    if evaluation is None or not config.eval_samples:
        return []
    evaluated = evaluation.first(config.eval_samples)
    both = overlap(train, evaluated)
    if not both:
        return []
    return [
        f"{both} of the {len(evaluated)} prompts that are evaluated on are training prompts too, "
        "so that the evaluation shows memory as skill; take them out of one of the splits, or hold "
        "prompts out of the training split: --dataset_test_split none --held_out_share 0.1"
    ]


def hold_out(data: PromptData, share: float, seed: int) -> tuple[PromptData, PromptData]:
    """Part a split by its prompts: what is trained on, and what is held out.

    A prompt is held out where a hash of the seed and of the prompt, as a number in [0, 1), is below
    `share`. Equal prompts go together, and rows added later move no others.

    Args:
        data: the split.
        share: expected share of the distinct prompts that is held out.
        seed: of the run.

    Raises:
        DataError: nothing would be left on one of the sides.
    """
    hashes = [prompt_hash(prompt, seed) for prompt in data.prompts()]
    held = [index for index, value in enumerate(hashes) if value < share]
    rest = [index for index, value in enumerate(hashes) if value >= share]
    if not held or not rest:
        raise DataError(
            f"held_out_share={share} would hold out {len(held)} of the {len(data)} rows of split "
            f"{data.split!r} ({len(set(hashes))} distinct prompts); both sides need one: give "
            f"{'more rows or a larger' if not held else 'a smaller'} share, or another seed"
        )
    return data.only(rest), data.only(held, HELD_OUT)


def overlap(train: PromptData, evaluation: PromptData) -> int:
    """How many rows of the evaluation have a prompt that is trained on."""
    trained = {prompt_hash(prompt) for prompt in train.prompts()}
    return sum(prompt_hash(prompt) in trained for prompt in evaluation.prompts())


def prompt_hash(prompt: str | Sequence[Message], seed: int = 0) -> float:
    """A number in [0, 1) that depends on the seed and the words of a prompt, not on its spaces."""
    if isinstance(prompt, str):
        words: Any = prompt.split()
    else:
        words = [[each["role"], str(each.get("content")).split()] for each in prompt]
    content = json.dumps([seed, words]).encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
