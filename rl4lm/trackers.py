"""Other programs that follow a run: TensorBoard, trackio, Weights & Biases, MLflow.

Through the trackers of `accelerate`. Each works on a thread of its own, so that none slows a step
down; one that fails is dropped with a warning, and never stops a run. The run directory holds
everything whether they are there or not.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl4lm.errors import ConfigError
from rl4lm.processes.background import Background

_PATIENCE_S = 30.0  # at the end of a run, for what a tracker has still to send
_SHOWN = ("prompt", "completion", "reward", "advantage")  # of a sample

Call = Callable[[Any], None]


@dataclass(frozen=True)
class Kind:
    """How one program is started, and how it is told of samples."""

    module: str  # that must be importable
    start: Callable[[Path, str, str], Any]  # (run directory, project, name of the run) -> tracker
    samples: Callable[[Any, int, Sequence[Mapping[str, Any]]], None]


def _tensorboard(run: Path, project: str, name: str) -> Any:
    from accelerate.tracking import TensorBoardTracker

    return TensorBoardTracker(".", str(run / "tensorboard"))


def _trackio(run: Path, project: str, name: str) -> Any:
    from accelerate.tracking import TrackioTracker

    return TrackioTracker(project, name=name)


def _wandb(run: Path, project: str, name: str) -> Any:
    from accelerate.tracking import WandBTracker

    return WandBTracker(project, name=name, dir=str(run))


def _mlflow(run: Path, project: str, name: str) -> Any:
    from accelerate.tracking import MLflowTracker

    artifacts = None
    if not os.environ.get("MLFLOW_TRACKING_URI"):  # a place of its own, where nobody named one
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{(run / 'mlflow.db').absolute()}")
        artifacts = (run / "mlflow").absolute().as_uri()
    return MLflowTracker(experiment_name=project, run_name=name, logging_dir=artifacts)


def _samples_as_text(tracker: Any, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    tracker.tracker.add_text("samples", _markdown(rows), global_step=step)


def _samples_to_trackio(tracker: Any, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    import pandas
    import trackio

    table = trackio.Table(dataframe=pandas.DataFrame(rows, columns=list(_SHOWN)))
    tracker.log({"samples": table}, step=step)


def _samples_to_wandb(tracker: Any, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    data = [[row[name] for name in _SHOWN] for row in rows]
    tracker.log_table("samples", columns=list(_SHOWN), data=data, step=step)


def _samples_to_mlflow(tracker: Any, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    import mlflow

    mlflow.log_text(_markdown(rows), f"samples/step-{step:06d}.md")


KINDS: Mapping[str, Kind] = {
    "tensorboard": Kind("tensorboard", _tensorboard, _samples_as_text),
    "trackio": Kind("trackio", _trackio, _samples_to_trackio),
    "wandb": Kind("wandb", _wandb, _samples_to_wandb),
    "mlflow": Kind("mlflow", _mlflow, _samples_to_mlflow),
}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed; imports none of them.

    Raises:
        ConfigError: names the extra that brings it.
    """
    for name in names:
        if importlib.util.find_spec(KINDS[name].module) is None:
            raise ConfigError(
                f"report_to={name}, but {name} is not installed: pip install 'rl4lm[{name}]', or "
                "leave it out; the run directory has every metric anyway"
            )


class Trackers:
    """Some programs that follow a run, each on its own thread."""

    def __init__(
        self,
        names: Sequence[str],
        run: Path,
        project: str,
        name: str,
        trouble: Callable[[str], None],
    ) -> None:
        """Take the names; nothing is started before `begin`.

        Args:
            names: of `KINDS`.
            run: the run directory, for those who keep files.
            project: under which runs are gathered.
            name: of this run.
            trouble: told of a tracker that fails, once.
        """
        self._followers = [_Follower(each, KINDS[each], run, project, name) for each in names]
        self._trouble = trouble

    def begin(self, config: Mapping[str, Any]) -> None:
        """Start them, with the options of the run."""
        values = {name: _as_setting(value) for name, value in config.items()}
        self._tell(lambda follower: follower.begin(values))

    def log(self, step: int, metrics: Mapping[str, Any], prefix: str = "") -> None:
        """Tell of the numbers of a step; what has no value is left out."""
        values = {
            prefix + name: float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and math.isfinite(value) and name != "step"
        }
        self._tell(lambda follower: follower.do(lambda tracker: tracker.log(values, step=step)))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Tell of some completions of a step."""
        shown = [{name: _as_cell(row.get(name)) for name in _SHOWN} for row in rows]
        self._tell(lambda follower: follower.do_samples(step, shown))

    def finish(self) -> None:
        """Wait a while for what is still to be sent, and end them."""
        self._tell(lambda follower: follower.do(lambda tracker: tracker.finish()))
        for follower in self._followers:
            follower.leave()
        self._drop_failed()

    def _tell(self, tell: Callable[[_Follower], None]) -> None:
        self._drop_failed()
        for follower in self._followers:
            tell(follower)

    def _drop_failed(self) -> None:
        for follower in [each for each in self._followers if each.failure is not None]:
            self._followers.remove(follower)
            self._trouble(
                f"report_to={follower.name} has failed and is not told any more; the run goes on, "
                f"and its directory has everything: {follower.failure}"
            )


class _Follower:
    """One tracker and its thread."""

    def __init__(self, name: str, kind: Kind, run: Path, project: str, run_name: str) -> None:
        self.name = name
        self.failure: str | None = None
        self._kind = kind
        self._start = lambda: kind.start(run, project, run_name)
        self._tracker: Any = None
        self._thread = Background[Callable[[], None]](self._work)

    def begin(self, config: Mapping[str, Any]) -> None:
        def start() -> None:
            self._tracker = self._start()
            self._tracker.start()
            self._tracker.store_init_configuration(dict(config))

        self._thread.hand_over([start])

    def do(self, call: Call) -> None:
        self._thread.hand_over([lambda: call(self._tracker)])

    def do_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.do(lambda tracker: self._kind.samples(tracker, step, rows))

    def leave(self) -> None:
        if not self._thread.settles(_PATIENCE_S):
            self.failure = self.failure or f"it did not end within {_PATIENCE_S:.0f} s"

    def _work(self, calls: list[Callable[[], None]]) -> None:
        for call in calls:
            if self.failure is not None:
                return
            try:
                call()
            # Programs of others, with errors of every kind, and none of them is worth a run.
            except (Exception, SystemExit) as error:  # noqa: BLE001
                told = (str(error).strip().splitlines() or [""])[0]
                self.failure = f"{type(error).__name__}: {told:.200}"


def _as_setting(value: Any) -> str | int | float | bool:
    """An option as all of them can take it."""
    if isinstance(value, str | int | float | bool):
        return value
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value).lower()


def _as_cell(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else str(value)


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table that stays one whatever the texts hold."""
    lines = ["| " + " | ".join(_SHOWN) + " |", "|" + "---|" * len(_SHOWN)]
    for row in rows:
        cells = [str(row[name]).replace("|", "\\|").replace("\n", "<br>") for name in _SHOWN]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
