"""Options of TRL's configurations, answered group by group.

A group is a reason in words that follow "because", and each option that it holds for, with the
values that ask for nothing. `rl4lm.settings.elsewhere` says what comes of them.
"""

from __future__ import annotations

from collections.abc import Mapping

_RATIO = (
    "the importance ratio here is that of the whole completion, clipped at 1 - epsilon and 1 + "
    "epsilon, because the completion is the sample; see `epsilon` and `num_iterations`"
)
_OTHER_LOSS = "it belongs to a loss that is not offered; see `loss_type` for those that are"
_VLLM = (
    "the engine is a server of its own, started by you with its own options; it is named by "
    "sampler_url, and how long it may take is sampler_timeout_s"
)
_VLLM_RATIO = (
    "completions of a server are weighed by the ratio of the completion, always and by epsilon; "
    "there is nothing else to choose"
)
_GENERATION = "the generation loop is this project's own; what it may do is switched by fast_path"
_PADDING = "training rows are packed without padding where the model allows it (fast_path)"
_REFERENCE = (
    "the reference of the KL stays what it is: the base model of an adapter, or the model as it "
    "starts; begin a new run from a checkpoint for another one"
)
_ENTROPY = "entropy_coef is constant; entropy_in says which form its gradient has"
_LOG = (
    "every completion of every step is in completions/ of the run, and sample_table_steps says how "
    "often some are shown"
)
_STEP = (
    "completions are drawn once a step, prompts_per_step x num_generations of them; further "
    "updates on the same ones are num_iterations"
)

GROUPS: tuple[tuple[str, Mapping[str, tuple[object, ...]]], ...] = (
    (
        _RATIO,
        {
            "importance_sampling_level": ("sequence",),
            "epsilon_high": (None,),
            "delta": (None,),
            "off_policy_mask_threshold": (None,),
        },
    ),
    (
        _OTHER_LOSS,
        {
            "sapo_temperature_neg": (1.05, None),
            "sapo_temperature_pos": (1.0, None),
            "vespo_k_pos": (2.0, None),
            "vespo_lambda_pos": (3.0, None),
            "vespo_k_neg": (3.0, None),
            "vespo_lambda_neg": (2.0, None),
            "top_entropy_quantile": (1.0,),
            "router_aux_loss_coef": (None, 0),
        },
    ),
    (
        _VLLM,
        {
            "vllm_model_impl": ("vllm",),
            "vllm_enable_sleep_mode": (False,),
            "vllm_structured_outputs_regex": (None,),
            "vllm_server_host": (),
            "vllm_server_port": (),
            "vllm_server_timeout": (),
            "vllm_group_port": (),
            "vllm_gpu_memory_utilization": (),
            "vllm_max_model_length": (None,),
            "vllm_tensor_parallel_size": (1,),
        },
    ),
    (
        _VLLM_RATIO,
        {
            "vllm_importance_sampling_correction": (True,),
            "vllm_importance_sampling_mode": (),
            "vllm_importance_sampling_clip_max": (),
            "vllm_importance_sampling_clip_min": (None,),
            "vllm_importance_sampling_cap": (None,),
        },
    ),
    (
        _GENERATION,
        {
            "cache_implementation": (None,),
            "use_cache": (True, False),
            "use_transformers_continuous_batching": (False,),
            "transformers_continuous_batching_config": (None,),
            "use_transformers_paged": (False,),
            "ds3_gather_for_generation": (True,),
        },
    ),
    (_PADDING, {"pad_to_multiple_of": (None, "auto")}),
    (_STEP, {"steps_per_generation": (None, 1)}),
    (
        _REFERENCE,
        {
            "sync_ref_model": (False,),
            "ref_model_mixup_alpha": (0.6, None),
            "ref_model_sync_steps": (512, None),
        },
    ),
    (
        "a KL in the loss has no ratio, and kl_in=reward goes through that of the completion",
        {"use_bias_correction_kl": (False,)},
    ),
    (
        _ENTROPY,
        {
            "use_adaptive_entropy": (False,),
            "entropy_coef_min": (0, None),
            "entropy_coef_max": (1, None),
            "entropy_coef_delta": (0.005, None),
            "entropy_target": (0.2, None),
        },
    ),
    (
        "it is called scale_rewards here (batch), with baseline=batch_mean for a mean of the batch",
        {"normalize_advantages": (False,)},
    ),
    (
        "a clipped reward is another reward: clip it in the function, where `rl4lm score` shows it",
        {"reward_clip_range": (None,)},
    ),
    (
        "rewards are added up by reward_weights and centred by `baseline` then; scale them in the "
        "functions where their sizes differ",
        {"multi_objective_aggregation": ("sum_then_normalize",)},
    ),
    (
        _LOG,
        {
            "log_completions": (False, True),
            "log_multimodal": (False, True),
            "num_completions_to_print": (None,),
            "log_unique_prompts": (False,),
            "log_completions_hub_repo": (None,),
        },
    ),
    ("tools and environments are not offered", {"max_tool_calling_iterations": (None,)}),
    (
        "log-softmax and what follows are float32 or better whatever the precision of the head",
        {"cast_lm_head_to_fp32": (False, True)},
    ),
    (
        "what a checkpoint needs has options of its own: dtype, attn_implementation, "
        "trust_remote_code; a model object goes to ReinforceTrainer(model=...)",
        {"model_init_kwargs": (None, {})},
    ),
    (
        "it is called eval_num_generations here, and goes with eval_pass_at_k, beside the greedy "
        "completion of each prompt",
        {"num_generations_eval": (None, 1)},
    ),
    ("rows always come in new orders, by `seed`", {"shuffle_dataset": (True,)}),
    (
        "adapters are plain LoRA: lora_r, lora_alpha, lora_target_modules; a peft_config of any "
        "kind goes to ReinforceTrainer",
        {
            "lora_target_parameters": (None,),
            "lora_modules_to_save": (None,),
            "lora_task_type": ("CAUSAL_LM",),
            "use_rslora": (False,),
            "use_dora": (False,),
        },
    ),
    (
        "it says how base weights are quantised, which has no such option here",
        {
            "bnb_4bit_quant_type": ("nf4",),
            "use_bnb_nested_quant": (False,),
            "bnb_4bit_quant_storage": (None,),
        },
    ),
    (
        "a model is named by a folder or a hub id, of which the newest revision is taken; download "
        "another one and name its folder",
        {"model_revision": ("main",)},
    ),
)
