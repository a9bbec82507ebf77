"""Tables of completions, of evaluations alone or side by side, of what was verified or replayed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import JustifyMethod
from rich.markup import escape
from rich.table import Table

from rl4lm.screen.wording import (
    data_sets,
    evaluation_value,
    groups_of,
    headline,
    interval_of,
    measures,
    one_line,
    told_value,
    value_rows,
)

_SURE = 0.001  # p-values below it are told as such


def completions_table(rows: Iterable[Mapping[str, Any]], room: int) -> Table:
    """Completions of a step with reward and advantage; ``room``: columns for a text."""
    table = Table(box=None, padding=(0, 2))
    for header in ("prompt", "completion", "reward", "advantage"):
        justify: JustifyMethod = "left" if header == "completion" else "right"
        table.add_column(header, justify=justify, overflow="ellipsis", no_wrap=True)
    for row in rows:
        cut = " (cut off)" if row["truncated"] else ""
        table.add_row(
            one_line(row["prompt"], room),
            one_line(row["completion"], room) + cut,
            "none" if row["reward"] is None else f"{row['reward']:.2f}",
            f"{row['advantage']:+.2f}",
        )
    return table


def samples_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Completions with their log-probability."""
    table = Table(box=None, padding=(0, 2))
    for header in ("prompt", "completion", "log π"):
        justify: JustifyMethod = "right" if header == "log π" else "left"
        table.add_column(header, justify=justify, overflow="fold")
    for row in rows:
        cut = " (cut off)" if row["truncated"] else ""
        text = one_line(row["completion"], 200) + cut
        table.add_row(one_line(row["prompt"]), text, f"{row['logprob']:.2f}")
    return table


def evaluation_table(metrics: Mapping[str, float]) -> Table:
    """A row per metric with its interval, data set by data set."""
    table = Table(box=None, padding=(0, 2))
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column(_interval_header(metrics), justify="right")
    for name in [name for prefix in data_sets(metrics) for name in headline(metrics, prefix)]:
        value = evaluation_value(name, metrics[name])
        table.add_row(escape(name), value, interval_of(name, metrics))
    return table


def group_tables(metrics: Mapping[str, float]) -> Iterator[tuple[list[Table], list[Table]]]:
    """For each data set with groups the layouts of its table: a row per group.

    Yields:
        One table with a column per metric; for narrow screens a table per metric.
    """
    for prefix in data_sets(metrics):
        if groups_of(metrics, prefix):
            names = measures(metrics, prefix)
            whole = [_group_table(metrics, prefix, names)]
            yield whole, [_group_table(metrics, prefix, [name]) for name in names]


def _group_table(metrics: Mapping[str, float], prefix: str, names: Sequence[str]) -> Table:
    table = _plain_table()
    table.add_column(prefix.rstrip("/"))
    for name in ["prompts", *(name.removeprefix(prefix) for name in names)]:
        table.add_column(escape(name), justify="right")
    for group in groups_of(metrics, prefix):
        values = [told_value(f"{name}/{group}", metrics) for name in names]
        table.add_row(escape(group), f"{metrics[f'{prefix}samples/{group}']:.0f}", *values)
    return table


def versus(
    names: tuple[str, str],
    second: Mapping[str, float],
    first: Mapping[str, float],
    found: Mapping[str, Mapping[str, Any]],
) -> tuple[list[Table], list[Table]]:
    """Two evaluations of the same prompts, and what is known of the differences.

    Args:
        names: of the two, in the order of the columns.
        second: metrics of what is compared with.
        first: metrics of what the differences are told of.
        found: outcome -> `rl4lm.evaluation.paired.Comparison` as plain values; may be empty.

    Returns:
        Two layouts: all in one table; the values in one and the differences in another.
    """
    headers = ["difference", _interval_header(first), "p", "better", "worse"] if found else []
    rows = value_rows(second, first)
    whole = [
        [escape(label), *cells, *_difference(name, found.get(name))] for name, label, cells in rows
    ]
    values = [[escape(label), *cells] for _, label, cells in rows]
    differences = [
        [escape(label), *_difference(name, found[name])] for name, label, _ in rows if name in found
    ]
    stacked = [_compared(["", *names], values)]
    stacked += [_compared(["", *headers], differences)] if found else []
    return [_compared(["", *names, *headers], whole)], stacked


def _compared(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = _plain_table()
    for header in headers:
        table.add_column(escape(header), justify="right" if header else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def checks_table(checks: Iterable[Mapping[str, Any]]) -> Table:
    """What `verify` compared, and how far off it may be."""
    table = Table(box=None, padding=(0, 2))
    for header in ("check", "found", "allowed", ""):
        table.add_column(header, justify="left" if header in ("check", "") else "right")
    for check in checks:
        passed = "ok" if check["passed"] else "[bold red]FAILED[/]"
        table.add_row(
            escape(check["name"]), f"{check['value']:.2g}", f"{check['limit']:.0e}", passed
        )
    return table


def variances_table(variances: Mapping[str, float]) -> Table:
    """What each baseline does to the variance of a step's gradient."""
    table = Table(box=None, padding=(0, 2))
    table.add_column("baseline")
    table.add_column("variance of a step's gradient, none = 1", justify="right")
    for name, value in variances.items():
        table.add_row(name, f"{value:.3f}")
    return table


def replayed_table(step: Mapping[str, Any]) -> Table:
    """A step as it was logged, and done again."""
    table = Table(box=None, padding=(0, 2))
    for header in ("step", "", "loss", "gradient norm", "relative difference"):
        table.add_column(header, justify="right")
    logged = f"{step['loss']:.9g}", f"{step['grad_norm']:.9g}"
    table.add_row(str(step["step"]), "logged", *logged)
    again = f"{step['loss_again']:.9g}", f"{step['grad_norm_again']:.9g}"
    table.add_row("", "again", *again, f"{step['difference']:.1e}")
    return table


def _plain_table() -> Table:
    return Table(box=None, padding=(0, 2, 0, 0))


def _interval_header(metrics: Mapping[str, float]) -> str:
    return f"{100 * metrics['confidence']:g} % interval" if "confidence" in metrics else ""


def _difference(name: str, found: Mapping[str, Any] | None) -> list[str]:
    """Difference, interval, p-value; on how many prompts the first is better, and worse."""
    if found is None:
        return []  # rich leaves the rest of a row empty
    p_value = found["p_value"]
    ends = [_signed(name, found[end]).removesuffix(" %") for end in ("low", "high")]
    return [
        _signed(name, found["difference"]),
        "" if "-" in ends else " to ".join(ends),
        f"< {_SURE}" if p_value < _SURE else f"{p_value:.3f}",
        str(found["only_first"]),
        str(found["only_second"]),
    ]


def _signed(name: str, value: float) -> str:
    shown = evaluation_value(name, value)
    return f"+{shown}" if value > 0 else shown
