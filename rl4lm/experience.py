"""Gather experience: draw completions, score them, and say by how much each beat its baseline.

Everything here is measured under the policy that sampled, and constant afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rl4lm.assembly import Task
from rl4lm.config import ReinforceConfig
from rl4lm.curriculum import make_course
from rl4lm.early import EarlyScores
from rl4lm.earnings import Earnings
from rl4lm.errors import ModelError, RewardError, RewardFailedError
from rl4lm.estimator.baselines import BASELINES, NEEDS_FEATURES, BaselineInputs, State
from rl4lm.estimator.shaping import shaped_advantages
from rl4lm.groups import Groups
from rl4lm.metrics import Stopwatch, pack, unscored_rows
from rl4lm.model.policy import Policy
from rl4lm.model.preparing import inference_mode_of
from rl4lm.model.reference import Reference
from rl4lm.objective import shaping_of
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
            world: the processes; each works on its share of the prompts.

        Raises:
            ModelError: the baseline needs hidden states that this model does not give apart.
        """
        self._config = config
        self._policy = policy
        self._task = task
        self._ends = ends
        self._world = world
        self.earnings = Earnings(config, policy, reference)
        self.course = make_course(config, task.train)
        self.sampler: Sampler = make_sampler(config, policy)
        world.check_divides(config.prompts_per_step, "prompts_per_step")
        self.lengths = Lengths()
        self.baseline = BASELINES[config.resolved_baseline]
        self.shaping = shaping_of(config)
        self._live: Live = all_live
        if config.dynamic_sampling:
            self._live = partial(have_advantage, self.earnings, self.baseline, self.shaping)
        self._needs_features = config.resolved_baseline in NEEDS_FEATURES
        if self._needs_features and not policy.module.separate_head:
            raise ModelError(
                f"baseline={config.baseline} reads the hidden states of prompts, which are not at "
                f"hand for {type(policy.module.causal_lm).__name__}: its logits are more than its "
                "head's output, so it runs whole; choose baseline=prompt_value"
            )

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
        keys, count = self.prompt_list(step), self._config.prompts_per_step
        dealt, _ = self.deal(keys[:count])

        def draw(places: Sequence[int]) -> Groups:
            return self._draw(
                self.rows([keys[place] for place in places]), step, places, context, watch
            )

        with self._policy.shards.gathered():
            rounds = self._config.dynamic_sampling
            groups, mine = draw_rounds(dealt.mine, count, rounds, draw, self._live)
            table = dealt.in_order(self._world.gather(mine))
            experience, new_state = self.centre(
                kept_keys(keys, table),
                dealt,
                groups.examples,
                groups.rollout,
                groups.texts,
                groups.scores,
                state,
            )
        done = self._learn_of_prompts(step, keys, table)
        watch.lap("centre")
        return replace(experience, drawing=done), new_state

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

    def _learn_of_prompts(self, step: int, keys: Sequence[int], table: Tensor) -> Drawing:
        """What the draws of the whole step say of its prompts, for later choices and the log."""
        sampling = step // self._config.num_iterations
        chosen = self.course.metrics(sampling, keys[: self._config.prompts_per_step])
        self.course.note(sampling, *earned_by(keys, table))
        done = drawing(table, self._config.num_generations)
        return replace(done, metrics={**done.metrics, **chosen})

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
        examples = self._task.train.examples(prompt_keys)
        costs = self.lengths.costs(prompt_keys, examples, self._config.num_generations)
        dealt = Deal(deal(costs, self._world.size), self._world.rank)
        return dealt, [examples[place] for place in dealt.mine]

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
        return EarlyScores(
            self._task.judges.scorer,
            examples,
            self._config.num_generations,
            self._policy.codec.decode,
            context,
        )

    def centre(
        self,
        prompt_keys: Sequence[int],
        deal: Deal,
        examples: Sequence[Example],
        rollout: Rollout,
        texts: Sequence[str],
        scores: Scores,
        state: State,
    ) -> tuple[Experience, State]:
        """From scores to advantages, over the whole step.

        Args:
            prompt_keys: rows of the data that the whole step's P prompts come from.
            deal: who has which of them.
            examples: this process's prompts.
            rollout: their completions.
            texts: of the completions.
            scores: of the completions.
            state: the baseline's, of past steps.

        Returns:
            The experience, and the baseline's state after it.
        """
        policy = self.earnings.policy_logprobs(rollout)
        reference = self.earnings.reference_logprobs(rollout)
        returns = self.earnings.returns(rollout, scores, policy, reference)  # [B] or [B, T]
        from_start = returns if returns.dim() == 1 else returns[:, 0]
        gathered = self._world.gather(pack(rollout, scores, from_start))
        measures = deal.in_order(gathered)  # [P, G, 6 + K]
        self.lengths.note(prompt_keys, measures[..., 3])
        baseline, new_state = self.baseline(
            measures[..., 0], self.inputs(prompt_keys, deal, rollout, measures), state
        )  # [P, G]
        scales = self.shaping.scales(measures[..., 0], measures[..., 2].bool())
        weights = self.shaping.weights(measures[..., 3], measures[..., 4].bool())
        mine, factors, counts = (
            each[list(deal.mine)].flatten() for each in (baseline, weights / scales, weights)
        )  # [B]
        experience = Experience(
            examples=examples,
            rollout=rollout,
            texts=texts,
            scores=scores,
            measures=measures,
            returns=returns,
            advantages=shaped_advantages(
                returns, mine, factors, scores.valid.flatten(), rollout.completion_mask
            ),
            weights=counts,
            policy_logprobs=policy,
            reference_logprobs=reference,
            num_completions=baseline.numel(),
            places=deal.mine,
            keys=[prompt_keys[place] for place in deal.mine],
            drawing=Drawing(baseline.numel(), int(measures[..., 3].sum())),
        )
        return experience, new_state

    def inputs(
        self, prompt_keys: Sequence[int], deal: Deal, rollout: Rollout, measures: Tensor
    ) -> BaselineInputs:
        """What a baseline may look at besides the rewards, of the whole step."""
        return BaselineInputs(
            lengths=measures[..., 3].long(),
            valid=measures[..., 2].bool(),
            prompt_keys=torch.tensor(list(prompt_keys)),
            prompt_features=self._features(deal, rollout),
        )

    def _features(self, deal: Deal, rollout: Rollout) -> Tensor:
        """float64 [P, F] of the step's prompts; F = 0 where the baseline asks for none."""
        if not self._needs_features:
            return torch.zeros(self._config.prompts_per_step, 0, dtype=torch.float64)
        with inference_mode_of(self._policy.module):
            mine = self._policy.prompt_features(rollout.prompt_ids, rollout.prompt_mask)
        return deal.in_order(self._world.gather(mine))
