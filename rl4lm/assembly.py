"""From a configuration, or from objects handed in, to the parts that a trainer needs.

The order is from cheap to dear: options, output directory, rewards, data, tokenizer, lengths,
weights, probe. What can be refused is refused before the weights are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from rl4lm.config import ReinforceConfig
from rl4lm.data.examples import PromptData
from rl4lm.data.fitting import check_prompts, check_vocabulary, leave_out_long, leave_out_unfit
from rl4lm.data.splits import training_splits
from rl4lm.evaluation.evaluate import Exam
from rl4lm.evaluation.exams import accuracy_of, assemble_exams
from rl4lm.model import loading
from rl4lm.model.adapting import check_continued, with_adapter
from rl4lm.model.policy import Policy
from rl4lm.model.preparing import make_policy
from rl4lm.model.quantized import asked_bits, check_quantisation
from rl4lm.preflight.opening import open_parts
from rl4lm.preflight.probe import probe
from rl4lm.processes.sharding import shard
from rl4lm.processes.world import World
from rl4lm.rewarding.lookup import NamedReward, Reward, check_columns, resolve_rewards
from rl4lm.sampling.loop import EndRule
from rl4lm.sampling.sampler import Sampler
from rl4lm.sampling.served import ServedModel, make_sampler, read_served
from rl4lm.scoring import Scorer
from rl4lm.text import TextCodec


@dataclass(frozen=True)
class Judges:
    """How completions are judged."""

    scorer: Scorer
    accuracy: NamedReward | None  # 1 for a right answer; None where the rows have no answers


@dataclass(frozen=True)
class Task:
    """What is learned and how it is judged."""

    train: PromptData
    held_out: bool  # False where there is no test split and training prompts are evaluated
    judges: Judges
    exams: Sequence[Exam]  # what is evaluated on: held-out prompts, and further data sets
    notes: Sequence[str]  # lines about what was read, and about rows that were left out
    warnings: Sequence[str] = ()
    dropped: int = 0  # prompts that were too long

    @property
    def evaluation(self) -> PromptData:
        """Held-out prompts, or those of training where there are none."""
        return self.exams[0].data

    @property
    def splits(self) -> list[PromptData]:
        """The prompts of training, and those of every evaluation."""
        return [self.train, *(exam.data for exam in self.exams)]


def assemble_task(
    config: ReinforceConfig,
    reward_funcs: Sequence[str | Reward] | None,
    train_dataset: Any,
    eval_dataset: Any,
) -> Task:
    """Read data and rewards, and check that they fit together.

    Raises:
        DataError, RewardError, ConfigError: what is missing or does not fit.
    """
    splits = training_splits(config, train_dataset, eval_dataset)
    judges = assemble_judges(
        config, reward_funcs, [splits.train, splits.evaluation or splits.train]
    )
    train, unfit = leave_out_unfit(judges.scorer.rewards, splits.train)
    notes, held_out = [*splits.notes, *unfit], train
    if splits.evaluation is not None:
        held_out, more = leave_out_unfit(judges.scorer.rewards, splits.evaluation)
        notes += more
    exams, more = assemble_exams(config, judges.scorer, judges.accuracy, held_out, splits.further)
    has_own = splits.evaluation is not None
    return Task(train, has_own, judges, exams, [*notes, *more], splits.warnings)


def fit_task(
    config: ReinforceConfig, model: str | nn.Module | None, tokenizer: Any, task: Task
) -> Task:
    """The task without the prompts that are too long, where `long_prompts` says so.

    Raises:
        DataError, ModelError: no prompt is left, or no tokenizer can be read.
    """
    if config.long_prompts == "refuse":
        return task
    opened = open_parts(config, model, tokenizer)
    train, notes = leave_out_long(config, opened.codec, opened.context, task.train)
    dropped, exams = len(task.train) - len(train), []
    for exam in task.exams:
        data = train
        if exam.data is not task.train:
            data, more = leave_out_long(config, opened.codec, opened.context, exam.data)
            dropped, notes = dropped + len(exam.data) - len(data), [*notes, *more]
        exams.append(replace(exam, data=data))
    return replace(
        task,
        train=train,
        exams=exams,
        notes=[*task.notes, *notes],
        dropped=dropped,
    )


def assemble_judges(
    config: ReinforceConfig,
    reward_funcs: Sequence[str | Reward] | None,
    splits: Sequence[PromptData],
) -> Judges:
    """Find the rewards and check that the splits have their columns; the last split is judged.

    Raises:
        RewardError, ConfigError: a reward that does not resolve or does not fit.
    """
    rewards = resolve_rewards(reward_funcs or config.reward_funcs)
    weights = config.weights_for(len(rewards))
    scorer = Scorer(rewards, weights, config.reward_timeout_s, config.on_reward_error)
    for split in splits:
        check_columns(rewards, split.columns)
    scorer.start()  # while weights are read
    return Judges(scorer, accuracy_of(config, splits[-1].columns, config.dataset_name))


def end_rule(config: ReinforceConfig, policy: Policy | ServedModel) -> EndRule:
    """What ends a completion: the model's end tokens, and the stop strings of the options."""
    stops: Sequence[str] = config.stop_strings
    return EndRule(policy.end_token_ids, _stop_test(stops, policy.codec) if stops else None)


