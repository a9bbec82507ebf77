"""Whether the trainer's gradient is that of the stated objective: by enumeration, on a tiny model.

    rl4lm verify [--config FILE] [--option value ...] [--all] [--json]

A real `ReinforceTrainer`, with the user's estimator options, works on the problem of
`rl4lm.exact.enumeration`, whose every completion has been written down. Nothing of the trainer is
copied here: its sampler, its scoring, its baselines, losses, micro-batches and optimizer step are
run as they are, and what they do is compared with what autograd through the probabilities says.

The expected gradient is linear in the weight of each completion, and a weight is an expectation
over all batches, which the vectorised baselines give exactly. So the whole distribution of steps is
checked by (1) one call of `trainer.gradient` on all completions with their expected weights, and
(2) whole batches through the complete step, each of which must be what linearity predicts.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from rl4lm.config import ReinforceConfig
from rl4lm.curriculum import AS_THEY_COME
from rl4lm.data.splits import AS_GIVEN
from rl4lm.estimator.baselines import SCALES
from rl4lm.exact.cases import every_case
from rl4lm.exact.checks import Check, at_most, check_batches, check_sampler, relative
from rl4lm.exact.enumeration import PROMPTS, all_completions
from rl4lm.exact.expectation import Expectation
from rl4lm.exact.steps import draw, run_whole_batches
from rl4lm.exact.testbed import Testbed
from rl4lm.objective import direct_terms

WHOLE_BATCHES = 50
DRAWS = 2000  # completions of each prompt drawn to test the sampler
_MOST_BATCHES = 120_000  # enumerated; completions are one token shorter where there would be more
_MOST_GENERATIONS = 3
_MOST_WORKERS = 4


@dataclass(frozen=True)
class Report:
    """What `verify` found about one set of options."""

    options: Mapping[str, Any]
    verdict: str  # "exact", "another objective" or "failed"
    objective: str  # J, in words
    scale: float  # expected gradient = scale · ∇J
    why: str  # why it is another objective; empty where it is not
    cosine: float  # of the expected gradient to ∇J
    residual: float  # ‖expected / scale - ∇J‖ / ‖∇J‖
    checks: tuple[Check, ...]
    variance: Mapping[str, float]  # baseline -> variance of a step's gradient relative to `none`

    @property
    def passed(self) -> bool:
        """Whether the gradient is that of the stated objective; never so for another one."""
        return self.verdict == "exact"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "verdict": self.verdict,
            "passed": self.passed,
            "objective": self.objective,
            "scale": self.scale,
            "why": self.why,
            "cosine": self.cosine,
            "residual": self.residual,
            "checks": [vars(check) for check in self.checks],
            "variance": dict(self.variance),
            "options": dict(self.options),
        }


def verify(config: ReinforceConfig, token_rewards: bool = False, variances: bool = True) -> Report:
    """Check the estimator that a configuration asks for.

    Args:
        config: its baseline, temperature, LoRA, KL, entropy, discount and clip are taken; model,
            data, rewards and optimizer are the tiny problem's.
        token_rewards: pay every token apart, instead of the completion as a whole.
        variances: compare the variances of all baselines too.

    Returns:
        The checks and the verdict.
    """
    setting = _setting(config)
    bed = Testbed(setting, token_rewards)
    batches = run_whole_batches(bed, WHOLE_BATCHES)  # first: it gives baselines a history
    step = Expectation(bed)
    expected, stated, truth = step.gradient(), step.stated(), bed.true_gradient()
    shrunk = SCALES[setting.resolved_baseline](len(PROMPTS), setting.num_generations)
    constant = setting.max_completion_length if setting.loss_type == "dr_grpo" else 1
    scale = shrunk / constant
    why = "; ".join([*_reasons(setting, shrunk), *_reasons_of_prompts(config)])
    residual = relative(expected / scale, truth)
    checks = [
        at_most("log-probs of every completion", bed.logprob_error()),
        at_most("expected gradient against the stated one", relative(expected, stated)),
        *([] if why else [at_most("expected gradient against ∇J", residual)]),
        *check_batches(batches, stated, step.spread(stated / stated.norm())),
        *check_sampler(draw(bed, DRAWS)),
    ]
    failed = not all(check.passed for check in checks)
    return Report(
        options={**_shown(setting, token_rewards), "processes": bed.trainer.world.size},
        verdict="failed" if failed else "another objective" if why else "exact",
        objective=_objective(setting, token_rewards),
        scale=scale,
        why=why,
        cosine=float(torch.cosine_similarity(expected, truth, dim=0)),
        residual=residual,
        checks=tuple(checks),
        variance=step.variances() if variances else {},
    )


def verify_all(config: ReinforceConfig, prepare: Callable[[], None]) -> Iterator[Report]:
    """`verify` of `every_case` in order, side by side on the cores of the machine.

    Args:
        config: gives what the cases leave open, such as the seed.
        prepare: called once in each process that helps; picklable.
    """
    cases = list(every_case(config))
    workers = min(_MOST_WORKERS, os.cpu_count() or 1)
    if workers == 1 or "RANK" in os.environ:  # launched processes work together on every case
        yield from map(_without_variances, cases)
        return
    # Spawned, because a forked process may inherit a lock that one of torch's threads holds.
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawned, initializer=prepare) as pool:
        yield from pool.map(_without_variances, cases)


def _without_variances(case: tuple[ReinforceConfig, bool]) -> Report:
    return verify(*case, variances=False)


def _setting(config: ReinforceConfig) -> ReinforceConfig:
    """The user's estimator on the tiny problem, stepped by plain SGD so that a step shows ∇L."""
    generations = min(config.num_generations, _MOST_GENERATIONS)
    return replace(
        config,
        model_name_or_path="given in Python",
        dtype="float64",
        attn_implementation=None,
        lora_target_modules=None,
        dataset_test_split=None,
        **AS_GIVEN,
        chat_template_kwargs=[],
        reward_funcs=["rewards.arithmetic:exact_answer"],
        reward_weights=None,
        accuracy_func=None,
        prompts_per_step=len(PROMPTS),
        num_generations=generations,
        max_completion_length=_longest(len(PROMPTS) * generations),
        stop_strings=[],
        stop_token_ids=[],
        **AS_THEY_COME,
        sampler_url=None,
        sampler_model=None,
        optim="sgd",
        learning_rate=0.5,
        weight_decay=0.0,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_steps=10**6,
        max_tokens_per_micro_batch=16,  # so that a batch is cut into several
        output_dir=None,
        eval_samples=0,
        noise_every=7,  # so that steps differentiated in halves are checked too
        torch_threads=1,  # more make a model of this size slower
    )


