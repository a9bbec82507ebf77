"""The main curves of some runs as one picture, for papers and messages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl4lm.errors import ConfigError, OutputError

_DRAWN = ("Reward", "Held-out accuracy", "Completion length", "Gradient norm")
_WINDOW = 5  # steps that are averaged


def draw(payload: Mapping[str, Any], path: Path) -> None:
    """Write a picture of reward, held-out accuracy, length and gradient norm over the steps.

    Raises:
        ConfigError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "--png draws with matplotlib, which is not installed: pip install 'rl4lm[plots]'"
        ) from error
    chosen = [f for f in payload["figures"] if f["title"] in _DRAWN]
    figure = Figure(figsize=(10, 3.2 * max(1, -(-len(chosen) // 2))), layout="constrained")
    FigureCanvasAgg(figure)
    for place, drawn in enumerate(chosen, start=1):
        axes = figure.add_subplot(-(-len(chosen) // 2), 2, place)
        _curves(axes, drawn, payload["runs"])
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # ValueError: an ending that names no format
        raise OutputError(f"--png {str(path)!r} cannot be written: {error}") from error


def _curves(axes: Any, drawn: Mapping[str, Any], runs: Any) -> None:
    scale = 100 if drawn["form"] == "percent" else 1
    for place, run in enumerate(runs):
        source = run[drawn["source"]]
        if drawn["metrics"][0] not in source:
            continue
        points = zip(source["step"], source[drawn["metrics"][0]], strict=True)
        steps, values = zip(*((s, scale * v) for s, v in points if v is not None), strict=True)
        if drawn["source"] == "evaluations":
            axes.plot(steps, values, "o-", color=f"C{place}", label=run["name"])
            continue
        axes.plot(steps, values, color=f"C{place}", alpha=0.3, linewidth=0.8)
        smooth = [
            sum(values[max(0, k - _WINDOW + 1) : k + 1]) / min(k + 1, _WINDOW)
            for k in range(len(values))
        ]
        axes.plot(steps, smooth, color=f"C{place}", label=run["name"])
    axes.set_title(drawn["title"] + (", %" if scale == 100 else ""), loc="left", fontsize=10)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    if len(runs) > 1:
        axes.legend(fontsize=8)
