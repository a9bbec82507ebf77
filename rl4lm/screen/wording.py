"""Numbers in words: how what was measured reads on a line of the screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from rich.markup import escape

# Metric -> how the progress line shows it, what matters most first.
_PROGRESS: Mapping[str, Callable[[float], str]] = {
    "tokens_per_second": "{:,.0f} tok/s".format,
    "effective_share": "live {:.0%}".format,
    "gradient_snr": "snr {:.2g}".format,
    "kl": "kl {:.3f}".format,
    "variance_reduction": lambda value: f"variance {0.0 - value:+.0%}",
    "gradient_noise_scale": "noise scale {:.0f}".format,
    "importance_ratio/effective_share": "weight left {:.0%}".format,
    "sampler_gap_mean": "gap {:.0e}".format,
    "sampler_gap_max": "max gap {:.0e}".format,
}


def options_line(options: Mapping[str, Any]) -> str:
    """The options of a verification that say something, in a line."""
    told = [
        f"{options['baseline']}, G = {options['num_generations']}",
        "LoRA" if options["use_peft"] else "all weights",
        f"temperature {options['temperature']:g}",
    ]
    told += ["rewards per token"] if options["token_rewards"] else []
    told += [f"gamma {options['gamma']:g}"] if options["gamma"] < 1 else []
    told += [f"KL {options['beta']:g} in {options['kl_in']}"] if options["beta"] else []
    if options["entropy_coef"]:
        told.append(f"entropy {options['entropy_coef']:g} in {options['entropy_in']}")
    if options["processes"] > 1:
        told.append(f"{options['processes']} processes")
    if options["num_iterations"] > 1 or options["epsilon"] is not None:
        told.append(f"{options['num_iterations']} updates with a clip")
    return ", ".join(told)


def verdict(report: Mapping[str, Any]) -> str:
    """What a verification came to, in a sentence."""
    scale = "" if report["scale"] == 1 else f"{report['scale']:.4g} times "
    if report["verdict"] == "exact":
        return f"exact: the expected gradient is {scale}the gradient of J"
    if report["verdict"] == "failed":
        return "FAILED: the gradient is not what the documentation says"
    return (
        f"another objective, as documented: {report['why']} (cosine {report['cosine']:.3f} to the "
        f"gradient of J, {100 * report['residual']:.1f} % off)"
    )


def describe_evaluation(metrics: Mapping[str, float]) -> str:
    """The numbers of an evaluation in a line; of further data sets only the first."""
    first, *further = data_sets(metrics)
    names = headline(metrics, first)
    names += [name for prefix in further for name in headline(metrics, prefix)[:1]]
    parts = [f"{name} {told_value(name, metrics)}" for name in names]
    return f"{', '.join(parts)} ({metrics['samples']:.0f} prompts)"


def headline(metrics: Mapping[str, float], prefix: str = "") -> list[str]:
    """The metrics of a data set that a person would ask for, in order.

    Args:
        metrics: of all data sets.
        prefix: of the names of this one's; see `data_sets`.
    """
    found = [f"{prefix}accuracy", *_further(metrics, prefix), f"{prefix}reward"]
    found += [f"{prefix}{name}" for name in ("sampled/reward", "ended", "mean_length")]
    return [name for name in found if name in metrics]


def measures(metrics: Mapping[str, float], prefix: str) -> list[str]:
    """The metrics of a data set that are told by group: the accuracy, else the reward; others."""
    main = f"{prefix}accuracy" if f"{prefix}accuracy" in metrics else f"{prefix}reward"
    return [main, *_further(metrics, prefix)]


def _further(metrics: Mapping[str, float], prefix: str) -> list[str]:
    """The names of held-out metrics and of pass@k, without those of groups and of bounds."""
    stems = (f"{prefix}metrics/", f"{prefix}pass@")
    # An outcome is what has an error of its own.
    return [n for stem in stems for n in metrics if n.startswith(stem) and f"{n}_stderr" in metrics]


def groups_of(metrics: Mapping[str, float], prefix: str) -> list[str]:
    """The groups of prompts of a data set."""
    stem = f"{prefix}samples/"
    return [name.removeprefix(stem) for name in metrics if name.startswith(stem)]


def data_sets(metrics: Mapping[str, float]) -> list[str]:
    """What the names of each data set's metrics begin with; nothing for those of the first."""
    prefixes = [name.removesuffix("samples") for name in metrics if name.endswith("samples")]
    return [prefix for prefix in prefixes if f"{prefix}mean_length" in metrics]


def told_value(name: str, metrics: Mapping[str, float]) -> str:
    """A metric of an evaluation with its interval, where there is one."""
    value, interval = evaluation_value(name, metrics.get(name)), interval_of(name, metrics)
    return f"{value} ({interval})" if interval else value


def value_rows(
    second: Mapping[str, float], first: Mapping[str, float]
) -> list[tuple[str, str, list[str]]]:
    """Two evaluations side by side, as rows of a table: what a person asks for, then the groups.

    Args:
        second: metrics of the one whose values come first, such as the one before training.
        first: metrics of the other one, which says what rows there are.

    Returns:
        For each row the metric, how it is called there, and both values with their intervals.
    """
    rows = []
    for prefix in data_sets(first):
        rows += [(name, name) for name in headline(first, prefix)]
        main = measures(first, prefix)[0]
        rows += [(f"{main}/{each}", f"  {main}, {each}") for each in groups_of(first, prefix)]
    return [
        (name, label, [told_value(name, each) for each in (second, first)]) for name, label in rows
    ]


def interval_of(name: str, metrics: Mapping[str, float]) -> str:
    """The interval of a metric; empty where none is known."""
    ends = [metrics.get(f"{name}_{end}", math.nan) for end in ("low", "high")]
    if any(end is None or math.isnan(end) for end in ends):
        return ""
    return " to ".join(evaluation_value(name, end).removesuffix(" %") for end in ends)


def evaluation_value(name: str, value: float | None) -> str:
    """A metric of an evaluation as a person reads it."""
    if value is None or math.isnan(value):
        return "-"
    parts = name.split("/")
    if parts[-1] == "ended" or any(p == "accuracy" or p.startswith("pass@") for p in parts):
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if parts[-1] == "mean_length" else f"{value:.3f}"


def step_numbers(metrics: Mapping[str, float | None]) -> list[str]:
    """The numbers of the progress line; those that are not defined are left out."""
    reward = metrics["reward"]
    parts = [f"reward {'none' if reward is None else f'{reward:.3f}'}"]
    for name, show in _PROGRESS.items():
        value = metrics.get(name)
        if value is not None:
            parts.append(show(value))
    return parts


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def seconds(value: float) -> str:
    """A short time with its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.0f} µs"


def one_line(text: Any, width: int = 60) -> str:
    """`shortened`, with what rich would take for markup escaped."""
    return escape(shortened(text, width))


def shortened(text: Any, width: int = 60) -> str:
    """Text on one line, its control characters visible, long ones shortened in the middle."""
    shown = (
        str(text).encode("unicode_escape").decode() if not str(text).isprintable() else str(text)
    )
    if len(shown) > width:
        shown = f"{shown[: width // 2 - 1]}…{shown[-(width // 2) :]}"
    return shown
