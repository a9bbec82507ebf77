"""How completions are drawn, and by whom."""

from __future__ import annotations

from pydantic import NonNegativeInt
from pydantic.dataclasses import dataclass

from rl4lm.settings.schema import RULES, option


@dataclass(frozen=True, kw_only=True, config=RULES)
class SamplingFields:
    """How completions are drawn, and by whom."""

    prompts_per_step: int = option("sampling", 8, "prompts in an optimizer step", ge=1)
    num_generations: int = option("sampling", 8, "completions drawn for each prompt", ge=1)
    max_completion_length: int = option(
        "sampling", 256, "tokens after which a completion is cut off", ge=1
    )
    temperature: float = option(
        "sampling", 1.0, "divides the logits, in sampling and in the gradient", gt=0
    )
    stop_strings: list[str] = option(
        "sampling", [], "texts that end a completion; empty = only the end token"
    )
    stop_token_ids: list[NonNegativeInt] = option(
        "sampling", [], "token ids that end a completion, besides the model's own"
    )
    sampler_url: str | None = option(
        "sampling",
        None,
        "address of an OpenAI-compatible completions server that draws the completions, such as "
        "http://localhost:8000; its weights do not follow the training, so that `train` needs "
        "epsilon beside it; none = this process draws them",
    )
    sampler_model: str | None = option(
        "sampling", None, "name of the model at the server; none = model_name_or_path"
    )
    sampler_timeout_s: float = option(
        "sampling",
        600.0,
        "seconds that the server may take for the completions of one prompt",
        gt=0,
    )
    dynamic_sampling: int = option(
        "sampling",
        0,
        "further prompts drawn at most, one after another, in the place of one whose completions "
        "have no advantage; the step then learns from as many prompts as it can; 0 = off",
        ge=0,
        le=1000,
    )
