"""What keeps a run from learning before any gradient: completions and rewards without a signal."""

from __future__ import annotations

from rl4lm.estimator.names import COMPARES_WITHIN_PROMPT
from rl4lm.rules.findings import (
    Finding,
    Row,
    Rule,
    RunLog,
    Severity,
    average,
    column,
    mean,
    number,
    percent,
    policy_rewards,
    solved,
    trailing,
)

_SHARE_LEFT = "importance_ratio/effective_share"
_FRESH = 0.1  # share of further samples below which the samples of a prompt are one and the same
_AFTER_A_FALL = (
    "if updates broke what the policy could do: start again, or from an earlier checkpoint, with a "
    "learning_rate three to ten times smaller",
)


def completions_cut_off(log: RunLog) -> Finding | None:
    """Most completions reach the length limit instead of ending."""
    share = mean(log.recent, "completions/clipped_ratio")
    if share < 0.5:
        return None
    never = share > 0.999
    no_signal = mean(log.recent, "effective_share") < 0.01
    limit = log.option("max_completion_length")
    limited = f" at {limit:.0f} tokens" if limit is not None else ""
    return Finding(
        "completions_cut_off",
        Severity.ERROR if never and no_signal else Severity.WARNING,
        f"{percent(share)} of the completions of the last {len(log.recent)} steps were cut off"
        f"{limited}" + ("; the end token is never sampled" if never else ""),
        "a completion that never ends has no final answer to score, and ending is never rewarded",
        (
            "raise max_completion_length above what an answer takes",
            "name what ends an answer with stop_strings or stop_token_ids",
            "look at completions/: a model that is not tuned to answer needs a prompt in the form "
            "that it knows, with chat messages in the prompt column for a chat model",
        ),
        extent=share,
    )


def constant_reward(log: RunLog) -> Finding | None:
    """All completions of many steps earned exactly the same."""
    level = next(iter(column(reversed(log.steps), "reward")), None)
    if level is None or solved(log, level):
        return None
    steps = trailing(log.steps, lambda row: _is_constant(row, level))
    if steps < 5:
        return None
    before = max(policy_rewards(log.steps[:-steps]), default=level)
    fell = before > level
    return Finding(
        "constant_reward",
        Severity.ERROR,
        f"every completion of the last {steps} steps earned {level:g}"
        + (f", after a mean of up to {before:.3g} in earlier steps" if fell else ""),
        "REINFORCE learns from differences between rewards; where there are none the gradient is 0",
        (
            *(_AFTER_A_FALL if fell else ()),
            "try the reward on an answer that you know to be right: `rl4lm score --reward NAME "
            "--data ROWS`; a wrong column or format scores everything alike",
            "if no answer is ever right: easier prompts, a stronger model, more samples "
            "(num_generations), or a reward that also pays for part of the way",
            "if all answers are right: harder prompts",
        ),
        extent=steps,
    )


def equal_rewards_within_prompts(log: RunLog) -> Finding | None:
    """Samples of a prompt earn the same, so that a baseline per prompt leaves nothing."""
    if not _compares_within_prompt(log):
        return None
    share = mean(log.recent, "frac_reward_zero_std")
    if share < 0.9 or solved(log):
        return None
    return Finding(
        "equal_rewards_within_prompts",
        Severity.ERROR if share > 0.999 else Severity.WARNING,
        f"in {percent(share)} of the prompts of the last {len(log.recent)} steps all samples "
        f"earned the same; mean reward {average(policy_rewards(log.recent)):.3g}",
        "the baseline of a prompt is the mean of its samples: equal rewards have advantage 0, and "
        "the prompt teaches nothing",
        (
            "more samples per prompt (num_generations), so that some differ",
            "prompts nearer to what the model can do: about half right is best",
            "a reward that also pays for part of the way, such as the right format",
            "baseline batch_leave_one_out, which compares with other prompts",
        ),
        extent=share,
    )


def nothing_left_to_learn(log: RunLog) -> Finding | None:
    """The prompts are solved."""
    if not solved(log):
        return None
    highest = max(s.highest for s in log.samples if s.highest is not None)
    return Finding(
        "nothing_left_to_learn",
        Severity.NOTE,
        f"mean reward {average(policy_rewards(log.recent)):.3g} in the last {len(log.recent)} "
        f"steps, the highest ever paid is {highest:.3g}; "
        f"{percent(mean(log.recent, 'effective_share'))} of the completions still have an "
        "advantage",
        "prompts that are always answered right teach nothing more",
        ("harder prompts", "stop here"),
    )


def duplicate_samples(log: RunLog) -> Finding | None:
    """The samples of a prompt are all but the same."""
    known = [s.fresh for s in log.samples[-10:] if s.fresh is not None]
    fresh = average(known)
    if len(known) < 2 or fresh >= _FRESH or solved(log):
        return None
    if mean(log.recent, "frac_reward_zero_std") < 0.9:  # what does differ still teaches
        return None
    return Finding(
        "duplicate_samples",
        Severity.WARNING,
        f"of a prompt's samples after the first only {percent(fresh)} differ from one another "
        f"({len(known)} steps looked at; case and white space aside)",
        "equal samples earn equal rewards: they cost time and teach nothing",
        (
            "raise temperature towards 1",
            "entropy_coef above 0, or a smaller learning_rate, if they differed at the start",
            "prompts that leave more than one answer open",
        ),
        extent=1 - fresh,
    )


def sampler_left_behind(log: RunLog) -> Finding | None:
    """A server's weights stay what they are, and the policy has gone where it hardly draws."""
    shares = column(log.recent, _SHARE_LEFT)
    left = average(shares)
    if len(shares) < 2 or left >= 0.5:
        return None
    return Finding(
        "sampler_left_behind",
        Severity.ERROR if left < 0.1 else Severity.WARNING,
        f"by their importance ratios {percent(left)} of the completions of the last {len(shares)} "
        "steps are left",
        "the server draws from weights that do not follow the training: a few completions decide "
        "each step",
        (
            "serve the newest weights, and start the next run from them",
            "a smaller learning_rate, or fewer max_steps between two such runs",
            "without sampler_url the policy draws for itself",
        ),
        extent=1 / max(left, 1e-3),
    )


def _is_constant(row: Row, level: float) -> bool:
    reward, spread = number(row.get("reward")), number(row.get("reward_std"))
    # A lone completion has no spread at all.
    narrow = spread is None or spread <= 1e-9 * max(abs(level), 1e-9)
    return narrow and reward is not None and abs(reward - level) <= 1e-9 * abs(level)


def _compares_within_prompt(log: RunLog) -> bool:
    several = (log.option("num_generations") or 0) > 1
    baseline = log.text("baseline")
    return several and (baseline == "auto" or baseline in COMPARES_WITHIN_PROMPT)


RULES = (
    Rule(completions_cut_off, "completions that never end", {"completions/clipped_ratio": 3}),
    Rule(constant_reward, "rewards that never differ", {"reward": 5}),
    Rule(
        equal_rewards_within_prompts,
        "equal rewards within every prompt",
        {"frac_reward_zero_std": 5},
        ("num_generations", "baseline"),
    ),
    Rule(nothing_left_to_learn, "prompts that are too easy", {"reward": 5}, samples=1),
    Rule(
        duplicate_samples,
        "samples of a prompt that are all the same",
        {"frac_reward_zero_std": 5},
        ("num_generations",),
        samples=2,
    ),
    Rule(sampler_left_behind, "how far the policy has left a server behind"),
)
