"""Every option of training: name, type, default, limits and meaning, in one frozen dataclass.

Names follow TRL where the meaning is TRL's. The same conversion serves YAML, the command line and
Python: values arrive plain or as text, and whatever cannot be meant is a `ConfigError`. Fields are
in `rl4lm.settings.fields`, conflicts here; docs/architecture.md says how to add an option.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

from pydantic import ValidationError, field_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from rl4lm.errors import ConfigError, did_you_mean
from rl4lm.estimator.names import COMPARES_WITHIN_PROMPT
from rl4lm.settings.address import unusable_address, without_password
from rl4lm.settings.data_rules import data_conflicts
from rl4lm.settings.fields.data import DataFields
from rl4lm.settings.fields.estimator import EstimatorFields
from rl4lm.settings.fields.model import ModelFields
from rl4lm.settings.fields.optimizer import OptimizerFields
from rl4lm.settings.fields.rewards import RewardFields
from rl4lm.settings.fields.run import RunFields
from rl4lm.settings.fields.sampling import SamplingFields
from rl4lm.settings.notation import as_pairs, read_settings
from rl4lm.settings.refusals import asks_for_nothing, refused_value, unknown_option
from rl4lm.settings.schema import RULES, Option, describe

ConfigClass = TypeVar("ConfigClass")

_PAIRED = ("rename", "chat_template_kwargs")  # lists of name=value, which a mapping may say too

_MOST_COMPLETIONS = 2**20  # in a step


def _raises_config_error(cls: type[ConfigClass]) -> type[ConfigClass]:
    """Make the constructor of a pydantic dataclass raise `ConfigError` in words of this project."""
    validate = cls.__init__

    @functools.wraps(validate)
    def checked(self: Any, **values: Any) -> None:
        asked = {k: v for k, v in values.items() if k in OPTIONS or not asks_for_nothing(k, v)}
        try:
            validate(self, **asked)
        except ValidationError as error:
            lines = [_explain(problem) for problem in error.errors(include_url=False)]
            raise ConfigError("\n".join(lines)) from None

    # Of every instance, however it is made.
    cls.__init__ = checked  # type: ignore[method-assign]
    return cls


def _explain(problem: ErrorDetails) -> str:
    """One line for one of pydantic's problems: the field, the value given and what is expected."""
    if not problem["loc"]:
        return str(problem["ctx"]["error"])  # raised by __post_init__, already in our words
    name = str(problem["loc"][0])
    if name not in OPTIONS:
        return unknown_option(name, OPTIONS)
    given, known = problem["input"], OPTIONS[name]
    if (reason := refused_value(name, given)) is not None:
        return f"{name}: {given} is refused, because {reason}"
    nearest = did_you_mean(given, known.choices) if isinstance(given, str) else ""
    return f"{name}: {given!r} given, expected {known.expected}{nearest}"


