"""Where a run begins: fresh, or from which checkpoint; and whether it may go on from there.

Imports no torch, so that what is refused is refused at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl4lm.config import ReinforceConfig
from rl4lm.errors import ConfigError, DataError, OutputError
from rl4lm.rundir import durable
from rl4lm.rundir.tracking import check_run_directory, checkpoints, holds_a_run

_SHARED_S = 15.0  # until shared storage shows what another machine has written

NEWEST = "true"  # the value of resume_from_checkpoint that asks for the newest one

# Options that no number of a run depends on.
_UNSEEN = frozenset(
    {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "resume_anyway"}
    | {"save_steps", "save_total_limit", "eval_steps", "max_time"}
    | {"logging_steps", "sample_table_steps", "sampler_timeout_s", "ddp_timeout"}
    | {"push_to_hub", "hub_model_id", "hub_private_repo"}
)
# Options that change neither what is drawn nor what is learned: they may differ after a resume.
_FREE = _UNSEEN | frozenset(
    {"eval_samples", "eval_by", "eval_pass_at_k", "eval_num_generations", "eval_pass_threshold"}
    | {"eval_confidence", "eval_dataset_name", "eval_metrics", "accuracy_func"}
    | {"reward_timeout_s", "on_reward_error", "trust_remote_code"}
)


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    checkpoint: Path | None = None  # None = at step 0
    facts: Mapping[str, Any] | None = None  # of the checkpoint's manifest
    in_place: bool = False  # the checkpoint is one of the output directory's own
    notes: tuple[str, ...] = ()  # for the screen

    @property
    def step(self) -> int:
        """Optimizer steps that are done at the start."""
        return 0 if self.facts is None else int(self.facts["step"])


def check_output(config: ReinforceConfig) -> None:
    """Refuse an output directory that no start of a run could use, before anything is read.

    One that holds an unfinished run or checkpoints may be meant to be resumed, as `find_start`
    decides when the run begins.

    Raises:
        OutputError: it cannot be written, or holds a run that nobody said may go.
    """
    if config.output_dir is not None:
        output = _output(config.output_dir)
        unfinished = not _holds_results(output)
        resumable = bool(config.resume_from_checkpoint or unfinished or checkpoints(output))
        check_run_directory(output, config.overwrite_output_dir or resumable)


def find_start(
    config: ReinforceConfig, asked: str | bool | None = None, thorough: bool = True
) -> Start:
    """Decide where a run begins, and refuse what cannot be meant; nothing is changed.

    Args:
        config: names the output directory, and the checkpoint unless `asked` does.
        asked: ``resume_from_checkpoint`` of the call; None leaves it to `config`.
        thorough: read the files of checkpoints, which may be large, and not only their sizes.

    Raises:
        OutputError: the output directory holds a run that nobody said may go, or cannot be written.
        DataError: the checkpoint that was named is none, or is damaged.
        ConfigError: the newest one was asked for and there is no output directory, or an option
            differs from the checkpoint's.
    """
    resume = config.resume_from_checkpoint if asked is None else _as_text(asked)
    output = None if config.output_dir is None else _output(config.output_dir)
    if resume is None:
        return _fresh(output, config.overwrite_output_dir)
    if resume == NEWEST:
        start = _newest(output, thorough)
    else:
        start = _named(Path(resume), output, thorough)
    if start.checkpoint is None:
        return start
    assert start.facts is not None
    if not config.resume_anyway:
        _check_options(config, start.facts, start.checkpoint)
    if output is not None and not start.in_place:
        check_run_directory(output, config.overwrite_output_dir)
    return start


def agree(start: Start, gather: Callable[[list[Any]], list[Any]]) -> Start:
    """Where the main process begins, so that all begin there.

    Storage that machines share may show a checkpoint to one of them later than to another; so it
    is the main process that decides, and the others look again for a while.

    Args:
        start: what this process has found.
        gather: concatenates the lists of all processes, in their order.

    Raises:
        DataError: some process cannot read that checkpoint; on all processes alike.
    """
    start = gather([start])[0]
    if start.checkpoint is None:
        return start
    seen = gather([_sees(start.checkpoint, start.facts)])
    blind = [rank for rank, sees in enumerate(seen) if not sees]
    if blind:
        raise DataError(
            f"process 0 goes on from {start.checkpoint}, which process {blind[0]} does not find, "
            "or finds with other content: every machine reads the checkpoint, so put output_dir on "
            "storage that all of them share, or copy the folder to the same place on each"
        )
    return start


def evaluates_alike(config: ReinforceConfig, start: Start) -> bool:
    """Whether the checkpoint's run has logged its evaluations here, and made them as this one."""
    facts = start.facts or {}
    then = facts.get("config", {})
    return start.in_place and not set(_differing(config.to_dict(), then)) - _UNSEEN


