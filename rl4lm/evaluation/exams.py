"""From the options to what a model is evaluated on, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from rl4lm.config import OPTIONS, ReinforceConfig
from rl4lm.data.columns import shape_of
from rl4lm.data.datafiles import find_files
from rl4lm.data.examples import PromptData, load_split
from rl4lm.data.fitting import leave_out_unfit
from rl4lm.data.procedural import PUZZLES_SOLVED, is_procedural
from rl4lm.data.sources import Access
from rl4lm.errors import ConfigError, DataError, MissingSplitError, did_you_mean
from rl4lm.evaluation.evaluate import Chances, Evaluation, Exam
from rl4lm.rewarding.lookup import NamedReward, check_columns, resolve_rewards
from rl4lm.sampling.loop import EndRule
from rl4lm.scoring import Scorer

_ANSWER_COLUMN = "answer"  # what the default accuracy function reads


def accuracy_of(config: ReinforceConfig, columns: Sequence[str], data: str) -> NamedReward | None:
    """The accuracy function; the default one only where the rows have answers.

    Args:
        config: names the function.
        columns: of the rows.
        data: the name of the data set; puzzles have a grader of their own.
    """
    name = config.accuracy_func
    by_default = name == OPTIONS["accuracy_func"].default
    if name is None or (by_default and _ANSWER_COLUMN not in columns):
        return None
    if by_default and is_procedural(data):
        name = PUZZLES_SOLVED
    (accuracy,) = resolve_rewards([name])
    check_columns([accuracy], columns)
    return accuracy


def assemble_exams(
    config: ReinforceConfig,
    scorer: Scorer,
    accuracy: NamedReward | None,
    first: PromptData,
    given: Mapping[str, PromptData] = MappingProxyType({}),
) -> tuple[list[Exam], list[str]]:
    """The held-out split, and the further data sets of the options.

    Args:
        config: names the further ones, the metrics, and the columns to give numbers by.
        scorer: the rewards of training.
        accuracy: of the first data set.
        first: its rows.
        given: further ones that were handed over in Python, by name.

    Returns:
        The data sets, and lines about rows that were left out.

    Raises:
        DataError, RewardError: data or metrics that cannot be read or do not fit together.
        ConfigError: two data sets that would go by one name.
    """
    metrics = resolve_rewards(config.eval_metrics)
    check_columns(metrics, first.columns)
    exams, notes = [Exam("", first, scorer, accuracy, metrics)], []
    named = {
        label: (name, _further(config, name)) for label, name in _labels(config, given).items()
    }
    own = {label: (config.dataset_name, data) for label, data in given.items()}
    for label, (name, data) in {**own, **named}.items():
        check_columns([*scorer.rewards, *metrics], data.columns)
        data, left_out = leave_out_unfit(scorer.rewards, data)
        exams.append(Exam(label, data, scorer, accuracy_of(config, data.columns, name), metrics))
        notes += [f"{label}: {note}" for note in left_out]
    _check_by(config.eval_by, exams)
    return exams, notes


def _labels(config: ReinforceConfig, given: Mapping[str, PromptData]) -> dict[str, str]:
    """What the numbers of each named data set are filed under: the last part of its name."""
    names: Sequence[str] = config.eval_dataset_name
    labels = [Path(name).stem if Path(name).suffix else _last(name) for name in names]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise ConfigError(
            f"eval_dataset_name has two data sets that would both be called {twice[0]!r}: "
            f"{' '.join(names)}; rename one of the files, or name each once"
        )
    both = [label for label in labels if label in given]
    if both:
        raise ConfigError(
            f"eval_dataset and eval_dataset_name both have a data set called {both[0]!r}; give one "
            "of them another name"
        )
    return dict(zip(labels, names, strict=True))


def _last(name: str) -> str:
    return name.rstrip("/").replace(":", "/").rpartition("/")[2]


def _further(config: ReinforceConfig, name: str) -> PromptData:
    """The test split of a further data set; of a file, its only one."""
    split = config.dataset_test_split or config.dataset_train_split
    shape = shape_of(config)
    access = Access(streamed_rows=config.eval_samples if config.dataset_streaming else None)
    try:
        return load_split(name, split, config.prompt_column, shape, access)
    except MissingSplitError:
        if find_files(name) is None:
            raise
        return load_split(name, "train", config.prompt_column, shape, access)


def _check_by(by: Sequence[str], exams: Sequence[Exam]) -> None:
    """Refuse a column that no data set has, unless it was not asked for by name."""
    columns = list(dict.fromkeys(name for exam in exams for name in exam.data.columns))
    missing = [name for name in by if name not in columns]
    if missing and list(by) != OPTIONS["eval_by"].default:
        raise DataError(
            f"eval_by: the data to evaluate on have no column {missing[0]!r}"
            f"{did_you_mean(missing[0], columns)}; they have: {', '.join(columns) or 'none'}"
        )


def evaluation_of(
    config: ReinforceConfig, ends: EndRule, top_p: float = 1.0, top_k: int = 0
) -> Evaluation:
    """What the options ask for; nucleus and most likely tokens are options of evaluations only."""
    ks = config.eval_pass_at_k
    drawn = config.eval_num_generations or max(ks, default=0)
    return Evaluation(
        samples=config.eval_samples,
        max_completion_length=config.max_completion_length,
        ends=ends,
        chances=Chances(drawn, config.temperature, top_p, top_k) if drawn else None,
        pass_at_k=sorted(set(ks)) or [1],
        pass_threshold=config.eval_pass_threshold,
        by=config.eval_by,
        confidence=config.eval_confidence,
        seed=config.seed,
    )
