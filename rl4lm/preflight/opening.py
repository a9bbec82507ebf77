"""A model before its weights are read: what its prompts have to fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from rl4lm.config import ReinforceConfig
from rl4lm.data.fitting import leave_out_long
from rl4lm.errors import ModelError
from rl4lm.evaluation.evaluate import Exam
from rl4lm.model import loading
from rl4lm.text import TextCodec


@dataclass(frozen=True)
class Opened:
    """What is known of a model before its weights are read."""

    codec: TextCodec
    context: int | None  # positions; None where the model does not say
    source: loading.ModelSource | None  # None for a model object


def open_parts(config: ReinforceConfig, model: str | nn.Module | None, tokenizer: Any) -> Opened:
    """Read what prompts have to fit: the tokenizer, and the length of the model's context.

    Args:
        config: names the model unless it is given.
        model: a name, a directory or a model object; None means the one of the options.
        tokenizer: used instead of the checkpoint's; a model object needs one.

    Raises:
        ModelError: what cannot be read.
    """
    if isinstance(model, nn.Module):
        if tokenizer is None:
            raise ModelError(
                "a model object comes without a tokenizer; hand it over as processing_class"
            )
        codec = TextCodec(tokenizer, config.template_variables)
        return Opened(codec, loading.context_length(model.config), None)
    source = loading.open_model(
        model or config.model_name_or_path,
        trust_remote_code=config.trust_remote_code,
        tokenizer=tokenizer,
    )
    codec = TextCodec(source.tokenizer, config.template_variables)
    return Opened(codec, source.context_length, source)


def fit_evaluated(config: ReinforceConfig, exams: Sequence[Exam]) -> tuple[list[Exam], list[str]]:
    """What is only evaluated, without the prompts that are too long for the options' model.

    Returns:
        The data sets, and lines about what was left out; as they were where `long_prompts` refuses.

    Raises:
        DataError, ModelError: no prompt is left, or no tokenizer can be read.
    """
    if config.long_prompts == "refuse":
        return list(exams), []
    opened = open_parts(config, None, None)
    fitted, notes = [], []
    for exam in exams:
        data, more = leave_out_long(config, opened.codec, opened.context, exam.data)
        fitted.append(replace(exam, data=data))
        notes += more
    return fitted, notes
