"""Do a logged step again: from a checkpoint, through the logged completions, to its loss and norm.

    rl4lm replay RUN_DIR --step N [--json]

Nothing is sampled and no reward is called: completions and rewards are those of the log.
Advantages, losses, gradients and updates are worked out anew by the code that trains, so that a log
which this code would not write is found out, with the first step at which they part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl4lm.config import ReinforceConfig
from rl4lm.curriculum import AS_THEY_COME
from rl4lm.data.splits import AS_GIVEN
from rl4lm.errors import ConfigError, DataError
from rl4lm.estimator.returns import at_last_token
from rl4lm.groups import Groups
from rl4lm.metrics import Stopwatch
from rl4lm.options import read_yaml
from rl4lm.processes.dealing import Deal
from rl4lm.rundir import durable
from rl4lm.rundir.checkpoint import load_checkpoint
from rl4lm.rundir.logged import Row, check_ids, check_run, read_completions, read_metrics
from rl4lm.rundir.tracking import checkpoints
from rl4lm.screen.console import Screen
from rl4lm.trainer import ReinforceTrainer
from rl4lm.types import Example, Experience, Rollout, Scores

# Relative difference that rounding explains over some steps, by compute dtype.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 5e-2}
_PLACEHOLDER = "the reward is read from the log"


@dataclass(frozen=True)
class Replayed:
    """A step as it was logged and as it came out again."""

    step: int
    loss: float | None  # None where the log holds no finite number
    loss_again: float
    grad_norm: float | None
    grad_norm_again: float
    difference: float  # the larger relative difference of the two
    agrees: bool


@dataclass(frozen=True)
class Replay:
    """The steps that were done again, the one asked for last."""

    start: str  # where the weights came from
    tolerance: float
    steps: tuple[Replayed, ...]

    @property
    def agrees(self) -> bool:
        """Whether the step asked for came out as it was logged."""
        return self.steps[-1].agrees

    @property
    def first_disagreement(self) -> int | None:
        """The first step that came out otherwise than logged, None if all agree."""
        return next((step.step for step in self.steps if not step.agrees), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "start": self.start,
            "tolerance": self.tolerance,
            "agrees": self.agrees,
            "first_disagreement": self.first_disagreement,
            "steps": [asdict(step) for step in self.steps],
        }


def replay(run: Path, step: int) -> Replay:
    """Recompute the loss and the gradient norm of a logged step.

    Args:
        run: a run directory with config.yaml, metrics.jsonl and completions/.
        step: counted from 1, as in the log.

    Returns:
        Every step from the nearest earlier checkpoint, or the run's start, up to the one asked for.

    Raises:
        DataError: no run there, or no such step in its log.
        ConfigError: neither the start nor a checkpoint early enough can be had again.
    """
    config, given = _read_config(run / "config.yaml")
    logged = read_metrics(run / "metrics.jsonl")
    if step not in logged:
        known = f"steps 1 to {max(logged)}" if logged else "no step"
        raise DataError(f"step {step} is not in the log of {str(run)!r}, which holds {known}")
    start, checkpoint = _start(run, config, given, step)
    steps = range(start + 1, step + 1)
    pages = {
        k: read_completions(run, k, config.num_generations) for k in steps[:: config.num_iterations]
    }  # of the steps that sampled
    trainer = _trainer(config, next(iter(pages.values())))
    for rows in pages.values():
        check_ids(rows, trainer.policy.module.vocabulary)
    if checkpoint is not None:
        _put_in_place(trainer, checkpoint)
    tolerance = _TOLERANCE[trainer.policy.compute_dtype]
    done = [
        _compare(k, logged[k], found, tolerance)
        for k, found in zip(steps, _done_again(trainer, config, steps, pages), strict=True)
    ]
    return Replay(checkpoint.name if checkpoint else "the start of the run", tolerance, tuple(done))


def _put_in_place(trainer: ReinforceTrainer, checkpoint: Path) -> None:
    try:
        durable.read_sealed(checkpoint)
    except durable.DamagedError as error:
        raise DataError(f"the checkpoint {str(checkpoint)!r} cannot be read: {error}") from error
    trainer.learner.load_state_dict(load_checkpoint(checkpoint, trainer.policy)["learner"])


def _done_again(
    trainer: ReinforceTrainer,
    config: ReinforceConfig,
    steps: Iterable[int],
    pages: Mapping[int, Sequence[Row]],
) -> Iterator[Mapping[str, Any]]:
    """The metrics of each step, made by the code that trains from the completions of the log."""
    experience: Experience | None = None
    for k in steps:
        fresh = k in pages
        if fresh:
            experience = _experience(trainer, config, pages[k])
        assert experience is not None
        yield trainer.learner.learn(experience, fresh, Stopwatch()).metrics


def _read_config(path: Path) -> tuple[ReinforceConfig, list[str]]:
    """The resolved configuration, and the notes on what was given in Python instead."""
    check_run(path.parent)
    config = ReinforceConfig(**read_yaml(str(path)))
    notes = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line[:2] == "# "]
    return config, [note for note in notes if " given in Python" in note]


def _start(
    run: Path, config: ReinforceConfig, given: Sequence[str], step: int
) -> tuple[int, Path | None]:
    """Steps done at the nearest earlier place to begin from, and its checkpoint; None is step 0."""
    # Within a window of several updates the policy that sampled is not the checkpoint's.
    window = config.num_iterations
    saved = {done: path for done, path in checkpoints(run).items() if done % window == 0}
    early = [done for done in saved if done < step]
    if early:
        return max(early), saved[max(early)]
    # A model or an adapter that came as an object is nowhere to be had again.
    objects = [note for note in given if note.startswith(("model ", "peft_config "))]
    if not objects:
        return 0, None
    listed = ", ".join(path.name for path in saved.values()) or "none"
    raise ConfigError(
        f"step {step} lies before every checkpoint (there are: {listed}), and the run's start "
        f"cannot be made again: {objects[0]}; replay a step after a checkpoint, or name the model "
        "by --model_name_or_path in the run"
    )


def _trainer(config: ReinforceConfig, rows: Sequence[Row]) -> ReinforceTrainer:
    """A trainer as the run had it; prompts and rewards come from the log."""

    def never_called(completions: Any, **_: Any) -> Any:
        raise AssertionError(_PLACEHOLDER)

    settings = replace(
        config,
        output_dir=None,
        sampler_url=None,
        sampler_model=None,
        eval_samples=0,
        accuracy_func=None,
        reward_weights=None,
        **AS_GIVEN,
        **AS_THEY_COME,
    )
    return ReinforceTrainer(
        reward_funcs=never_called,
        args=settings,
        train_dataset=[{"prompt": row["prompt"]} for row in rows],
        screen=Screen(quiet=True),
    )


def _experience(
    trainer: ReinforceTrainer, config: ReinforceConfig, rows: Sequence[Row]
) -> Experience:
    """The experience of a logged step: its completions, their rewards, advantages anew."""
    gatherer, state = trainer.learner.gatherer, trainer.learner.state
    group = config.num_generations
    rollout = Rollout.from_lists(
        [row["prompt_ids"] for row in rows],
        [row["completion_ids"] for row in rows],
        num_generations=group,
        ended=[not row["truncated"] for row in rows],
    )
    rollout = replace(rollout, sampling_logprobs=_sampling_logprobs(trainer, config, rollout, rows))
    examples = [Example(row["prompt_id"], row["prompt"], {}) for row in rows[::group]]
    keys = [int(row["prompt_id"].rpartition("-")[2]) for row in rows[::group]]
    groups = Groups(examples, rollout, [row["completion"] for row in rows], _scores(rows, group))
    experience, baseline_state = gatherer.centre(
        keys, Deal([range(len(keys))], 0), groups, state.baseline_state
    )
    trainer.learner.state = replace(state, baseline_state=baseline_state)
    return experience


def _sampling_logprobs(
    trainer: ReinforceTrainer, config: ReinforceConfig, rollout: Rollout, rows: Sequence[Row]
) -> Tensor:
    """The log-probs [B, T] at sampling time, which are logged as a sum over each completion.

    The same policy gives its own again. A server's enter by their sum alone, in the ratio.
    """
    if config.sampler_url is None:
        return trainer.policy.completion_logprobs(
            rollout, config.temperature, config.max_tokens_per_micro_batch
        )
    sums = torch.tensor([row["sampling_logprob"] for row in rows], dtype=torch.float64)
    return at_last_token(sums, rollout.completion_mask)


def _scores(rows: Sequence[Row], group: int) -> Scores:
    shape = (len(rows) // group, group)
    rewards = [math.nan if row["reward"] is None else row["reward"] for row in rows]
    values = torch.tensor(rewards, dtype=torch.float64).reshape(shape)
    per_token = None
    if "token_rewards" in rows[0]:
        width = max(len(row["token_rewards"]) for row in rows)
        padded = [
            row["token_rewards"] + [0.0] * (width - len(row["token_rewards"])) for row in rows
        ]
        per_token = torch.tensor(padded, dtype=torch.float64)
    return Scores(
        rewards=values.nan_to_num(nan=0.0), valid=~values.isnan(), parts={}, token_rewards=per_token
    )


def _compare(step: int, logged: Row, found: Mapping[str, Any], tolerance: float) -> Replayed:
    pairs = [(logged.get(name), found[name]) for name in ("loss", "grad_norm")]
    difference = max(_relative(a, b) for a, b in pairs)
    (loss, loss_again), (norm, norm_again) = pairs
    return Replayed(step, loss, loss_again, norm, norm_again, difference, difference <= tolerance)


def _relative(logged: float | None, found: float | None) -> float:
    """The relative difference; what is not finite (null in the log) equals only its like."""
    a, b = (math.nan if value is None else value for value in (logged, found))
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf if math.isfinite(a) or math.isfinite(b) else 0.0
    size = max(abs(a), abs(b))
    return abs(a - b) / size if size else 0.0