@_raises_config_error
@dataclass(frozen=True, kw_only=True, config=RULES)
class ReinforceConfig(  # the order of the options is that of these, from the last one
    RunFields,
    OptimizerFields,
    EstimatorFields,
    SamplingFields,
    RewardFields,
    DataFields,
    ModelFields,
):
    """All options of a run; every one has a default, and an instance has passed every check."""

    @field_validator("*", mode="before")
    @classmethod
    def _read_plain(cls, value: Any, info: Any) -> Any:
        """Prepare a value for pydantic's conversion; see `Option.read`."""
        if info.field_name == "resume_from_checkpoint" and str(value).lower() in ("true", "false"):
            value = "true" if str(value).lower() == "true" else None
        if info.field_name in _PAIRED:
            value = as_pairs(value)
        if info.field_name == "scale_rewards" and str(value).lower() in ("true", "false"):
            value = "group" if str(value).lower() == "true" else "none"  # as TRL reads them
        return OPTIONS[info.field_name].read(value)

    def __post_init__(self) -> None:
        """Refuse combinations that cannot be meant, all at once."""
        conflicts = list(_conflicts(self))
        if conflicts:
            raise ConfigError("\n".join(conflicts))
        # With reward_funcs left alone the functions may come from Python, in any number.
        if self.reward_funcs != OPTIONS["reward_funcs"].default:
            self.weights_for(len(self.reward_funcs))

    @property
    def completions_per_step(self) -> int:
        """B, the completions of one optimizer step over all processes."""
        return self.prompts_per_step * self.num_generations

    @property
    def resolved_baseline(self) -> str:
        """The baseline with ``auto`` decided."""
        if self.baseline != "auto":
            return self.baseline
        if self.num_generations > 1:
            return "prompt_leave_one_out"
        return "batch_leave_one_out" if self.completions_per_step > 1 else "none"

    @property
    def resolved_epsilon(self) -> float | None:
        """The clip range of the importance ratio, or None where there is no ratio."""
        if self.epsilon is None and self.num_iterations > 1:
            return 0.2
        return self.epsilon

    @property
    def resolved_lora_alpha(self) -> float:
        """The scale of the adapters with ``None`` decided."""
        return 2.0 * self.lora_r if self.lora_alpha is None else self.lora_alpha

    @property
    def resolved_lora_target_modules(self) -> str | list[str]:
        """What peft takes as ``target_modules``: names, or its word for all linear layers."""
        if self.lora_target_modules in (None, ["all-linear"]):
            return "all-linear"
        return list(self.lora_target_modules or [])

    @property
    def template_variables(self) -> dict[str, Any]:
        """What the chat template is told besides the messages."""
        return read_settings(self.chat_template_kwargs)

    def weights_for(self, count: int) -> list[float]:
        """The weights of ``count`` rewards; `ConfigError` where there are more or fewer of them."""
        if self.reward_weights is None:
            return [1.0] * count
        if len(self.reward_weights) != count:
            raise ConfigError(
                f"reward_weights has {len(self.reward_weights)} values for {count} rewards; "
                "give one weight for each reward, in the order of reward_funcs"
            )
        return list(self.reward_weights)

    def to_dict(self) -> dict[str, Any]:
        """Plain values in the order of the fields, as config.yaml holds them."""
        return dataclasses.asdict(self)


def _conflicts(config: ReinforceConfig) -> Iterator[str]:
    """Each combination of options that cannot be meant: what was given, expected, and to do."""
    yield from _step_conflicts(config)
    yield from data_conflicts(config)
    yield from _server_conflicts(config)
    yield from _run_conflicts(config)
    yield from _quantisation_conflicts(config)


def _step_conflicts(config: ReinforceConfig) -> Iterator[str]:
    steps = f"prompts_per_step={config.prompts_per_step}, num_generations={config.num_generations}"
    if config.completions_per_step > _MOST_COMPLETIONS:
        yield (
            f"a step of {config.completions_per_step} completions ({steps}) is held in memory as a "
            f"whole; at most {_MOST_COMPLETIONS} are taken: lower one of them"
        )
    if config.baseline in COMPARES_WITHIN_PROMPT and config.num_generations == 1:
        yield (
            f"baseline={config.baseline} compares the completions of one prompt, but "
            "num_generations=1; set num_generations to 2 or more, or baseline=batch_leave_one_out"
        )
    if config.baseline.startswith("batch_") and config.completions_per_step == 1:
        yield (
            f"baseline={config.baseline} needs 2 or more completions in a step, but {steps}; "
            "raise one of them, or set baseline=none"
        )
    compared = {"group": config.num_generations, "batch": config.completions_per_step}
    if compared.get(config.scale_rewards) == 1:
        yield (
            f"scale_rewards={config.scale_rewards} divides by the standard deviation of several "
            f"rewards, but {steps}; raise num_generations, or set scale_rewards=none"
        )
    if config.warmup_steps and config.lr_scheduler_type == "constant":
        yield (
            f"warmup_steps={config.warmup_steps} has no effect with lr_scheduler_type=constant; "
            "set lr_scheduler_type=constant_with_warmup, or warmup_steps=0"
        )
    if len(set(config.reward_funcs)) < len(config.reward_funcs):
        yield (
            f"reward_funcs names a reward twice: {' '.join(config.reward_funcs)}; name each once "
            "and set its share by reward_weights"
        )


