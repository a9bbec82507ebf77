"""What is told of a run as it happens: to the run directory, and to whoever watches the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rl4lm.assembly import Task
from rl4lm.config import OPTIONS, ReinforceConfig
from rl4lm.costs.estimate import pace
from rl4lm.costs.forecast import forecast
from rl4lm.diagnostics import gap_is_suspicious
from rl4lm.errors import OutputError
from rl4lm.evaluation.evaluate import Evaluated
from rl4lm.experience import Gatherer
from rl4lm.metrics import step_seconds
from rl4lm.model.policy import Policy
from rl4lm.model.preparing import describe
from rl4lm.processes.world import World
from rl4lm.report.write import AT_THE_END, write_report
from rl4lm.rules.diagnosis import Watch
from rl4lm.rundir.provenance import layout
from rl4lm.rundir.resume import Start
from rl4lm.rundir.tracking import REPORT, RunDirectory, prepare_run_directory, reopen_run_directory
from rl4lm.screen.console import Screen
from rl4lm.trackers import Trackers
from rl4lm.types import StepStats

# Findings about a single step, which the screen speaks of as soon as it has happened.
_SAID_AT_ONCE = frozenset({"sampler_gap", "skipped_updates", "gradient_not_finite"})

_TOLD_SAMPLES = 32  # completions of a step that other programs are told of


class Journal:
    """Writes and shows the steps and evaluations of a run; every process calls every method."""

    def __init__(
        self,
        config: ReinforceConfig,
        policy: Policy,
        world: World,
        screen: Screen,
        given: Mapping[str, str],
    ) -> None:
        """Begin with nothing told.

        Args:
            config: the options of the run.
            policy: whose precision says which gap is suspicious.
            world: the processes; the main one writes.
            screen: where a person looks.
            given: what was handed over as an object, for the head of config.yaml.
        """
        self._config = config
        self._policy = policy
        self._world = world
        self.screen = screen
        self._given = given
        self._watch = Watch(config.to_dict(), {"device": str(world.device)})
        self._start = Start()
        self._seconds: list[float] = []  # of each step
        self.evaluations = 0  # lines of eval.jsonl
        run = Path(config.output_dir or "")
        self._trackers = Trackers(
            (config.report_to or ()) if world.is_main else (),
            run,
            config.project,
            config.run_name or run.resolve().name,
            screen.warn,
        )

    def begin(self, start: Start, evaluations: int) -> None:
        """Go on from where a run begins, with so many evaluations in the log already."""
        self._start = start
        self.evaluations = evaluations

    @cached_property
    def directory(self) -> RunDirectory | None:
        """The run directory on the main process, None elsewhere or where nothing is written.

        Made when there is something to write, so that a reward that breaks at its first call
        costs no earlier run its files.
        """
        if self._config.output_dir is None or not self._world.is_main:
            return None
        path, trouble = Path(self._config.output_dir), self.screen.trouble
        if self._start.in_place:
            directory = reopen_run_directory(path, self._start.step, self.evaluations, trouble)
        else:
            directory = prepare_run_directory(path, trouble)
        self._trackers.begin(self._config.to_dict())
        directory.write_config(self._config.to_dict(), {**layout(self._world), **self._given})
        return directory

    def introduce(self, task: Task, notes: Sequence[str]) -> None:
        """Say what is about to be trained, and how."""
        config, world, screen = self._config, self._world, self.screen
        sizes = describe(self._policy.module.model)
        threads = torch.get_num_threads()
        screen.note(
            f"{sizes['parameters']:,} parameters, {sizes['trainable']:,} of them trained; "
            f"{config.prompts_per_step} prompts x {config.num_generations} completions "
            f"a step, baseline {config.resolved_baseline}; {world.size} "
            f"process{'es' if world.size > 1 else ''} on {world.device.type}, "
            f"{threads} thread{'s' if threads > 1 else ''}"
        )
        screen.note(f"rewards: {task.judges.scorer.describe()}")
        named = config.reward_funcs != OPTIONS["reward_funcs"].default
        if named and "reward_funcs given in Python" in self._given:
            screen.warn("reward_funcs of the configuration is not used: functions were given")
        if not task.held_out and config.eval_samples:
            screen.note(
                f"there is no split {config.dataset_test_split!r}: before and after are "
                "measured on training prompts; --held_out_share 0.1 keeps some out for it"
            )
        for note in [*task.notes, *notes]:
            screen.note(note)
        for warning in task.warnings:
            screen.warn(warning)

    def foretell(self, gatherer: Gatherer, step: int) -> None:
        """Say how much memory the run will take, and what to turn where that is too much."""
        if not self.screen.speaks:
            return
        expected = forecast(self._policy, self._config, gatherer, step)
        if expected is not None:
            self.screen.note(expected.line)
            if expected.warning is not None:
                self.screen.warn(expected.warning)

    def _tell_pace(self, stats: StepStats) -> None:
        """Say how long the run will take, once it can be known."""
        self._seconds.append(step_seconds(stats.metrics))
        line = pace(self._seconds, self._config.max_steps - stats.step)
        if line is not None:
            self.screen.note(line)

    def step(self, stats: StepStats) -> None:
        """Log and show a finished step."""
        placed = self._world.collect(list(zip(stats.places, stats.completions, strict=True)))
        rows = [row for _, row in sorted(placed, key=lambda pair: pair[0])]
        if self.directory is not None:
            self.directory.log_step(stats.metrics)
            if rows:  # a further step on the same completions has none of its own
                self.directory.log_completions(stats.step, rows)
        self._trackers.log(stats.step, stats.metrics)
        self.screen.step(stats.step, stats.metrics)
        self._tell_pace(stats)
        every = self._config.sample_table_steps
        if rows and every and (stats.step - 1) % every < self._config.num_iterations:
            # One of each prompt: the samples of one prompt look much alike.
            shown = [row for row in rows if row["sample"] == 0]
            self.screen.completions(stats.step, shown)
            self._trackers.samples(stats.step, shown[:_TOLD_SAMPLES])
        self._warn(stats, rows)

    def _warn(self, stats: StepStats, rows: Sequence[Mapping[str, object]]) -> None:
        if not stats.metrics["updated"]:
            self.screen.skipped(stats.step, stats.metrics)
        dtype = self._policy.compute_dtype
        if gap_is_suspicious(stats.metrics, dtype):
            self.screen.gap(stats.step, stats.metrics, str(dtype).removeprefix("torch."))
        if self._world.is_main:
            for finding in self._watch.observe(stats.metrics, rows):
                if finding.name not in _SAID_AT_ONCE:
                    self.screen.finding(stats.step, finding)

    def out_of_memory(self, step: int, before: int, now: int) -> None:
        """Say that a step was made again with smaller micro-batches, of so many tokens."""
        self.screen.warn(
            f"step {step}: out of memory in the training pass; the step was made again with "
            f"micro-batches of {now} tokens instead of {before}, and so will all later ones"
        )

    def evaluation(self, step: int, when: str, found: Evaluated) -> None:
        """Log and show an evaluation."""
        if self.directory is not None:  # before counting: it may cut back what was logged
            self.directory.log_eval({"step": step, **found.metrics})
            self.directory.log_evaluated(step, found.rows)
        self.evaluations += 1
        self._trackers.log(step, found.metrics, prefix="eval/")
        self.screen.evaluation(when, found.metrics)

    def end(self, summary: Mapping[str, Any]) -> None:
        """Write the summary of a run that has come to its end, and its page, and show the result.

        A page that cannot be written ends nothing.
        """
        if self.directory is not None:
            self.directory.settle()
            self.directory.write_summary(summary)
            path = self.directory.path
            try:
                write_report([path], path / REPORT, AT_THE_END)
            except OutputError as error:
                self.screen.warn(f"{error}; `rl4lm report {path}` writes it again")
        self._show_result(summary)

    def _show_result(self, summary: Mapping[str, Any]) -> None:
        footer = (
            f"{summary['steps']} steps, {summary['samples']:,} completions in "
            f"{summary['train_seconds']:.0f} s of training, "
            f"{summary['peak_memory_bytes'] / 1e6:,.0f} MB at most"
        )
        if self._config.output_dir is not None:
            footer += f"; weights in {Path(self._config.output_dir) / 'model'}"
        before, after, change = (summary[f"eval_{n}"] for n in ("before", "after", "change"))
        self.screen.before_after(before, after, change, footer)

    def close(self) -> None:
        """End what follows the run."""
        self._trackers.finish()
