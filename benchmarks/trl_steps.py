"""TRL's GRPOTrainer and RLOOTrainer, at settings that make them fast, one step at a time.

TRL has no public single step, so a callback of its trainer waits for the word where a step has
ended. Not imported where TRL is not asked for.
"""

from __future__ import annotations

from typing import Any

import trl
from contenders import CLIP, LEARNING_RATE, Job, Turns, material
from datasets import Dataset
from shapes import Shape, hashed, lora_config
from transformers import TrainerCallback


def run(job: Job, turns: Turns) -> None:
    """Make steps of the trainer that the job names, whenever it is told to."""
    model, tokenizer, prompts, shape = material(job)
    rloo = job.contender == "trl_rloo"
    config, settings = _configure(job, shape, trl.RLOOConfig if rloo else trl.GRPOConfig)
    trainer = (trl.RLOOTrainer if rloo else trl.GRPOTrainer)(
        model=model,
        reward_funcs=hashed,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
        peft_config=lora_config() if job.variant == "lora" else None,
    )
    _time_parts(trainer, turns)

    class OneStepAtATime(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.ready(settings)
            turns.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.report(trainer._metrics["train"]["completions/mean_length"][-1])
            turns.wait()

    trainer.add_callback(OneStepAtATime())
    trainer.train()


def _configure(job: Job, shape: Shape, make: Any) -> tuple[Any, dict[str, Any]]:
    cuda = job.device == "cuda"
    settings = {
        "per_device_train_batch_size": job.micro,
        "gradient_accumulation_steps": shape.completions // job.micro,
        "num_generations": max(2, shape.samples),
        "max_completion_length": shape.new_tokens,
        "max_steps": job.max_steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": CLIP,
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "optim": "adamw_torch_fused",
        "bf16": cuda,
        "use_cpu": not cuda,
        "gradient_checkpointing": False,
        "beta": 0.0,
        "num_iterations": 1,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "disable_dropout": True,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": cuda,
        "output_dir": "/nonexistent",  # nothing is saved
    }
    if job.contender != "trl_rloo":
        settings |= {"loss_type": "dr_grpo", "scale_rewards": "none"}  # the nearest to REINFORCE
    config = make(**settings)
    # TRL refuses one sample a prompt, whose advantage is 0; the arithmetic is the same with it.
    config.num_generations = settings["num_generations"] = shape.samples
    return config, settings


def _time_parts(trainer: Any, turns: Turns) -> None:
    parts, sync = turns.parts, turns.synchronize
    parts.wrap(trainer.accelerator.unwrap_model(trainer.model), "generate", "sampling", sync)
    parts.wrap(trainer, "_calculate_rewards", "scoring", sync)
    parts.wrap(trainer, "_get_per_token_logps_and_entropies", "forward", sync)
    parts.wrap(trainer, "compute_loss", "loss", sync)
    parts.wrap(trainer.accelerator, "backward", "backward", sync)
