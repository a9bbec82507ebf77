"""What the files themselves say of a run: cut short, broken, empty."""

from __future__ import annotations

from rl4lm.rules.findings import Finding, Rule, RunLog, Severity


def nothing_logged(log: RunLog) -> Finding | None:
    """No step has been finished."""
    if log.steps:
        return None
    return Finding(
        "nothing_logged",
        Severity.ERROR,
        "metrics.jsonl holds no step",
        "the run ended, or hangs, before its first step was done",
        ("read the output of the run", "start it again with a small prompts_per_step"),
    )


def damaged_files(log: RunLog) -> Finding | None:
    """Files of the run that are missing or hold broken lines."""
    if not log.damage:
        return None
    return Finding(
        "damaged_files",
        Severity.NOTE,
        "; ".join(log.damage),
        "what could not be read is left out here; a run that was killed may break off in a line",
        ("nothing, if the run is still writing or was stopped by force",),
        extent=len(log.damage),
    )


def unfinished_run(log: RunLog) -> Finding | None:
    """There is no summary: the run goes on, or it was cut short."""
    if log.finished:
        return None
    total = log.option("max_steps")
    return Finding(
        "unfinished_run",
        Severity.WARNING,
        f"no summary.json; the last step logged is {log.last_step}"
        + ("" if total is None else f" of {total:.0f}"),
        "a run that ended early has no final weights in model/ and no evaluation after training",
        (
            "nothing, if it is still running",
            "otherwise read the end of its output; memory and time limits are the usual reasons",
        ),
    )


RULES = (
    Rule(nothing_logged, "whether anything was logged", while_running=False),
    Rule(damaged_files, "broken files", while_running=False),
    Rule(unfinished_run, "whether the run came to its end", while_running=False),
)
