"""The trainer: from a configuration, or from objects handed in, to a run that can begin.

The order of things in a run is in `rl4lm.run`, what a step does in `rl4lm.learner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from rl4lm.assembly import assemble_policy, assemble_task, end_rule, fit_task
from rl4lm.config import ReinforceConfig
from rl4lm.eightbit import check_optimizer, check_replicated
from rl4lm.evaluation.examining import Examiner
from rl4lm.evaluation.exams import evaluation_of
from rl4lm.export.publishing import begin_publishing, publish
from rl4lm.interrupted import how_to_go_on
from rl4lm.journal import Journal
from rl4lm.learner import Learner
from rl4lm.processes.world import World
from rl4lm.rewarding.lookup import Reward
from rl4lm.rewarding.models import listed
from rl4lm.run import Callback, Run
from rl4lm.rundir.provenance import given_in_python
from rl4lm.rundir.resume import agree, check_output, find_start
from rl4lm.sampling.loop import EndRule
from rl4lm.sampling.offpolicy import check_off_policy
from rl4lm.sampling.served import check_server
from rl4lm.saving import Checkpoints
from rl4lm.screen.console import Screen
from rl4lm.trackers import check_trackers
from rl4lm.types import Rollout, TrainState


class ReinforceTrainer:
    """Fine-tunes a causal language model by sequence-level REINFORCE on rule-based rewards.

    The gradient of a step is that of ``L = -(1/N) Σ_i (r_i - b_i) · log π(o_i|q_i)`` over the
    N = prompts_per_step · num_generations completions of all processes (Williams, 1992).
    """

    def __init__(
        self,
        model: Any = None,
        reward_funcs: str | Reward | Sequence[str | Reward] | None = None,
        args: ReinforceConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: Sequence[Callback] | None = None,
        screen: Screen | None = None,
        reward_processing_classes: Any = None,
    ) -> None:
        """Put a run together and check it; nothing is written yet.

        Args:
            model: a name, a directory or a model object; None means ``args.model_name_or_path``.
            reward_funcs: one or several callables, names or sequence classifiers; None means
                ``args.reward_funcs``.
            args: the configuration; None means the defaults.
            train_dataset: rows with the prompt column; None means ``args.dataset_name``.
            eval_dataset: rows to evaluate on, or a mapping of names to such; None means
                ``args.dataset_test_split``. The first one's numbers go by their own names.
            processing_class: the tokenizer; None means the model's own.
            peft_config: an adapter to train; None means that ``args.use_peft`` decides.
            callbacks: told of every finished step.
            screen: where progress is shown; None means the standard output.
            reward_processing_classes: tokenizers of the reward models among ``reward_funcs``, None
                for functions; None means their own.

        Raises:
            Rl4lmError: one of its kinds, in words, for whatever cannot be used.
        """
        config = args or ReinforceConfig()
        if isinstance(model, str | Path):  # one place says which model it is
            config, model = replace(config, model_name_or_path=str(model)), None
        self.config = config
        self.world = _open_world(config)
        _refuse(config, self.world)
        screen = screen or Screen(logging_steps=config.logging_steps)
        screen.only_if(self.world.is_main)
        rewards = listed(reward_funcs, reward_processing_classes)
        task = assemble_task(config, rewards, train_dataset, eval_dataset)
        self.task = fit_task(config, model, processing_class, task)
        self.policy, notes = assemble_policy(
            config, model, processing_class, peft_config, self.task.splits, self.world
        )
        given = given_in_python(
            model=model,
            processing_class=processing_class,
            peft_config=peft_config,
            reward_funcs=rewards,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
        )
        ends = end_rule(config, self.policy)
        self.learner = Learner(config, self.policy, self.task, ends, self.world)
        self._run = self._make_run(ends, screen, given, callbacks or [])
        self._run.journal.introduce(self.task, notes)

    def _make_run(
        self,
        ends: EndRule,
        screen: Screen,
        given: Mapping[str, str],
        callbacks: Sequence[Callback],
    ) -> Run:
        config, policy, world = self.config, self.policy, self.world
        return Run(
            config=config,
            task=self.task,
            policy=policy,
            learner=self.learner,
            world=world,
            examiner=Examiner(policy, self.task.exams, evaluation_of(config, ends), world),
            checkpoints=Checkpoints(config, policy, self.learner, world, self.task.train),
            journal=Journal(config, policy, world, screen, given),
            callbacks=list(callbacks),
        )

    @property
    def screen(self) -> Screen:
        """Where progress is shown."""
        return self._run.journal.screen

    @property
    def state(self) -> TrainState:
        """What has been done so far."""
        return self.learner.state

    def gradient(self, rollout: Rollout, advantages: Tensor) -> dict[str, Tensor]:
        """∇L of a rollout by the very backward pass that a training step makes.

        ``L = -(1/N) Σ_i Σ_t A_{i,t} log π(o_{i,t})``; the descent direction is its negative.

        Args:
            rollout: this process's completions; N counts those of all processes.
            advantages: constants, [B] per completion or [B, T] per token.

        Returns:
            Name in ``named_parameters()`` of the unwrapped model -> gradient, trainable
            parameters only, summed over the processes, before any clipping of its norm.

        Raises:
            ValueError: advantages that fit neither [B] nor [B, T].
        """
        return self.learner.gradient(rollout, advantages)

    def evaluate(self) -> dict[str, float]:
        """How good the completions of held-out prompts are; empty where evaluation is off."""
        return self._run.evaluate().metrics

    def train(self, resume_from_checkpoint: str | bool | None = None) -> dict[str, Any]:
        """Evaluate, train, evaluate again, and save.

        Args:
            resume_from_checkpoint: the folder of a checkpoint, or True for the newest complete one
                of the output directory; None means ``args.resume_from_checkpoint``.

        Returns:
            What ``summary.json`` holds: ``eval_before`` and ``eval_after`` (metric -> value),
            ``steps``, ``samples``, ``tokens``, ``train_seconds``, ``peak_memory_bytes``, ``seed``,
            ``version`` and more.

        Raises:
            Rl4lmError: one of its kinds, for what cannot be used or goes wrong; `PeerLostError`
                where that is another process.
            Stopped: Ctrl-C or SIGTERM; the step in hand was finished and a checkpoint saved.
        """
        begin_publishing(self.config, self.world)
        journal = self._run.journal
        with self.task.judges.scorer:  # the processes of rewards end with the run
            start = find_start(self.config, resume_from_checkpoint)
            try:
                summary = self._run.go(agree(start, self.world.gather_lists))
            finally:
                journal.close()
        publish(self.config, journal.directory, self.screen, summary)
        return summary


def _open_world(config: ReinforceConfig) -> World:
    """The processes, as the options want them."""
    world = World(config.ddp_timeout)
    world.advise(partial(how_to_go_on, config.output_dir))
    world.use_threads(config.torch_threads)
    world.check_divides(config.prompts_per_step, "prompts_per_step")
    return world


def _refuse(config: ReinforceConfig, world: World) -> None:
    """What can be refused before anything is read."""
    check_output(config)
    check_off_policy(config)
    check_trackers(config.report_to or ())
    check_optimizer(config)
    check_replicated(config, world.sharding is not None)
    check_server(config, config.temperature)
