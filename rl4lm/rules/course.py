"""What only the course of a run shows: where reward, entropy, lengths and held-out metrics went."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from rl4lm.rules.findings import (
    RECENT,
    Finding,
    Row,
    Rule,
    RunLog,
    Severity,
    average,
    column,
    mean,
    noise,
    number,
    percent,
    policy_rewards,
    solved,
    trend,
)

_COURSE = 15  # steps that a statement about the course of a run needs


def reward_not_rising(log: RunLog) -> Finding | None:
    """The reward is where it was, although there is something to learn from."""
    if log.text("sampler_url") is not None:
        return None  # a server's completions earn what they earned before
    rewards = policy_rewards(log.steps)
    before, after, error = trend(rewards)
    alive = mean(log.steps, "effective_share") > 0.05 and mean(log.steps, "learning_rate") > 0
    if abs(after - before) > 2 * error or solved(log) or not alive:
        return None
    return Finding(
        "reward_not_rising",
        Severity.WARNING,
        f"mean reward {before:.3g} in the first third of {len(rewards)} steps and {after:.3g} in "
        f"the last; the difference is within its noise of {error:.2g}{_signal(log)}",
        "completions differ and weights move, but too little, or too much at random, to show",
        (
            f"a larger learning_rate (peak now {max(column(log.steps, 'learning_rate')):.1g}): "
            "three to ten times as much",
            f"more max_steps (now {log.last_step})",
            "more completions in a step (prompts_per_step, num_generations), and a baseline that "
            "takes more of the noise away, such as prompt_leave_one_out",
        ),
    )


def reward_falls(log: RunLog) -> Finding | None:
    """The reward is well below what it was."""
    rewards = policy_rewards(log.steps)
    width = min(RECENT, len(rewards) // 3)
    blocks = [average(rewards[k : k + width]) for k in range(0, len(rewards) - width, width)]
    best, late, error = max(blocks), average(rewards[-width:]), noise(rewards, width)
    lost = best - late
    if lost <= 5 * error or lost < 0.1 * max(abs(best), mean(log.steps, "reward_std")):
        return None
    return Finding(
        "reward_falls",
        Severity.ERROR,
        f"mean reward {late:.3g} in the last {width} steps, after {best:.3g} in {width} others; "
        f"the noise of such a difference is {error:.2g}",
        "updates that follow the gradient raise the reward unless they are too long, or the "
        "objective has other terms",
        (
            "a learning_rate three to ten times smaller, or warmup_steps with "
            "lr_scheduler_type constant_with_warmup",
            "smaller beta or entropy_coef, if one of them is on",
            "`rl4lm verify` with the same options",
        ),
        extent=lost,
    )


def held_out_falls(log: RunLog) -> Finding | None:
    """The reward in training rises while the held-out metric gets worse."""
    metric = "accuracy" if column(log.evaluations, "accuracy") else "reward"
    values = column(log.evaluations, metric)
    before, after, spread = trend(policy_rewards(log.steps))
    if len(values) < 2 or after - before <= 2 * spread:
        return None
    best = max(values[:-1])
    error = _held_out_error(log, metric)
    if best - values[-1] <= 2 * math.sqrt(2) * error:
        return None
    return Finding(
        "held_out_falls",
        Severity.WARNING,
        f"held-out {metric} fell from {best:.3g} to {values[-1]:.3g} (standard error {error:.2g}) "
        f"while the reward in training rose from {before:.3g} to {after:.3g}",
        "the policy learns what pays in training and not the task: prompts by heart, or a gap in "
        "the reward",
        (
            "read the best-paid completions of the last steps",
            "more, or more varied, training prompts",
            "beta above 0, which keeps the policy near the reference",
            "eval_steps, and the weights of the best evaluation",
        ),
        extent=best - values[-1],
    )


def entropy_collapse(log: RunLog) -> Finding | None:
    """The policy has become all but deterministic with the task unsolved."""
    early, late = _early(log, "entropy"), mean(log.recent, "entropy")
    live = mean(log.recent, "effective_share")
    if early <= 0 or late > 0.1 * early or live > 0.2 or solved(log):
        return None
    return Finding(
        "entropy_collapse",
        Severity.WARNING,
        f"entropy fell from {early:.2g} to {late:.2g} nats per token; "
        f"{percent(live)} of the completions still have an advantage",
        "a policy that always says the same finds nothing better than what it says",
        (
            "a smaller learning_rate",
            "entropy_coef above 0, or beta above 0",
            "a baseline that leaves less noise, such as prompt_leave_one_out",
            "go back to a checkpoint from before the fall",
        ),
        extent=early / max(late, 1e-9),
    )


def length_explosion(log: RunLog) -> Finding | None:
    """Completions have become several times as long."""
    early, late = _early(log, _LENGTH), mean(log.recent, _LENGTH)
    if early <= 0 or late < 3 * early or late - early < 16:
        return None
    clipped = mean(log.recent, "completions/clipped_ratio")
    return Finding(
        "length_explosion",
        Severity.WARNING,
        f"completions grew from {early:.3g} to {late:.3g} tokens; {percent(clipped)} of them "
        "are cut off now",
        "where no reason of the task makes them grow, length itself pays, or ending does not",
        (
            "read completions/: does the reward pay for length or for repetition?",
            "a reward for ending, or a lower max_completion_length",
            "a smaller learning_rate, if the text has become noise",
        ),
        extent=late / early,
    )


def length_collapse(log: RunLog) -> Finding | None:
    """Completions have all but vanished."""
    early, late = _early(log, _LENGTH), mean(log.recent, _LENGTH)
    if early <= 0 or late > early / 3 or early - late < 4:
        return None
    return Finding(
        "length_collapse",
        Severity.WARNING,
        f"completions shrank from {early:.3g} to {late:.3g} tokens",
        "an early end is the easiest way out of a reward that takes off for mistakes or length",
        (
            "read completions/: is what is left an answer?",
            "a reward of an empty answer that is no better than that of a wrong one",
            "reward_weights, if one of several rewards is about length",
        ),
        extent=early / max(late, 1e-9),
    )


_LENGTH = "completions/mean_length"


def _early(log: RunLog, name: str) -> float:
    """The mean of a metric at the beginning: over a third of the steps, and not too many."""
    return mean(log.steps[: min(RECENT, max(1, len(log.steps) // 3))], name)


def _signal(log: RunLog) -> str:
    """What is known of signal and noise in a step's gradient."""
    ratios, scales = column(log.steps, "gradient_snr"), column(log.steps, "gradient_noise_scale")
    prompts, group = log.option("prompts_per_step"), log.option("num_generations")
    if not ratios or not scales or prompts is None or group is None:
        return ""
    return (
        f"; the gradient's signal is {statistics.median(ratios):.2g} of its noise, and it takes "
        f"{statistics.median(scales):.0f} completions a step to make them equal, against "
        f"{prompts * group:.0f}"
    )


def _held_out_error(log: RunLog, metric: str) -> float:
    """The standard error of the last evaluation, as logged or from the spread in training."""
    last: Row = log.evaluations[-1]
    told = number(last.get(f"{metric}_stderr"))
    if told is not None:
        return told
    return mean(log.steps, "reward_std") / math.sqrt(max(1.0, number(last.get("samples")) or 1.0))


RULES: Sequence[Rule] = (
    Rule(
        reward_not_rising,
        "a reward that stays where it was",
        {"reward": _COURSE, "learning_rate": _COURSE},
        while_running=False,
    ),
    Rule(reward_falls, "a reward that falls", {"reward": _COURSE}),
    Rule(
        held_out_falls,
        "held-out metrics against the reward",
        {"reward": _COURSE},
        evaluations=2,
        while_running=False,
    ),
    Rule(entropy_collapse, "collapse of the entropy", {"entropy": _COURSE}),
    Rule(length_explosion, "completions that grow", {_LENGTH: _COURSE}),
    Rule(length_collapse, "completions that shrink", {_LENGTH: _COURSE}),
)
