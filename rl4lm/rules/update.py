"""What keeps a run from learning between the rewards and the weights: gradients and updates."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from rl4lm.rules.findings import (
    Finding,
    Row,
    Rule,
    RunLog,
    Severity,
    average,
    column,
    number,
    percent,
    trailing,
)

# Mean gap between sampling and training log-probs, and the largest in a step, that rounding
# explains. In bfloat16 the largest grows with the number of tokens: only the mean says anything.
EXPECTED_GAPS: Mapping[str, tuple[float, float]] = {
    "float64": (1e-10, 1e-8),
    "float32": (1e-4, 5e-3),
    "bfloat16": (5e-2, float("inf")),
}
_BFLOAT16_STEP = 2.0**-8  # between neighbouring numbers, relative to the larger power of two
_WEIGHT = 0.02  # a usual size of a weight


def no_gradient(log: RunLog) -> Finding | None:
    """Completions have an advantage, and no gradient reaches the trained parameters."""
    steps = trailing(log.steps, _has_lost_its_gradient)
    if steps < 2:
        return None
    adapters = log.config.get("use_peft") is True
    return Finding(
        "no_gradient",
        Severity.ERROR,
        f"grad_norm was 0 in the last {steps} steps, although completions had an advantage",
        "no gradient reaches the "
        + ("adapters" if adapters else "trained parameters")
        + ", so that no weight moves",
        (
            "compare lora_target_modules with the names of the model's layers"
            if adapters
            else "check that parameters have requires_grad=True",
            "fast_path false and activation_checkpointing false, to see whether one of them is it",
            "`rl4lm verify` with the same options",
        ),
        extent=steps,
    )


def learning_rate_is_zero(log: RunLog) -> Finding | None:
    """The optimizer runs with learning rate 0: as configured, or the schedule ended early."""
    steps = trailing(log.steps, lambda row: number(row.get("learning_rate")) == 0)
    warming = steps == len(log.steps) and (log.option("warmup_steps") or 0) >= steps
    if steps < 3 or (warming and log.option("learning_rate") != 0):
        return None
    always = steps == len(log.steps)
    return Finding(
        "learning_rate_is_zero",
        Severity.ERROR if always else Severity.WARNING,
        f"the learning rate was 0 in {'all' if always else 'the last'} {steps} steps",
        "steps with learning rate 0 change nothing",
        (
            "learning_rate above 0"
            if always
            else "max_steps of the whole run from the start: the schedule ends there",
            "lr_scheduler_type constant",
        ),
        extent=steps,
    )


def warm_up_too_long(log: RunLog) -> Finding | None:
    """The warm-up takes most of the run."""
    warmup, total = log.option("warmup_steps") or 0.0, log.option("max_steps") or 0.0
    if total <= 0 or warmup <= total / 2:
        return None
    return Finding(
        "warm_up_too_long",
        Severity.WARNING,
        f"warmup_steps is {warmup:.0f} and max_steps {total:.0f}",
        "the learning rate is below its peak in most steps, or never gets there",
        ("warmup_steps of a tenth of max_steps or less", "more max_steps"),
    )


def sampler_gap(log: RunLog) -> Finding | None:
    """Sampling and training disagree about the log-probs more than rounding explains."""
    dtype = _compute_dtype(log)
    allowed_mean, allowed_max = EXPECTED_GAPS.get(dtype, EXPECTED_GAPS["bfloat16"])
    means = column(log.recent, "sampler_gap_mean")
    largest = column(log.recent, "sampler_gap_max")
    beyond = sum(gap > allowed_mean for gap in means) + sum(gap > allowed_max for gap in largest)
    if beyond < 2:
        return None
    peak = f" and {max(largest):.2g} at most" if largest else ""
    return Finding(
        "sampler_gap",
        Severity.ERROR if average(means) > 10 * allowed_mean else Severity.WARNING,
        f"log-probs of sampling and training differ by {average(means):.2g} on average{peak}; "
        f"rounding in {dtype} explains {allowed_mean:.0e}",
        "completions come from another policy than the one that is differentiated: the gradient is "
        "biased",
        (
            "dtype float32" if dtype == "bfloat16" else "fast_path false, and report it as a bug",
            "attn_implementation eager, if the model's code or attention is its own",
        ),
        extent=average(means) / allowed_mean,
    )


def updates_below_resolution(log: RunLog) -> Finding | None:
    """Updates of bfloat16 weights are so small that rounding takes them away."""
    if log.text("dtype") != "pure_bfloat16":
        return None
    largest, half_step = _largest_update(log), _WEIGHT * _BFLOAT16_STEP / 2
    if not 0 < largest < half_step:
        return None
    adapters = log.config.get("use_peft") is True  # half of their weights begin at 0: finer there
    return Finding(
        "updates_below_resolution",
        Severity.WARNING if adapters or half_step < 3 * largest else Severity.ERROR,
        f"an update moves a weight by about {largest:.1g}, and a bfloat16 weight of {_WEIGHT} "
        f"stays what it is below {half_step:.0e}",
        "most updates are rounded away; training looks alive and changes almost nothing",
        (
            "dtype bfloat16, which computes in bfloat16 and keeps the weights in float32",
            f"learning_rate of {half_step:.0e} or more, if memory leaves no choice",
            *(() if adapters else ("use_peft: adapters are small enough for float32",)),
        ),
        extent=half_step / largest,
    )


def gradient_not_finite(log: RunLog) -> Finding | None:
    """Gradients that are infinite or no number: their steps are skipped."""
    bad = [row for row in log.steps if "grad_norm" in row and number(row["grad_norm"]) is None]
    if not bad:
        return None
    last = number(bad[-1].get("step"))
    many = len(bad) >= max(3, len(log.steps) // 20)
    return Finding(
        "gradient_not_finite",
        Severity.ERROR if many else Severity.WARNING,
        f"the gradient was not finite in {len(bad)} of {len(log.steps)} steps"
        + ("" if last is None else f", last in step {last:.0f}"),
        "such steps are skipped; several in a row stop the run",
        (
            "dtype float32",
            "a smaller learning_rate, or warmup_steps with lr_scheduler_type constant_with_warmup",
            "look for extreme rewards in completions/",
        ),
        extent=len(bad),
    )


def skipped_updates(log: RunLog) -> Finding | None:
    """Many steps had nothing to learn from."""
    skipped = [row for row in log.recent if row.get("updated") is False]
    share = len(skipped) / max(1, len(log.recent))
    if share < 0.5:
        return None
    return Finding(
        "skipped_updates",
        Severity.WARNING,
        f"{len(skipped)} of the last {len(log.recent)} steps made no update",
        "no completion of such a step had an advantage, or its gradient was not finite",
        ("more prompts_per_step", "more num_generations"),
        extent=share,
    )


def gradient_always_clipped(log: RunLog) -> Finding | None:
    """The gradient is scaled down in almost every step."""
    known = [row for row in log.steps if isinstance(row.get("grad_clipped"), bool)]
    share = sum(row["grad_clipped"] for row in known) / max(1, len(known))
    limit = log.option("max_grad_norm") or 0.0
    norms = column(known, "grad_norm")
    if len(known) < 10 or share < 0.9 or limit <= 0 or not norms:
        return None
    sgd = log.text("optim") == "sgd"
    return Finding(
        "gradient_always_clipped",
        Severity.WARNING if sgd else Severity.NOTE,
        f"the gradient was clipped in {percent(share)} of {len(known)} steps; its median norm "
        f"is {statistics.median(norms):.3g} and max_grad_norm {limit:g}",
        "every step is then equally long, however strong its signal"
        + (": learning_rate alone sets the pace" if sgd else "; AdamW evens most of that out"),
        (f"max_grad_norm near {statistics.median(norms) * 2:.2g}, or 0 for none",),
        extent=share,
    )


def _has_lost_its_gradient(row: Row) -> bool:
    live = number(row.get("effective_samples")) or 0.0
    return live > 0 and number(row.get("grad_norm")) == 0


def _compute_dtype(log: RunLog) -> str:
    """The precision of the computation, with ``auto`` decided by the device."""
    dtype = log.text("dtype") or "auto"
    if dtype == "auto":
        return "float32" if str(log.layout.get("device", "cpu")).startswith("cpu") else "bfloat16"
    return dtype.removeprefix("pure_")


def _largest_update(log: RunLog) -> float:
    """What an update moves a weight by, at most for SGD and about for AdamW."""
    rate = log.option("learning_rate") or 0.0
    if log.text("optim") != "sgd":
        return rate
    norms = column(log.steps, "grad_norm")
    limit = log.option("max_grad_norm") or 0.0
    norm = max(norms, default=0.0)
    return rate * (min(norm, limit) if limit > 0 else norm)


RULES = (
    Rule(no_gradient, "parameters without gradient", {"grad_norm": 2, "effective_samples": 2}),
    Rule(learning_rate_is_zero, "a learning rate of 0", {"learning_rate": 3}),
    Rule(warm_up_too_long, "a warm-up that takes most of the run", {}, ("max_steps",)),
    Rule(
        sampler_gap, "log-probs of sampling against training", {"sampler_gap_mean": 2}, ("dtype",)
    ),
    Rule(updates_below_resolution, "updates lost in rounding", {}, ("dtype", "learning_rate")),
    Rule(gradient_not_finite, "gradients that are not finite", {"step": 1}),
    Rule(skipped_updates, "steps without an update", {"step": 5}),
    Rule(gradient_always_clipped, "clipping of the gradient", {"grad_norm": 10}),
)
