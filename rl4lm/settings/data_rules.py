"""Combinations of the options for data that cannot be meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rl4lm.settings.fields.data import DataFields
from rl4lm.settings.notation import read_pairs, read_settings, read_template

# What `apply_chat_template` itself takes: the codec says these, and a template never sees them.
_SAID_BY_THE_CODEC = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "truncation",
    }
)


def data_conflicts(options: DataFields) -> Iterator[str]:
    """Each combination that cannot be meant: what was given, what was expected, what to do."""
    yield from _unreadable("rename", read_pairs, options.rename)
    yield from _unreadable("chat_template_kwargs", read_settings, options.chat_template_kwargs)
    if options.prompt_template is not None:
        yield from _unreadable("prompt_template", read_template, options.prompt_template)
    yield from _reserved(options.chat_template_kwargs)
    if options.dataset_streaming and options.max_train_samples is None:
        yield (
            "dataset_streaming=true needs max_train_samples: the endless order of the prompts, "
            "which anyone can compute again, is made from the number of rows, and a stream does "
            "not say it; set max_train_samples to the rows that may be read"
        )
    if options.held_out_share and options.dataset_test_split not in (None, "test"):
        yield (
            f"held_out_share={options.held_out_share} keeps prompts out of training where there is "
            f"no split to evaluate on, but dataset_test_split={options.dataset_test_split} names "
            "one; leave one of them out"
        )


def _unreadable(name: str, read: Callable[[Any], Any], value: Any) -> Iterator[str]:
    try:
        read(value)
    except ValueError as error:
        yield f"{name}: {error}"


def _reserved(texts: list[str]) -> Iterator[str]:
    for name in (text.partition("=")[0].strip() for text in texts):
        if name in _SAID_BY_THE_CODEC:
            yield (
                f"chat_template_kwargs: {name} is no variable of a template, but how it is called, "
                "which training decides; give variables of the template, such as enable_thinking"
            )
