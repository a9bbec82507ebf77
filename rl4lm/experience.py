"""Gather experience: draw completions, score them, and say by how much each beat its baseline.

Everything here is measured under the policy that sampled, and constant afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from rl4lm.assembly import Task
from rl4lm.centring import Centre
from rl4lm.config import ReinforceConfig
from rl4lm.curriculum import make_course
from rl4lm.early import EarlyScores
from rl4lm.earnings import Earnings
from rl4lm.errors import RewardError, RewardFailedError
from rl4lm.estimator.baselines import State
from rl4lm.groups import Groups
from rl4lm.metrics import Stopwatch, measured, unscored_rows
from rl4lm.model.policy import Policy
from rl4lm.model.reference import Reference
from rl4lm.processes.dealing import Deal, Lengths, deal
from rl4lm.processes.world import World
from rl4lm.randomness import Stream
from rl4lm.rounds import Live, all_live, draw_rounds, drawing, earned_by, have_advantage, kept_keys
from rl4lm.sampling.loop import EndRule, Finished
from rl4lm.sampling.sampler import Chance, Draw, Sampler
from rl4lm.sampling.served import make_sampler
from rl4lm.scoring import RewardContext, Scorer
from rl4lm.types import Drawing, Example, Experience, Rollout, Scores


class Gatherer:
    """Makes the experience of a step, on this process's share of the prompts."""

    def __init__(
        self,
        config: ReinforceConfig,
        policy: Policy,
        task: Task,
        ends: EndRule,
        reference: Reference | None,
        world: World,
    ) -> None:
        """Take the parts.

        Args:
            config: the options of the run.
            policy: what is trained; it samples too, unless the options name a server.
            task: prompts and rewards.
            ends: what ends a completion.
            reference: log π_ref of completions; None where there is no KL.
            world: the processes; each works on an equal share of the prompts.

        Raises:
            ModelError: the baseline needs hidden states that this model does not give apart.
        """
        self._config = config
        self._policy = policy
        self._task = task
        self._ends = ends
        self._world = world
        self.course = make_course(config, task.train)
        self.lengths = Lengths()
        self.sampler: Sampler = make_sampler(config, policy)
        self.centre = Centre(config, policy, Earnings(config, policy, reference), world)
        self._live: Live = all_live
        if config.dynamic_sampling:
            parts = self.centre.earnings, self.centre.baseline, self.centre.shaping
            self._live = partial(have_advantage, *parts)

    @property
    def scorer(self) -> Scorer:
        """What judges the completions."""
        return self._task.judges.scorer

    def gather(
        self, step: int, state: State, context: RewardContext, watch: Stopwatch
    ) -> tuple[Experience, State]:
        """Sample, score and centre; returns the experience and the baseline's new state.

        Args:
            step: counted from 0; what is drawn depends on it.
            state: of the baseline, from past steps.
            context: for rewards that ask where training stands.
            watch: told of what took how long.
        """
        listed, count = self.prompt_list(step), self._config.prompts_per_step
        dealt, _ = self.deal(listed[:count])

        def draw(places: Sequence[int]) -> Groups:
            examples = self.rows([listed[place] for place in places])
            return self._draw(examples, step, places, context, watch)

        with self._policy.shards.gathered():
            rounds = self._config.dynamic_sampling
            groups, mine = draw_rounds(dealt.mine, count, rounds, draw, self._live)
            table = dealt.in_order(self._world.gather(mine))
            keys = kept_keys(listed, table)
            experience, new_state = self.centre(keys, dealt, groups, state)
        self.lengths.note(keys, measured(experience.measures).lengths)
        done = self._learn_of_prompts(step, listed, table)
        watch.lap("centre")
        return replace(experience, drawing=done), new_state

    def prompt_list(self, step: int) -> list[int]:
        """Rows of the data that a step may draw: its P prompts, then P for each further round."""
        sampling = step // self._config.num_iterations
        lists = 1 + self._config.dynamic_sampling
        return self.course.choose(sampling, lists, self._config.prompts_per_step)

    def prompt_keys(self, step: int) -> list[int]:
        """Rows of the data that the whole step's first P prompts come from."""
        return self.prompt_list(step)[: self._config.prompts_per_step]

    def rows(self, keys: Sequence[int]) -> list[Example]:
        """Prompts by their rows of the data."""
        return self._task.train.examples(keys)

    def examples(self, step: int) -> list[Example]:
        """The first P prompts of a step."""
        return self.rows(self.prompt_keys(step))

    def deal(self, prompt_keys: Sequence[int]) -> tuple[Deal, list[Example]]:
        """Who draws which prompts of a step, and those of this process."""
        examples = self.rows(prompt_keys)
        costs = self.lengths.costs(prompt_keys, examples, self._config.num_generations)
        dealt = Deal(deal(costs, self._world.size), self._world.rank)
        return dealt, [examples[place] for place in dealt.mine]

    def _draw(
        self,
        examples: Sequence[Example],
        step: int,
        places: Sequence[int],
        context: RewardContext,
        watch: Stopwatch,
    ) -> Groups:
        """Sample and score the prompts at some places of the step's list."""
        with self._open_scores(examples, context) as early:
            rollout = self.sample(examples, step, places, early.listener)
            watch.lap("sample")
            texts, scores = self._scored(early, examples, rollout)
            watch.lap("score")
        return Groups(examples, rollout, texts, scores)

    def sample(
        self,
        examples: Sequence[Example],
        step: int,
        places: Sequence[int],
        finished: Finished | None = None,
    ) -> Rollout:
        """Draw G completions of each example.

        Args:
            examples: this process's prompts.
            step: what is drawn depends on it.
            places: where each of the examples stands in the step's list; and on that.
            finished: told of completions as they end.
        """
        chance = Chance(
            seed=self._config.seed,
            stream=Stream.TRAINING,
            step=step,
            places=places,
            temperature=self._config.temperature,
        )
        draw = Draw(
            prompts=self._policy.codec.encode([example.prompt for example in examples]),
            num_generations=self._config.num_generations,
            max_completion_length=self._config.max_completion_length,
            ends=self._ends,
            chance=chance,
        )
        return self.sampler(draw, finished)

    def _open_scores(self, examples: Sequence[Example], context: RewardContext) -> EarlyScores:
        group, decode = self._config.num_generations, self._policy.codec.decode
        return EarlyScores(self.scorer, examples, group, decode, context)

    def _scored(
        self, early: EarlyScores, examples: Sequence[Example], rollout: Rollout
    ) -> tuple[list[str], Scores]:
        """Texts and scores; an error of a reward takes with it what could not be scored."""
        ids = rollout.completion_lists()
        try:
            return early.finish(ids)
        except (RewardError, RewardFailedError) as error:
            error.sampled = unscored_rows(examples, self._policy.codec.decode(ids), ids)
            raise

    def _learn_of_prompts(self, step: int, keys: Sequence[int], table: Tensor) -> Drawing:
        """What the draws of the whole step say of its prompts, for later choices and the log."""
        sampling = step // self._config.num_iterations
        chosen = self.course.metrics(sampling, keys[: self._config.prompts_per_step])
        self.course.note(sampling, *earned_by(keys, table))
        done = drawing(table, self._config.num_generations)
        return replace(done, metrics={**done.metrics, **chosen})
