"""Whether rows, rewards and model fit together.

Rows that a reward cannot judge are left out and counted; lengths of prompts are looked at before
the weights are read, their ids after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from rl4lm.config import ReinforceConfig
from rl4lm.data.examples import PromptData
from rl4lm.errors import DataError, ModelError
from rl4lm.rewarding.lookup import NamedReward
from rl4lm.text import TextCodec

_ENCODED_AT_ONCE = 4096  # prompts
_NAMED = 5  # rows in a message


def check_prompts(
    config: ReinforceConfig, codec: TextCodec, context: int | None, data: Sequence[PromptData]
) -> int:
    """Refuse prompts that are longer than asked for, or that leave no room for a completion.

    Args:
        config: gives `max_prompt_length` and `max_completion_length`.
        codec: turns the prompts into ids.
        context: positions of the model; None where it does not say.
        data: the splits whose prompts are used.

    Returns:
        The largest token id of any prompt.

    Raises:
        DataError: prompts over `max_prompt_length`, counted.
        ModelError: the longest prompt and the completion do not fit the model's context.
    """
    largest = 0
    for split in data:
        lengths, largest_here = _measure(codec, split)
        largest = max(largest, largest_here)
        _check_lengths(config, context, split, lengths)
    return largest


def leave_out_long(
    config: ReinforceConfig, codec: TextCodec, context: int | None, data: PromptData
) -> tuple[PromptData, list[str]]:
    """Leave out the prompts that `check_prompts` would refuse.

    Args:
        config: gives `max_prompt_length` and `max_completion_length`.
        codec: turns the prompts into ids.
        context: positions of the model; None where it does not say.
        data: one split.

    Returns:
        The split without these rows, and a line for the screen where there are any.

    Raises:
        DataError: no row is left.
    """
    room = None if context is None else context - config.max_completion_length
    limits = [limit for limit in (config.max_prompt_length, room) if limit is not None]
    lengths, _ = _measure(codec, data)
    long = {row for row, length in enumerate(lengths) if limits and length > min(limits)}
    if not long:
        return data, []
    note = (
        f"{len(long)} of the {len(data)} prompts of split {data.split!r} are longer than "
        f"{min(limits)} tokens and are left out ({_listed(data, sorted(long))})"
    )
    if len(long) == len(data):
        raise DataError(f"{note}\nno row is left; raise max_prompt_length, or shorten the prompts")
    return data.without(long), [note]


def _listed(data: PromptData, rows: Sequence[int]) -> str:
    """The numbers of the first rows of several."""
    numbers = ", ".join(str(data.number(row)) for row in rows[:_NAMED])
    more = ", …" if len(rows) > _NAMED else ""
    return f"row{'s' if len(rows) > 1 else ''} {numbers}{more}"


def leave_out_unfit(
    rewards: Sequence[NamedReward], data: PromptData
) -> tuple[PromptData, list[str]]:
    """Leave out the rows that a reward says it cannot judge.

    A reward says so by an attribute ``unfit``: a function from the columns (name -> one value per
    row, the prompts under the name of their column) to the reason for each row, None where it fits.

    Args:
        rewards: all of them are asked.
        data: one split.

    Returns:
        The split without these rows, and a line for the screen about each reward that left some
        out.

    Raises:
        DataError: no row is left.
    """
    asked = [(r.name, r.function.unfit) for r in rewards if hasattr(r.function, "unfit")]
    if not asked:
        return data, []
    examples = data.examples(range(len(data)))
    columns = {name: [example.columns[name] for example in examples] for name in data.columns}
    columns[data.prompt_column] = [example.prompt for example in examples]
    unfit: set[int] = set()
    notes = []
    for name, reasons_of in asked:
        reasons = {row: why for row, why in enumerate(reasons_of(columns)) if why is not None}
        if reasons:
            row, why = next(iter(reasons.items()))
            notes.append(
                f"{len(reasons)} of the {len(data)} rows of split {data.split!r} cannot be judged "
                f"by {name} and are left out; row {row}: {why}"
            )
            unfit |= reasons.keys()
    if len(unfit) == len(data):
        raise DataError("\n".join(notes) + "\nno row is left; look at the columns of the data")
    return (data.without(unfit) if unfit else data), notes


def _measure(codec: TextCodec, split: PromptData) -> tuple[list[int], int]:
    """The length of every prompt in tokens, and the largest id."""
    lengths: list[int] = []
    largest = 0
    for start in range(0, len(split), _ENCODED_AT_ONCE):
        examples = split.examples(range(start, min(start + _ENCODED_AT_ONCE, len(split))))
        encoded = codec.encode([e.prompt for e in examples], [e.prompt_id for e in examples])
        lengths += [len(ids) for ids in encoded]
        largest = max(largest, max(max(ids) for ids in encoded))
    return lengths, largest


def _check_lengths(
    config: ReinforceConfig, context: int | None, data: PromptData, lengths: Sequence[int]
) -> None:
    row = max(range(len(lengths)), key=lengths.__getitem__)
    longest, limit, number = lengths[row], config.max_prompt_length, data.number(row)
    if limit is not None and longest > limit:
        over = [row for row, length in enumerate(lengths) if length > limit]
        raise DataError(
            f"{len(over)} of the {len(lengths)} prompts of split {data.split!r} are longer than "
            f"max_prompt_length={limit} tokens ({_listed(data, over)}; the longest, row {number}, "
            f"has {longest}); shorten or drop them, or raise the limit; --long_prompts drop leaves "
            "them out"
        )
    if context is None or longest + config.max_completion_length <= context:
        return
    remedy = (
        f"lower the latter to at most {context - longest}, or drop long prompts (--long_prompts "
        "drop)"
        if longest < context
        else "drop that prompt (--long_prompts drop)"
    )
    raise ModelError(
        f"the model's context of {context} tokens is too short for the longest prompt of split "
        f"{data.split!r} (row {number}, {longest} tokens) plus "
        f"max_completion_length={config.max_completion_length}; {remedy}"
    )


def check_vocabulary(model: nn.Module, largest: int, stop_token_ids: Sequence[int]) -> None:
    """Refuse token ids that the model has no embedding for.

    Raises:
        ModelError: the tokenizer belongs to another model.
        DataError: a stop token that cannot be drawn.
    """
    # nn.Module declares every attribute as a tensor or a module, methods included.
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    size = embeddings.weight.shape[0]
    if largest >= size:
        raise ModelError(
            f"the prompts hold token id {largest}, and the model knows ids below {size}; give the "
            "tokenizer that belongs to the model"
        )
    beyond = [token for token in stop_token_ids if token >= size]
    if beyond:
        raise DataError(
            f"stop_token_ids holds {', '.join(map(str, beyond))}, and the model knows ids below "
            f"{size}; give ids of this model's tokenizer"
        )
