"""Every option of training: name, type, default, limits and meaning, in one frozen dataclass.

Names follow TRL where the meaning is TRL's. The same conversion serves YAML, the command line and
Python: values arrive plain or as text, and whatever cannot be meant is a `ConfigError`. To add an
option: a field below (help text: meaning, unit, off value; range and default are written by the
machine), its conflicts with others in `_conflicts`, a test, and a line in the change log.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar, cast

from pydantic import ConfigDict, NonNegativeInt, ValidationError, field_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ErrorDetails

from rl4lm.address import unusable_address, without_password
from rl4lm.errors import ConfigError, did_you_mean
from rl4lm.refusals import asks_for_nothing, refused_value, unknown_option
from rl4lm.schema import Option, describe, option

ConfigClass = TypeVar("ConfigClass")

# Baselines that need several completions of a prompt; a lone one would be compared with itself.
COMPARES_WITHIN_PROMPT = frozenset({"prompt_mean", "prompt_leave_one_out", "length_weighted"})

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
@pydantic_dataclass(
    frozen=True,
    kw_only=True,
    config=ConfigDict(extra="forbid", allow_inf_nan=False, str_min_length=1),
)
class ReinforceConfig:
    """All options of a run; every one has a default, and an instance has passed every check."""

    model_name_or_path: str = option(
        "model", "builtin:tiny-arithmetic", "checkpoint: builtin:NAME, a folder or a hub id"
    )
    dtype: Literal["auto", "float32", "bfloat16", "pure_bfloat16", "float64"] = option(
        "model",
        "auto",
        "precision of the computation; auto is float32 on a CPU and bfloat16 autocast on a GPU. "
        "Trained parameters are float32 but for pure_bfloat16 and float64",
    )
    trust_remote_code: bool = option("model", False, "run model code that the checkpoint brings")
    attn_implementation: str | None = option(
        "model", None, "attention of transformers, such as sdpa or eager; none = its own choice"
    )

    use_peft: bool = option("adapters", False, "train LoRA adapters; false = all parameters")
    lora_r: int = option("adapters", 16, "rank of the adapters", ge=1, le=16384)
    lora_alpha: float | None = option(
        "adapters",
        None,
        "scale of the adapters, applied as lora_alpha / lora_r; none = 2 lora_r",
        gt=0,
    )
    lora_target_modules: list[str] | None = option(
        "adapters",
        None,
        "names of the layers to adapt; none = all linear layers but the head",
        min_length=1,
    )

    dataset_name: str = option(
        "data",
        "builtin:arithmetic",
        "builtin:NAME, a jsonl, json, csv or parquet file, or a hub id",
    )
    dataset_train_split: str = option("data", "train", "split to train on")
    dataset_test_split: str | None = option(
        "data", "test", "split to evaluate on; none = no held-out evaluation"
    )
    prompt_column: str = option("data", "prompt", "column with the prompt, as text or as messages")
    max_prompt_length: int | None = option(
        "data",
        None,
        "tokens; longer prompts are refused and counted, never cut; none = the model's context",
        ge=1,
    )

    reward_funcs: list[str] = option(
        "rewards",
        ["rewards.arithmetic:exact_answer"],
        "rewards, each package.module:function or path/to/file.py:function",
        min_length=1,
    )
    reward_weights: list[float] | None = option(
        "rewards", None, "one weight for each of reward_funcs; none = 1 each"
    )
    reward_timeout_s: float | None = option(
        "rewards",
        60.0,
        "seconds that a named reward may take for the completions of one call, and then for a "
        "single one; one that hangs alone scores the reward's minimum; none = no limit",
        gt=0,
    )
    on_reward_error: Literal["raise", "mask"] = option(
        "rewards",
        "raise",
        "what to do where a reward raises an exception: raise stops the run, mask leaves that "
        "completion without this reward and counts it",
    )
    accuracy_func: str | None = option(
        "rewards",
        "rewards.arithmetic:exact_answer",
        "scores the greedy answers of an evaluation, 1 for a right one; the default one where the "
        "rows have a column `answer`; none = off",
    )

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

    baseline: Literal[
        "auto",
        "none",
        "batch_mean",
        "batch_leave_one_out",
        "prompt_mean",
        "prompt_leave_one_out",
        "length_weighted",
        "moving_average",
        "prompt_value",
        "linear_value",
    ] = option(
        "estimator",
        "auto",
        "what is subtracted from a reward; auto is prompt_leave_one_out where num_generations > 1, "
        "else batch_leave_one_out, and none where a step has one completion",
    )
    gamma: float = option(
        "estimator",
        1.0,
        "discount per token of what is paid later; a completion's one reward is paid at its last "
        "token; 1 = no discount",
        ge=0,
        le=1,
    )
    beta: float = option(
        "estimator",
        0.0,
        "weight of the KL divergence from the reference, in units of reward per nat; the reference "
        "is the base model where there is an adapter, else the model as it starts; 0 = off",
        ge=0,
    )
    kl_in: Literal["reward", "token_reward", "loss", "grpo_k3"] = option(
        "estimator",
        "reward",
        "where the KL goes: reward takes it off the completion's reward, token_reward off what "
        "each token earns, loss adds half its square; these three follow the gradient of the KL. "
        "grpo_k3 is another objective",
    )
    entropy_coef: float = option(
        "estimator", 0.0, "weight of the entropy, in units of reward per nat; 0 = off", ge=0
    )
    entropy_in: Literal["reward", "loss"] = option(
        "estimator",
        "reward",
        "reward follows the gradient of the completion's entropy; loss only its direct term, which "
        "is another objective",
    )
    num_iterations: int = option(
        "estimator",
        1,
        "optimizer steps on the completions of one sampling; above 1 with importance ratio and "
        "clip, which is another objective; 1 = off",
        ge=1,
    )
    epsilon: float | None = option(
        "estimator",
        None,
        "the importance ratio of a completion is clipped beyond 1 - epsilon and 1 + epsilon; none "
        "= 0.2 where num_iterations > 1, else neither ratio nor clip",
        gt=0,
    )

    learning_rate: float = option("optimizer", 1e-5, "peak learning rate; 0 = weights stay", ge=0)
    optim: Literal["adamw", "sgd"] = option("optimizer", "adamw", "the optimizer")
    adam_beta1: float = option("optimizer", 0.9, "decay of AdamW's first moment", ge=0, lt=1)
    adam_beta2: float = option("optimizer", 0.999, "decay of AdamW's second moment", ge=0, lt=1)
    adam_epsilon: float = option("optimizer", 1e-8, "added to AdamW's denominator", gt=0)
    weight_decay: float = option(
        "optimizer", 0.0, "share of a weight taken off per unit of learning rate; 0 = off", ge=0
    )
    max_grad_norm: float = option(
        "optimizer", 1.0, "the gradient is scaled down to this L2 norm; 0 = off", ge=0
    )
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = option(
        "optimizer", "constant", "course of the learning rate over max_steps"
    )
    warmup_steps: int = option(
        "optimizer", 0, "steps over which the learning rate rises from 0; 0 = off", ge=0
    )
    max_steps: int = option("optimizer", 200, "optimizer steps of the run", ge=1)
    max_time: float | None = option(
        "optimizer",
        None,
        "seconds of training after which the step in hand is the last; none = no limit",
        gt=0,
    )
    max_tokens_per_micro_batch: int = option(
        "optimizer",
        16384,
        "tokens of a forward and backward pass, padding included: bounds memory, never changes the "
        "gradient",
        ge=1,
    )
    fast_path: bool = option(
        "optimizer",
        True,
        "pack training rows without padding, prompts shared by their completions, and decode from "
        "a cache of fixed size, where the model allows it; false = one padded row a completion. "
        "Changes speed and memory, never the gradient",
    )
    activation_checkpointing: bool = option(
        "optimizer", False, "recompute activations in the backward pass: less memory, more time"
    )

    output_dir: str | None = option(
        "run", None, "folder of the run; none = nothing is written, which only Python allows"
    )
    overwrite_output_dir: bool = option("run", False, "replace a run that is already there")
    seed: int = option("run", 0, "seed of everything that is drawn", ge=0, le=2**32 - 1)
    torch_threads: int | None = option(
        "run",
        None,
        "CPU threads of torch, shared by the processes of a machine; none = torch's own choice",
        ge=1,
        le=1024,
    )
    ddp_timeout: float | None = option(
        "run",
        1800.0,
        "seconds that a process waits for another one, which may be slow or hang in a function of "
        "yours; then the run ends and says which one, and what it was doing; none = no limit",
        gt=0,
    )
    eval_steps: int | None = option(
        "run", None, "evaluate every so many steps too; none or 0 = only before and after", ge=0
    )
    eval_samples: int = option("run", 500, "held-out prompts of an evaluation; 0 = off", ge=0)
    save_steps: int = option(
        "run",
        0,
        "steps between checkpoints, where `rl4lm replay` can begin; 0 = only the final weights",
        ge=0,
    )
    save_total_limit: int | None = option(
        "run",
        None,
        "checkpoints kept: the newest ones and, where there are evaluations, the best; none = all",
        ge=1,
    )
    resume_from_checkpoint: str | None = option(
        "run",
        None,
        "go on from a checkpoint: its folder, or true for the newest complete one in output_dir "
        "(a start from the beginning where there is none); none or false = off",
    )
    resume_anyway: bool = option(
        "run", False, "resume although options differ from those of the checkpoint"
    )
    noise_every: int = option(
        "run",
        20,
        "steps between measurements of the gradient's noise, with the baseline and without: one "
        "more backward pass; 0 = never",
        ge=0,
    )
    sample_table_steps: int = option(
        "run", 50, "steps between tables of sample completions; 0 = never", ge=0
    )
    logging_steps: int = option("run", 10, "steps between lines where the log is a file", ge=1)

    @field_validator("*", mode="before")
    @classmethod
    def _read_plain(cls, value: Any, info: Any) -> Any:
        """Prepare a value for pydantic's conversion; see `Option.read`."""
        if info.field_name == "resume_from_checkpoint" and str(value).lower() in ("true", "false"):
            value = "true" if str(value).lower() == "true" else None
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
    if config.sampler_url is not None and (why := unusable_address(config.sampler_url)):
        yield f"sampler_url={without_password(config.sampler_url)} {why}"
    if config.sampler_model is not None and config.sampler_url is None:
        yield (
            f"sampler_model={config.sampler_model} names a model at a server, but there is no "
            "server; set sampler_url too, or leave both out"
        )


# Name -> description, in the order of the fields.
OPTIONS: Mapping[str, Option] = {
    name: describe(name, info.annotation, info)
    for name, info in cast(Any, ReinforceConfig).__pydantic_fields__.items()
}