def _stop_test(stops: Sequence[str], codec: TextCodec) -> Callable[[list[int]], bool]:
    def reaches_stop(ids: list[int]) -> bool:
        (text,) = codec.decode([ids])
        return any(stop in text for stop in stops)

    return reaches_stop


def assemble_policy(
    config: ReinforceConfig,
    model: str | nn.Module | None,
    tokenizer: Any,
    peft_config: Any,
    data: Sequence[PromptData],
    world: World,
) -> tuple[Policy, list[str]]:
    """Read tokenizer and weights, put the adapter on, and probe the result.

    Returns:
        The policy, and lines about what the probe switched.

    Raises:
        ModelError, DataError, TrainingError: what cannot be loaded, served or trained.
    """
    codec, network, largest_id = _network(config, model, tokenizer, data, world)
    check_vocabulary(network, largest_id, config.stop_token_ids)
    network, told = with_adapter(config, network, peft_config)
    policy = make_policy(
        network,
        codec,
        dtype=config.dtype,
        stop_token_ids=config.stop_token_ids,
        activation_checkpointing=config.activation_checkpointing,
    )
    world.broadcast([*network.parameters(), *network.buffers()])
    notes = [*told, *probe(policy, config.fast_path)]
    if world.sharding is not None:
        policy.shards = shard(
            policy.module, policy.module.causal_lm, world.sharding, world.device, world.most
        )
    drawn = [token for token in policy.end_token_ids if token < policy.module.vocabulary]
    if not drawn and not config.stop_strings:
        notes.append(
            "neither the model nor its tokenizer names an end token: every completion runs to "
            "max_completion_length; name ends with --stop_token_ids or --stop_strings"
        )
    return policy, notes


def assemble_evaluated(
    config: ReinforceConfig, data: Sequence[PromptData], world: World
) -> tuple[Policy | ServedModel, Sampler]:
    """The model of the options, and what completes prompts with it; a server's weights stay there.

    Raises:
        ModelError, DataError, TrainingError: what cannot be loaded or served.
    """
    model: Policy | ServedModel
    if config.sampler_url is None:
        model, _ = assemble_policy(config, None, None, None, data, world)
    else:
        model = read_served(config, data)
    return model, make_sampler(config, model)


def _network(
    config: ReinforceConfig,
    model: str | nn.Module | None,
    tokenizer: Any,
    data: Sequence[PromptData],
    world: World,
) -> tuple[TextCodec, nn.Module, int]:
    """Text codec, bare model, and the prompts' largest token id; the lengths are checked first."""
    opened = open_parts(config, model, tokenizer)
    largest = check_prompts(config, opened.codec, opened.context, data)
    if isinstance(model, nn.Module):
        return opened.codec, loading.placed(model, config.dtype, world.device), largest
    check_quantisation(config, world.device, world.sharding is not None)
    assert opened.source is not None
    if opened.source.adapter is not None:
        check_continued(opened.source.adapter, config)
    network = loading.load_model(
        opened.source,
        dtype=config.dtype,
        device=world.device,
        attn_implementation=config.attn_implementation,
        bits=asked_bits(config),
    )
    return opened.codec, network, largest