def _longest(batch: int) -> int:
    """The longest completions for which all batches of `batch` completions can be enumerated."""
    length = 3
    while length > 1 and len(all_completions(length)) ** batch > _MOST_BATCHES:
        length -= 1
    return length


def _reasons(config: ReinforceConfig, scale: float) -> Iterator[str]:
    """Why a configuration follows another objective than J, by design."""
    if config.beta and config.kl_in == "grpo_k3":
        yield "k3 in the loss is not the gradient of the KL divergence"
    if config.entropy_coef and config.entropy_in == "loss":
        yield "the direct term alone is a regulariser, not the gradient of the entropy"
    if config.gamma < 1:
        yield "discounted returns-to-go are the gradient of no function of the weights"
    if config.resolved_epsilon is not None:
        yield "from the second update on the completions are clipped; the first is exact"
    if config.loss_type in ("grpo", "dapo"):
        yield "a mean over tokens weighs completions by lengths that the policy has drawn"
    if config.scale_rewards != "none":
        yield "a standard deviation of the drawn rewards divides what they say"
    if config.mask_truncated_completions:
        yield "what the length limit cuts off is left out, whatever it earned"
    if scale != 1 and direct_terms(config):
        yield f"the baseline shrinks the reward's part to {scale:.3g}, and the loss's part not"


def _reasons_of_prompts(config: ReinforceConfig) -> Iterator[str]:
    """The same, for options that the tiny problem has too few prompts for."""
    if config.curriculum != "none":
        yield "a curriculum draws other prompts at every step than the data as they come"


def _objective(config: ReinforceConfig, token_rewards: bool) -> str:
    """J in words."""
    terms = ["E[Σ_t r_t]" if token_rewards else "E[r]"]
    if config.beta:
        terms.append(f"- {config.beta:g} KL(π‖π_ref)")
    if config.entropy_coef:
        terms.append(f"+ {config.entropy_coef:g} H(π)")
    return " ".join(terms)


def _shown(config: ReinforceConfig, token_rewards: bool) -> dict[str, Any]:
    names = ["num_generations", "temperature", "use_peft", "gamma", "beta", "kl_in"]
    names += ["entropy_coef", "entropy_in", "num_iterations", "epsilon", "seed"]
    names += ["loss_type", "scale_rewards", "mask_truncated_completions"]
    return {
        "baseline": config.resolved_baseline,
        **{name: getattr(config, name) for name in names},
        "token_rewards": token_rewards,
        "completions_of_a_prompt": len(all_completions(config.max_completion_length)),
    }
