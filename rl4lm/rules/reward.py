"""What keeps a run from learning in the reward functions themselves: silent, failing, slow."""

from __future__ import annotations

from rl4lm.rules.findings import Finding, Rule, RunLog, Severity, column, mean, percent


def rewards_do_not_apply(log: RunLog) -> Finding | None:
    """The rewards are None for many completions."""
    absent, drawn = mean(log.recent, "rewards_not_applicable"), _completions(log)
    share = absent / drawn if drawn > 0 else 0.0
    if share <= 0.1:
        return None
    severity = Severity.NOTE if share < 0.5 else Severity.WARNING
    return Finding(
        "rewards_do_not_apply",
        Severity.ERROR if share > 0.999 else severity,
        f"every reward was None for {percent(share)} of the completions of the last "
        f"{len(log.recent)} steps",
        "None means that no reward applies: such a completion teaches nothing, not even that it "
        "is bad",
        (
            "return 0.0 where the answer is missing or wrong, None only for rows of another task",
            "check that the reward reads the right columns: `rl4lm score --reward NAME --data "
            "ROWS` says what it gives",
        ),
        extent=share,
    )


def reward_function_silent(log: RunLog) -> Finding | None:
    """One of several rewards has said nothing but None."""
    silent = [
        name
        for name in _named(log, "mean")
        if all(name in row and row[name] is None for row in log.recent)
    ]
    if not silent:
        return None
    names = ", ".join(name.split("/")[1] for name in silent)
    return Finding(
        "reward_function_silent",
        Severity.WARNING,
        f"in the last {len(log.recent)} steps {names} was None for every completion",
        "the reward that is optimised is without it",
        ("check the columns that it reads", "take it out of reward_funcs"),
        extent=len(silent),
    )


def failing_reward(log: RunLog) -> Finding | None:
    """Rewards time out, crash, or are masked after an exception."""
    drawn = _completions(log)
    counted = {
        f"{name.split('/')[1]} {kind}": mean(log.recent, name)
        for kind in ("timeouts", "crashes", "masked")
        for name in _named(log, kind)
    }
    total = sum(counted.values())
    if drawn <= 0 or total / drawn < 0.02:
        return None
    told = ", ".join(f"{name} {value:.3g}" for name, value in counted.items() if value)
    return Finding(
        "failing_reward",
        Severity.WARNING if total / drawn < 0.5 else Severity.ERROR,
        f"per step of {drawn:.0f} completions, in the last {len(log.recent)} steps: {told}",
        "a completion whose reward hangs or crashes earns the least, whatever it says",
        (
            "read `detail` of such rows in completions/, and run the reward on them with "
            "`rl4lm score`",
            "a longer reward_timeout_s, if the reward is only slow",
        ),
        extent=total / drawn,
    )


def slow_rewards(log: RunLog) -> Finding | None:
    """Most of the time goes into rewards."""
    named = {str(name) for name in log.steps[-1] if str(name).startswith("time/")}
    parts = named - {"time/idle_s"}  # which lies within others
    seconds = {name: sum(column(log.recent, name)) for name in parts}
    total, scoring = sum(seconds.values()), seconds.get("time/score_s", 0.0)
    if total <= 0 or scoring < 0.5 * total:
        return None
    return Finding(
        "slow_rewards",
        Severity.NOTE if scoring < 0.8 * total else Severity.WARNING,
        f"{percent(scoring / total)} of the time of the last {len(log.recent)} steps went into "
        f"rewards, {scoring / len(log.recent):.2g} s a step",
        "the model waits",
        (
            "`rewards.per_sample`: such rewards work while others are still being sampled",
            "an async reward, if it waits for something",
            "a cheaper check first, that spares hopeless completions the dear one",
        ),
        extent=scoring / total,
    )


def _completions(log: RunLog) -> float:
    """Completions of a step, as configured."""
    prompts, group = log.option("prompts_per_step"), log.option("num_generations")
    return (prompts or 0.0) * (group or 0.0)


def _named(log: RunLog, kind: str) -> list[str]:
    """The metrics ``rewards/<name>/<kind>`` of the last step; those of rewards are in every one."""
    names = [str(name) for name in log.steps[-1]] if log.steps else []
    return [n for n in names if n.startswith("rewards/") and n.split("/")[2:] == [kind]]


RULES = (
    Rule(
        rewards_do_not_apply,
        "rewards that do not apply",
        {"rewards_not_applicable": 3},
        ("prompts_per_step", "num_generations"),
    ),
    Rule(reward_function_silent, "rewards that say nothing", {"step": 3}),
    Rule(failing_reward, "rewards that time out or crash", {"step": 3}, ("prompts_per_step",)),
    Rule(slow_rewards, "time that goes into rewards", {"time/score_s": 3}),
)
