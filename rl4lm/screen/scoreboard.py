"""How the findings of the workbench read: in at most 80 columns, on a screen or in a file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from rl4lm.screen.wording import one_line, seconds, shortened

_WIDTH = 80
_BAR = 30
_SHOWN = 5


def scored_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows with their rewards."""
    table = Table(box=None, padding=(0, 1))
    for header, width in (("prompt", 20), ("completion", 26), ("reward", 7), ("detail", 20)):
        justify: Any = "right" if header == "reward" else "left"
        table.add_column(header, justify=justify, overflow="fold", max_width=width)
    for row in rows:
        detail = "" if row["detail"] is None else one_line(row["detail"])
        prompt, completion = (_text(row[name]) for name in ("prompt", "completion"))
        prompt, completion = one_line(prompt, 40), one_line(completion)
        table.add_row(prompt, completion, _number(row["reward"]), detail)
    return table


def report_lines(title: str, summary: Mapping[str, Any], shown: int) -> Iterator[str]:
    """Everything that a summary holds, in lines.

    Args:
        title: the rewards.
        summary: as `rl4lm score --json` prints it.
        shown: rows that the reader has seen before.
    """
    if "mean" in summary:
        more = f" (the first {shown} shown)" if summary["rows"] > shown else ""
        mean = "none" if summary["mean"] is None else f"{summary['mean']:.3f}"
        yield from _wrapped(
            f"{title}: {summary['rows']} rows{more}, mean reward {mean}, {summary['none']} without "
            "a reward"
        )
    if summary["scored"]:
        yield from _spread(summary)
    for name, part in summary.get("rewards", {}).items():
        yield f"  {name}: mean {_number(part['mean'])}, {part['none']} without"
    if "latency_s" in summary:
        yield from _checks(summary)
    if "confusion" in summary:
        yield from _confusion(summary["confusion"], summary["disagreements"])
    if "label_problem" in summary:
        yield from _wrapped(f"no comparison with labels: {summary['label_problem']}")
    if "adversarial" in summary:
        yield from _tricks(summary["adversarial"])


def _spread(summary: Mapping[str, Any]) -> Iterator[str]:
    quantiles = ", ".join(f"{n} {_number(v)}" for n, v in summary["quantiles"].items())
    yield f"standard deviation {_number(summary['std'])}; {quantiles}"
    most = max(row["count"] for row in summary["histogram"])
    for row in summary["histogram"]:
        value = _number(row["from"])
        value += "" if row["to"] == row["from"] else f" to {_number(row['to'])}"
        bar = "#" * max(round(_BAR * row["count"] / most), row["count"] > 0)
        yield f"  {value:>18}  {row['count']:>7}  {bar}".rstrip()


def _checks(summary: Mapping[str, Any]) -> Iterator[str]:
    if summary["deterministic"]:
        yield "scored twice: every row earned the same"
    else:
        yield from _wrapped(
            f"NOT DETERMINISTIC: scored twice, {_differences(summary['differing'])}"
        )
    if summary["depends_on_batch"]:
        said = "depends on the other rows: in a call of all, and then alone, earned by "
        yield from _wrapped(said + _differences(summary["alone"]))
    yield from _time(summary["latency_s"])
    counted = {kind: n for kind, n in summary["failures"].items() if n}
    if counted:
        yield "failures: " + ", ".join(f"{kind} {n}" for kind, n in counted.items())


def _differences(rows: Sequence[Mapping[str, Any]]) -> str:
    told = [f"row {r['row']} {_number(r['first'])} then {_number(r['again'])}" for r in rows]
    return ", ".join(told)


def _time(latency: Mapping[str, Any]) -> Iterator[str]:
    if latency["p50"] is not None:
        parts = [f"{name} {seconds(latency[name])}" for name in ("p50", "p90", "p99", "max")]
        yield f"one row alone: {', '.join(parts)} ({latency['calls_alone']} calls)"
    if latency["per_row"] is not None:
        whole = seconds(latency["call"])
        yield f"all rows in one call: {whole}, {seconds(latency['per_row'])} a row"


def _confusion(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"against the column {found['label']!r}; a reward of {found['threshold']:g} says right:"
    yield f"  {'':>14}{'paid':>9}{'not paid':>10}"
    yield f"  {'label right':>14}{found['true_positive']:>9}{found['false_negative']:>10}"
    yield f"  {'label wrong':>14}{found['false_positive']:>9}{found['true_negative']:>10}"
    rates = [f"{name} {_percent(found[name])}" for name in ("precision", "recall", "agreement")]
    yield "  " + ", ".join(rates)
    for row in rows[:_SHOWN]:
        label = "right" if row["label"] else "wrong"
        head = f"  row {row['row']} is {label} and earned {_number(row['reward'])}: "
        yield head + shortened(_text(row["completion"]), max(_WIDTH - len(head), 20))


def _tricks(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"texts made to earn reward, for {found['rows']} rows; {found['threshold']:g} or more is "
        "earned:"
    )
    yield f"  {'':8}{'text':24}{'earned':>11}{'share':>7}{'mean':>8}  worst"
    group = ""
    for kind in found["kinds"]:
        lead, group = ("" if kind["group"] == group else kind["group"]), kind["group"]
        yield _trick(lead, kind)
    for line in _verdict(found):
        yield from _wrapped(line)


def _trick(lead: str, kind: Mapping[str, Any]) -> str:
    head = f"  {lead:8}{kind['kind']:24}"
    if kind["failed"]:
        return f"{head}{'no answer about any':>26}"
    share = "none" if kind["share"] is None else f"{kind['share']:.0%}"
    counts = f"{kind['earned']}/{kind['texts']}"
    mean = _number(kind["mean"])
    line = f"{head}{counts:>11}{share:>7}{mean:>8}  "
    shown = kind["worst"] is not None and kind["earned"] and kind["group"] != "answer"
    failures = sum(kind["failures"][name] for name in ("timeouts", "crashes", "masked"))
    failed = f"({failures} failed) " if failures else ""
    text = shortened(kind["worst"]["text"], max(_WIDTH - len(line) - len(failed), 12))
    return (line + failed + (text if shown else "")).rstrip()


def _verdict(found: Mapping[str, Any]) -> Iterator[str]:
    if any(kind["group"] == "answer" for kind in found["kinds"]):
        forms = ", ".join(found["answers"]) or "nothing that was tried"
        yield f"the answer itself earns as: {forms}"
    else:
        yield "no column was taken for the right answer; --answer_column names one"
    if found["forms"]:
        yield f"paid for the form alone, with a wrong answer: {', '.join(found['forms'])}"
    for kind in found["kinds"]:
        if kind["failed"]:
            yield f"{kind['kind']}: {kind['failed']}"
    exposed = ", ".join(found["exposed"])
    yield f"EARNED BY TRICKS: {exposed}" if exposed else "no trick earned anything"


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, _WIDTH, subsequent_indent="  ")


def _text(value: Any) -> str:
    """A text, or that of the last of some messages."""
    return value if isinstance(value, str) else str(value[-1].get("content") if value else "")


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
