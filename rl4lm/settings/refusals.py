"""Well-known options that this project does not take, each with its reason.

People come with the options of other toolkits in their fingers. To be told why one is missing, and
what to use, is worth more than "unknown option".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rl4lm.errors import did_you_mean
from rl4lm.settings.elsewhere import NOTHING, REASONS

_TRUNCATION = (
    "training differentiates exactly the distribution it samples from, and truncating or "
    "re-weighting it would make the log-probability of another function; use it in `rl4lm sample` "
    "and `rl4lm eval`"
)
_DROPOUT = "dropout would make the sampled and the differentiated policy differ; it is always off"
_BATCH = (
    "a step is prompts_per_step x num_generations completions; memory is bounded by "
    "max_tokens_per_micro_batch, which does not change the gradient"
)
_VLLM = (
    "a server of vLLM or another engine is named by sampler_url; its weights do not follow the "
    "training, so that it comes with epsilon, the range of the importance ratio"
)
_DTYPE = "the precision is chosen by `dtype` (auto, float32, bfloat16, pure_bfloat16, float64)"

# Well-known options that are not taken here -> the reason, in words that follow "because".
NOT_OFFERED: Mapping[str, str] = {
    **REASONS,
    **dict.fromkeys(("top_p", "top_k", "min_p", "repetition_penalty"), _TRUNCATION),
    "generation_kwargs": _TRUNCATION,
    **dict.fromkeys(("lora_dropout", "disable_dropout"), _DROPOUT),
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps"), _BATCH),
    **dict.fromkeys(("per_device_eval_batch_size", "generation_batch_size", "batch_size"), _BATCH),
    **dict.fromkeys(("bf16", "fp16", "tf32", "torch_dtype"), _DTYPE),
    "ref_model": "the reference of the KL is the base model of an adapter, or the model as it "
    "starts; beta is its weight",
    **dict.fromkeys(("kl_coef", "init_kl_coef"), "the weight of the KL is called beta here"),
    "save_strategy": "checkpoints are counted in steps: save_steps",
    **dict.fromkeys(("use_vllm", "vllm_mode", "vllm_server_base_url"), _VLLM),
    "hub_token": "options are written to config.yaml, and a token must not be: put it in HF_TOKEN",
    **dict.fromkeys(("hub_strategy", "hub_always_push"), "the upload is made once, at the end"),
    "deepspeed": "its engine steps inside backward; recipes/accelerate/fsdp2.yaml shards instead",
    **dict.fromkeys(("fsdp", "fsdp_config"), "the launcher says so: recipes/accelerate/fsdp2.yaml"),
    "gradient_checkpointing": "it is called activation_checkpointing here",
    "num_train_epochs": "the length of a run is max_steps; the data repeat in new orders",
    "warmup_ratio": "the warm-up is counted in steps: warmup_steps",
    "remove_unused_columns": "every column of the data but the prompt goes to the rewards",
    **dict.fromkeys(("filter_groups", "max_num_gen_batches"), "it is called dynamic_sampling here"),
    "max_new_tokens": "it is called max_completion_length here",
    **dict.fromkeys(
        ("reward_model_name_or_path", "reward_model_path"),
        "a reward model is one of reward_funcs: a folder or a hub id, with #label",
    ),
    "lr": "it is called learning_rate here",
    "model": "it is called model_name_or_path here",
    "dataset": "it is called dataset_name here",
    "streaming": "it is called dataset_streaming here",
    "dataset_text_field": "it is called prompt_column here",
    "max_eval_samples": "it is called eval_samples here",
    "enable_thinking": "it is a variable of the chat template: chat_template_kwargs "
    "enable_thinking=false",
    "tools": "completions are not parsed for calls of tools; a column of that name goes to the "
    "rewards",
}


_K1_IN_LOSS = (
    "the expected gradient of k1 in the loss is exactly zero: pure noise and no pull at all; "
    "kl_in=reward uses k1 where its gradient is exact, kl_in=loss uses k2 in the loss"
)
_K3_IN_LOSS = (
    "k3 in the loss does not follow the gradient of the KL; ask for it as kl_in=grpo_k3 if it is "
    "GRPO's objective that you want, or use kl_in=loss"
)
_RATIO_ONE = (
    "further updates on one sampling have the ratio of the completion and its clip here; with "
    "one update all ratios are 1, and it is loss_type="
)
_ROUNDS = "it is the number of further prompts that may be drawn in the place of one, such as 3"
# Values that someone may well ask for, of options that do not take them -> the reason.
_REFUSED_VALUES: Mapping[tuple[str, str], str] = {
    **{("kl_in", word): _K1_IN_LOSS for word in ("k1", "k1_loss", "loss_k1")},
    **{("kl_in", word): _K3_IN_LOSS for word in ("k3", "k3_loss", "loss_k3")},
    **dict.fromkeys(
        (("optim", w) for w in ("adamw_bnb_8bit", "adam_8bit", "paged_adamw_8bit")),
        "bitsandbytes' AdamW is called adamw_8bit here",
    ),
    **dict.fromkeys(
        (("optim", w) for w in ("adamw_torch", "adamw_torch_fused", "adamw_hf")),
        "AdamW, fused, is called adamw here",
    ),
    ("loss_type", "bnpo"): "its divisor is the tokens of a micro-batch, so that the gradient would "
    "depend on how memory is shared out; loss_type=dapo is the mean over the tokens of the step",
    ("loss_type", "luspo"): "it is the sum over tokens of a completion: loss_type=reinforce, with "
    "the ratio of the whole completion where there is one",
    ("loss_type", "cispo"): _RATIO_ONE + "dapo",
    ("loss_type", "vespo"): _RATIO_ONE + "dapo",
    ("loss_type", "sapo"): _RATIO_ONE + "grpo",
    ("dynamic_sampling", "True"): _ROUNDS,
    ("dynamic_sampling", "true"): _ROUNDS,
}


def refused_value(name: str, value: object) -> str | None:
    """Why a value of an option is refused, in words that follow "because"; None if not known."""
    return _REFUSED_VALUES.get((name, str(value)))


# Values that ask for nothing: a configuration written for another toolkit may spell them out.
_OFF: Mapping[str, tuple[object, ...]] = {
    **NOTHING,
    **dict.fromkeys(("top_p", "repetition_penalty"), (1, None)),
    **dict.fromkeys(("top_k", "min_p", "lora_dropout"), (0, None)),
    "use_vllm": (False, None),
    "generation_kwargs": (None,),
    "disable_dropout": (True,),
    "gradient_accumulation_steps": (1,),
}


def asks_for_nothing(name: str, value: object) -> bool:
    """Whether an option that is not offered was given the value that switches it off."""
    # Not plain equality: to Python False is 0 and True is 1.
    return any(
        value == off and isinstance(value, bool) == isinstance(off, bool)
        for off in _OFF.get(name, ())
    )


def unknown_option(shown: str, candidates: Iterable[str]) -> str:
    """Say why an option is not taken: the reason where it is well known, else the nearest name.

    Args:
        shown: the option as the user wrote it, such as ``lr`` or ``--weight-decy``.
        candidates: the options that would be taken there, written in the same way.
    """
    name = shown.lstrip("-").replace("-", "_")
    if name in NOT_OFFERED:
        return f"{shown} is not offered, because {NOT_OFFERED[name]}"
    return f"unknown option {shown}{did_you_mean(shown, candidates)}"
