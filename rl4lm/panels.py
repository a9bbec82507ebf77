"""Tables of evaluations: one, or two of the same prompts side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from rl4lm.wording import (
    data_sets,
    evaluation_value,
    groups_of,
    headline,
    interval_of,
    measures,
    told_value,
)

_SURE = 0.001  # p-values below it are told as such


def evaluation_table(title: str, metrics: Mapping[str, float]) -> Table:
    """A row per metric with its interval, data set by data set."""
    table = Table(title=escape(title), title_justify="left", box=None, padding=(0, 2))
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column(_interval_header(metrics), justify="right")
    for name in [name for prefix in data_sets(metrics) for name in headline(metrics, prefix)]:
        value = evaluation_value(name, metrics[name])
        table.add_row(escape(name), value, interval_of(name, metrics))
    return table


def group_tables(metrics: Mapping[str, float]) -> Iterator[Table]:
    """For each data set with groups a table: a row per group, a column per metric."""
    for prefix in data_sets(metrics):
        groups = groups_of(metrics, prefix)
        if not groups:
            continue
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column(prefix.rstrip("/"))
        names = measures(metrics, prefix)
        for name in ["prompts", *(name.removeprefix(prefix) for name in names)]:
            table.add_column(escape(name), justify="right")
        for group in groups:
            values = [told_value(f"{name}/{group}", metrics) for name in names]
            table.add_row(escape(group), f"{metrics[f'{prefix}samples/{group}']:.0f}", *values)
        yield table


def versus(
    names: tuple[str, str],
    second: Mapping[str, float],
    first: Mapping[str, float],
    found: Mapping[str, Mapping[str, Any]],
) -> Table:
    """Two evaluations of the same prompts, and what is known of the differences.

    Args:
        names: of the two, in the order of the columns.
        second: metrics of what is compared with.
        first: metrics of what the differences are told of.
        found: outcome -> `rl4lm.paired.Comparison` as plain values; may be empty.
    """
    table = Table(box=None, padding=(0, 2, 0, 0))
    headers = ["", *names]
    if found:
        headers += ["difference", _interval_header(first), "p", "better", "worse"]
    for header in headers:
        table.add_column(escape(header), justify="right" if header else "left", overflow="fold")
    for prefix in data_sets(first):
        for name in headline(first, prefix):
            cells = [told_value(name, second), told_value(name, first)]
            table.add_row(escape(name), *cells, *_difference(name, found.get(name)))
        main = measures(first, prefix)[0]
        for group in groups_of(first, prefix):
            cells = [told_value(f"{main}/{group}", each) for each in (second, first)]
            table.add_row(escape(f"  {group}"), *cells)
    return table


def _interval_header(metrics: Mapping[str, float]) -> str:
    return f"{100 * metrics['confidence']:g} % interval" if "confidence" in metrics else ""


def _difference(name: str, found: Mapping[str, Any] | None) -> list[str]:
    """Difference, interval, p-value; on how many prompts the first is better, and worse."""
    if found is None:
        return []
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
