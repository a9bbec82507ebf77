"""Options of TRL's configurations and of transformers' TrainingArguments, answered.

Every one of them is either an option of this project or has its reason here or in
`rl4lm.settings.refusals`; a test goes through the fields of the TRL that is installed. The reasons
follow "because". Beside each group stand the values that ask for nothing, with which a
configuration written for TRL is taken as it is.
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
_KERNELS = (
    "the head is computed tile by tile as it is, so that logits of a batch never exist, and on a "
    "GPU decoding is captured as a graph; no other kernels are put in"
)
_EVERY_LINE = "metrics.jsonl has a line for every step; logging_steps is for the screen"
_EVALUATIONS = "evaluations come before and after training, and every eval_steps; see eval_samples"
_CHECKPOINTS = "a checkpoint is whole and can be resumed from, on one disk that all processes see"
_HUB = "it goes with a hub upload, and no such option has this name here"
_BEST = (
    "the checkpoint with the best evaluation is kept beside the newest ones (save_total_limit), "
    "by its accuracy where there is one, else its reward"
)
_SEED = "`seed` is of everything, and what is drawn is the same whatever the layout"
_LAUNCHER = "the launcher decides it: accelerate launch, with a file of recipes/accelerate"
_LOADER = (
    "prompts are read by their place in an endless stream of permutations, without a DataLoader"
)
_PROCESSES = "gradients are summed once after the backward pass, without hooks or buckets of DDP"
_PRECISION = "the precision is chosen by `dtype`, for training and evaluation alike"
_VERBS = "what is done is the verb: rl4lm train, rl4lm eval, rl4lm sample"
_SUPERVISED = "it is of supervised training; here completions are drawn and scored"
_MEMORY = (
    "a pass that does not fit is made again with half the max_tokens_per_micro_batch, which does "
    "not change the gradient"
)
_STEP = (
    "completions are drawn once a step, prompts_per_step x num_generations of them; further "
    "updates on the same ones are num_iterations"
)

# Group by group: the reason, then each option of it with the values that ask for nothing.
_GROUPS: tuple[tuple[str, Mapping[str, tuple[object, ...]]], ...] = (
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
    (_PROCESSES, {"ignore_bias_buffers": (False,)}),
    # transformers' TrainingArguments
    (
        "schedules are those of lr_scheduler_type with max_steps and warmup_steps",
        {"lr_scheduler_kwargs": (None, {})},
    ),
    (
        "the optimizer has options of its own: adam_beta1, adam_beta2, adam_epsilon, weight_decay",
        {"optim_args": (None,), "optim_target_modules": (None,)},
    ),
    (
        "the loss is divided by the completions of the whole step; loss_type=dapo by its tokens",
        {"average_tokens_across_devices": (True, False)},
    ),
    (_SUPERVISED, {"label_smoothing_factor": (0,), "label_names": (None, [])}),
    (_PRECISION, {"bf16_full_eval": (False,), "fp16_full_eval": (False,)}),
    (
        "activation_checkpointing is on or off, and has no further settings",
        {"gradient_checkpointing_kwargs": (None,), "activation_checkpointing_kwargs": (None,)},
    ),
    (
        _KERNELS,
        {
            "torch_compile": (False,),
            "torch_compile_backend": (None,),
            "torch_compile_mode": (None,),
            "use_liger_kernel": (False,),
            "liger_kernel_config": (None,),
        },
    ),
    (
        "noise on embeddings would make the sampled and the differentiated policy differ",
        {"neftune_noise_alpha": (None, 0)},
    ),
    (_MEMORY, {"torch_empty_cache_steps": (None,), "auto_find_batch_size": (False,)}),
    (
        _EVERY_LINE,
        {
            "logging_strategy": ("steps",),
            "logging_first_step": (False, True),
            "log_on_each_node": (True, False),
            "logging_nan_inf_filter": (True, False),
            "include_num_input_tokens_seen": ("no", False, True, "all", "non_padding"),
            "log_level": ("passive",),
            "log_level_replica": ("warning",),
            "disable_tqdm": (None, False),
            "logging_dir": (None,),
        },
    ),
    (
        _EVALUATIONS,
        {
            "eval_strategy": ("no", "steps"),
            "evaluation_strategy": ("no", "steps"),
            "eval_delay": (0, None),
            "eval_on_start": (True,),
            "prediction_loss_only": (False,),
            "eval_do_concat_batches": (True,),
            "eval_use_gather_object": (False,),
            "eval_accumulation_steps": (None,),
            "include_for_metrics": ([], None),
            "batch_eval_metrics": (False,),
        },
    ),
    (
        _CHECKPOINTS,
        {
            "save_only_model": (False,),
            "save_on_each_node": (False,),
            "save_safetensors": (True,),
            "enable_jit_checkpoint": (False,),
            "ignore_data_skip": (False,),
            "restore_callback_states_from_checkpoint": (False,),
        },
    ),
    (
        _HUB,
        {
            "hub_token": (None,),
            "hub_strategy": ("every_save",),
            "hub_always_push": (False,),
            "hub_revision": (None,),
        },
    ),
    (
        "trackers are named by report_to, and take what else they need from their own settings",
        {
            "trackio_space_id": (None,),
            "trackio_bucket_id": (None,),
            "trackio_static_space_id": (None,),
        },
    ),
    (
        _BEST,
        {
            "load_best_model_at_end": (False,),
            "metric_for_best_model": (None,),
            "greater_is_better": (None,),
        },
    ),
    (_SEED, {"data_seed": (None,), "full_determinism": (False, True)}),
    (
        _LAUNCHER,
        {
            "use_cpu": (False,),
            "accelerator_config": (None, {}),
            "parallelism_config": (None,),
            "ddp_backend": (None,),
            "local_rank": (-1, 0, None),
        },
    ),
    (
        _LOADER,
        {
            "dataloader_drop_last": (False, True),
            "dataloader_num_workers": (0,),
            "dataloader_pin_memory": (True, False),
            "dataloader_persistent_workers": (False,),
            "dataloader_prefetch_factor": (None,),
            "dataloader_multiprocessing_context": (None,),
            "dataloader_in_order": (True,),
            "train_sampling_strategy": ("random",),
            "group_by_length": (False,),
            "length_column_name": ("length",),
        },
    ),
    (
        _PROCESSES,
        {
            "ddp_find_unused_parameters": (None, False),
            "ddp_bucket_cap_mb": (None,),
            "ddp_broadcast_buffers": (None, False),
            "ddp_static_graph": (None, False),
        },
    ),
    (
        "`rl4lm doctor`, `verify` and `replay` look for what is wrong in a run",
        {"debug": ("", [], None)},
    ),
    (
        "peak memory is measured in every run, as peak_memory_bytes in summary.json",
        {"skip_memory_metrics": (True, False)},
    ),
    (
        _VERBS,
        {"do_train": (True, False), "do_eval": (True, False), "do_predict": (False,)},
    ),
)

# Option -> the reason why it is not taken, in words that follow "because".
REASONS: Mapping[str, str] = {name: reason for reason, names in _GROUPS for name in names}
# Option -> values that ask for nothing.
NOTHING: Mapping[str, tuple[object, ...]] = {
    name: values for _, names in _GROUPS for name, values in names.items()
}
