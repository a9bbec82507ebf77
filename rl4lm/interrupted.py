"""What goes wrong in a run: what is kept of it, and how to go on from there."""

from __future__ import annotations

from pathlib import Path

from rl4lm.errors import RewardError, RewardFailedError, SaveError
from rl4lm.rundir.tracking import checkpoints, write_unscored


def how_to_go_on(output_dir: str | None) -> str:
    """What to do after a failure of another process; nothing where nothing is written."""
    if output_dir is None:
        return ""
    saved = _newest(Path(output_dir))
    if saved is None:
        return "no checkpoint was saved yet (save_steps): the same command starts over"
    return f"--resume_from_checkpoint true with the same command goes on from {saved}"


def unsaved(error: SaveError, run: Path) -> str:
    """What to say where a checkpoint could not be written and the run goes on.

    Args:
        error: of the attempt.
        run: the run directory, with the checkpoints that were saved before.
    """
    kept = _newest(run)
    last = f"the last one is {kept.name}" if kept else "there is none yet"
    return f"no checkpoint was written ({error}); {last}, the run goes on and will try again"


def _newest(run: Path) -> Path | None:
    return next(reversed(checkpoints(run).values()), None)


def last_words(step: int, max_steps: int, checkpoint: Path | None) -> str:
    """How far a run has come, and how to go on from the checkpoint that was saved last."""
    done = f"after step {step} of {max_steps}"
    if checkpoint is None:
        return f"{done}; nothing is saved"
    return (
        f"{done}; saved in {checkpoint}: the same command with --resume_from_checkpoint true goes "
        "on from there"
    )


def with_unscored(
    error: RewardError | RewardFailedError, output_dir: str | None, step: int, rank: int
) -> Exception:
    """An error of a reward, after its completions were written where they can be scored again.

    Args:
        error: has the completions that it was asked about.
        output_dir: of the run; None where nothing is written.
        step: in which it happened.
        rank: of this process.
    """
    if output_dir is None or not error.sampled:
        return error
    try:
        path = write_unscored(Path(output_dir), step, rank, error.sampled)
    except SaveError as full:  # must not hide what the reward did
        return type(error)(f"{error}\nthe completions of step {step} are not kept: {full}")
    return type(error)(
        f"{error}\nthe completions of step {step} are kept: rl4lm score --reward NAME --data "
        f"{path} asks the reward about them again"
    )