def _sees(checkpoint: Path, facts: Mapping[str, Any] | None) -> bool:
    until = time.monotonic() + _SHARED_S
    while True:
        try:
            return durable.read_sealed(checkpoint, thorough=False) == facts
        except durable.DamagedError:
            if time.monotonic() > until:
                return False
        time.sleep(0.5)


def _output(name: str) -> Path:
    """An output directory by its name, which the system must be able to look up."""
    try:
        Path(name).exists()
    except OSError as error:  # too long, or a link to itself
        raise OutputError(f"output_dir {name!r:.100} cannot be used: {error.strerror}") from error
    return Path(name)


def _as_text(asked: str | bool) -> str | None:
    if isinstance(asked, bool):
        return NEWEST if asked else None
    return asked


def _fresh(output: Path | None, overwrite: bool) -> Start:
    if output is not None:
        check_run_directory(output, overwrite)
    return Start()


def _newest(output: Path | None, thorough: bool) -> Start:
    """The newest complete checkpoint of the output directory, or a fresh start."""
    if output is None:
        raise ConfigError(
            "resume_from_checkpoint=true looks for checkpoints in output_dir, which is not set; "
            "name the output directory, or the checkpoint itself"
        )
    check_run_directory(output, overwrite=True)
    notes = []
    for path in reversed(list(checkpoints(output).values())):
        try:
            facts = _read(path, thorough)
        except durable.DamagedError as error:
            notes.append(f"{path.name} is passed over: {error}")
            continue
        return Start(path, facts, in_place=True, notes=tuple(notes))
    if _holds_results(output):
        raise OutputError(
            f"{str(output)!r} holds a finished run and no complete checkpoint to go on from"
            f"{_listed(notes)}; train on from its weights with --model_name_or_path "
            f"{output / 'model'} and another output_dir, or pass --overwrite_output_dir alone"
        )
    if holds_a_run(output):
        notes.append("there is no complete checkpoint yet, so that the run starts over")
    return Start(notes=tuple(notes))


def _holds_results(output: Path) -> bool:
    return (output / "summary.json").exists() or (output / "model").exists()


def _named(path: Path, output: Path | None, thorough: bool) -> Start:
    """A checkpoint by its folder."""
    try:
        if not path.is_dir():
            raise DataError(
                f"resume_from_checkpoint: there is no folder {str(path)!r}{_others(path)}; name a "
                "folder checkpoint-NNNNNN of a run, or true for the newest one in output_dir"
            )
        facts = _read(path, thorough)
    except OSError as error:  # a name that is too long
        raise DataError(f"resume_from_checkpoint {str(path)!r:.100}: {error.strerror}") from error
    except durable.DamagedError as error:
        raise DataError(
            f"the checkpoint {str(path)!r} cannot be used: {error}{_others(path)}; name another "
            "one, or true for the newest complete one in output_dir"
        ) from error
    in_place = output is not None and path.absolute().parent == output.absolute()
    return Start(path, facts, in_place=in_place)


def _read(path: Path, thorough: bool) -> dict[str, Any]:
    """What a complete checkpoint's manifest says of it."""
    facts = durable.read_sealed(path, thorough)
    if not isinstance(facts.get("step"), int) or not isinstance(facts.get("config"), dict):
        raise durable.DamagedError(f"its {durable.MANIFEST} lacks the step or the options")
    return facts


def _others(path: Path) -> str:
    """The complete checkpoints in a folder, else beside it."""
    for run in (path, path.parent):
        names = [str(other) for other in checkpoints(run).values() if other != path]
        if run.is_dir() and names:
            return f" (there are: {', '.join(names)})"
    return ""


def _listed(notes: list[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""


def _check_options(config: ReinforceConfig, facts: Mapping[str, Any], checkpoint: Path) -> None:
    """Refuse options that make another run of it."""
    differing = list(_differences(config.to_dict(), facts.get("config", {})))
    if differing:
        listed = "\n".join(f"  {line}" for line in differing)
        raise ConfigError(
            f"{checkpoint.name} was saved by a run with other options:\n{listed}\n"
            "give the options of that run again, or pass --resume_anyway to go on with these"
        )


def _differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> Iterator[str]:
    for name in _differing(now, then):
        if name not in _FREE:
            yield f"{name}: {then[name]} in the checkpoint, {now[name]} now"


def _differing(now: Mapping[str, Any], then: Mapping[str, Any]) -> Iterator[str]:
    """The names of options whose values differ."""
    for name, value in now.items():
        # An option that the checkpoint's version did not know had its default then.
        if name in then and then[name] != value:
            yield name
