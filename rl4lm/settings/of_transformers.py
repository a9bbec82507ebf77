"""Options of transformers' TrainingArguments, answered group by group.

As in `rl4lm.settings.of_trl`, of which one stands here, with the options of DDP.
"""

from __future__ import annotations

from collections.abc import Mapping

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

GROUPS: tuple[tuple[str, Mapping[str, tuple[object, ...]]], ...] = (
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
            "ignore_bias_buffers": (False,),
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