def _server_conflicts(config: ReinforceConfig) -> Iterator[str]:
    if config.sampler_url is not None and (why := unusable_address(config.sampler_url)):
        yield f"sampler_url={without_password(config.sampler_url)} {why}"
    if config.sampler_model is not None and config.sampler_url is None:
        yield (
            f"sampler_model={config.sampler_model} names a model at a server, but there is no "
            "server; set sampler_url too, or leave both out"
        )
    yield from _conflicts_of_prompts(config)


def _conflicts_of_prompts(config: ReinforceConfig) -> Iterator[str]:
    """The same, of how prompts are chosen."""
    drawn_again = f"dynamic_sampling={config.dynamic_sampling}"
    if config.dynamic_sampling and config.resolved_baseline not in COMPARES_WITHIN_PROMPT:
        yield (
            f"{drawn_again} drops prompts whose completions have no advantage, and with baseline="
            f"{config.resolved_baseline} that depends on other prompts; set num_generations to 2 "
            "or more and a baseline within the prompt, such as prompt_leave_one_out"
        )
    if config.dynamic_sampling and (config.beta or config.entropy_coef):
        yield (
            f"{drawn_again} drops prompts whose rewards are all equal, and with them what beta="
            f"{config.beta:g} and entropy_coef={config.entropy_coef:g} say of them, which would be "
            "another objective; leave these out, or set dynamic_sampling=0"
        )
    of_curriculum = ("curriculum_candidates", "curriculum_column")
    changed = [n for n in of_curriculum if getattr(config, n) != OPTIONS[n].default]
    if config.curriculum == "none" and changed:
        yield (
            f"{changed[0]}={getattr(config, changed[0])} has no effect without a curriculum; set "
            "curriculum=success, or leave it out"
        )


def _run_conflicts(config: ReinforceConfig) -> Iterator[str]:
    if config.report_to and config.output_dir is None:
        yield (
            f"report_to={' '.join(config.report_to)} follows a run that is written down, but there "
            "is no output_dir; name a folder"
        )
    drawn, ks = config.eval_num_generations, config.eval_pass_at_k
    if drawn is not None and drawn < max(ks, default=1):
        yield (
            f"eval_num_generations={drawn} completions of a prompt say nothing of pass@{max(ks)}; "
            f"set it to {max(ks)} or more, or lower eval_pass_at_k"
        )
    if not config.push_to_hub and (config.hub_model_id or config.hub_private_repo):
        yield (
            "hub_model_id and hub_private_repo say where an upload goes, but push_to_hub=false; "
            "set push_to_hub=true too, or leave them out"
        )


def _quantisation_conflicts(config: ReinforceConfig) -> Iterator[str]:
    if not (config.load_in_4bit or config.load_in_8bit):
        return
    if config.load_in_4bit and config.load_in_8bit:
        yield "load_in_4bit and load_in_8bit are both true; choose one"
    if not config.use_peft:
        yield (
            "quantised weights cannot be trained themselves; set use_peft=true beside load_in_4bit "
            "or load_in_8bit"
        )
    if config.dtype not in ("auto", "bfloat16", "float32"):
        yield (
            f"dtype={config.dtype} is that of weights, which load_in_4bit and load_in_8bit "
            "replace; set dtype to auto, bfloat16 or float32, the type that is computed in"
        )


# Name -> description, in the order of the fields.
OPTIONS: Mapping[str, Option] = {
    name: describe(name, info.annotation, info)
    for name, info in cast(Any, ReinforceConfig).__pydantic_fields__.items()
}
