"""Gather experience: draw completions, score them, and say by how much each beat its baseline.

Everything here is measured under the policy that sampled, and constant afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rl4lm.assembly import Task
from rl4lm.baselines import BASELINES, NEEDS_FEATURES, BaselineInputs, State
from rl4lm.config import ReinforceConfig
from rl4lm.data import stream_indices
from rl4lm.dealing import Deal, Lengths, deal
from rl4lm.early import EarlyScores
from rl4lm.errors import ModelError, RewardError, RewardFailedError
from rl4lm.kl import k1
from rl4lm.metrics import Stopwatch, pack, unscored_rows
from rl4lm.objective import shaping_of
from rl4lm.policy import Policy
from rl4lm.preparing import inference_mode_of
from rl4lm.randomness import Stream
from rl4lm.reference import Reference
from rl4lm.returns import after_each_token, at_last_token, returns_to_go
from rl4lm.sampler import Chance, Draw, Sampler
from rl4lm.sampling import EndRule, Finished
from rl4lm.scoring import RewardContext, Scorer
from rl4lm.served import make_sampler
from rl4lm.shaping import shaped_advantages
from rl4lm.types import Example, Experience, Rollout, Scores
from rl4lm.world import World


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
        self._reference = reference
        self._world = world
        self.sampler: Sampler = make_sampler(config, policy)
        world.check_divides(config.prompts_per_step, "prompts_per_step")
        self.lengths = Lengths()
        self.baseline = BASELINES[config.resolved_baseline]
        self.shaping = shaping_of(config)
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
        keys = self.prompt_keys(step)
        deal, examples = self.deal(keys)
        with self._policy.shards.gathered():
            with self._open_scores(examples, context) as early:
                rollout = self.sample(examples, step, deal.mine, early.listener)
                watch.lap("sample")
                texts, scores = self._scored(early, examples, rollout)
                watch.lap("score")
            gathered = self.centre(keys, deal, examples, rollout, texts, scores, state)
        watch.lap("centre")
        return gathered

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

    def prompt_keys(self, step: int) -> list[int]:
        """Rows of the data that the whole step's P prompts come from."""
        count, drawn_before = self._config.prompts_per_step, step // self._config.num_iterations
        return stream_indices(len(self._task.train), self._config.seed, drawn_before * count, count)

    def examples(self, step: int, places: Sequence[int] | None = None) -> list[Example]:
        """Prompts of a step: those at some places of its list, or all."""
        keys = self.prompt_keys(step)
        return self._task.train.examples(keys if places is None else [keys[k] for k in places])

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
        policy, reference = self.policy_logprobs(rollout), self.reference_logprobs(rollout)
        returns = self.returns(rollout, scores, policy, reference)  # [B] or [B, T]
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
        )
        return experience, new_state

    def returns(
        self, rollout: Rollout, scores: Scores, policy: Tensor, reference: Tensor
    ) -> Tensor:
        """What the baselines and the gradient see of each completion.

        The reward less β times the log-ratio to the reference (`kl_in` in the reward), as one
        number float64 [B]. Where anything is paid per token, a reward, the KL or the entropy, or
        where γ < 1, the returns-to-go of every token, [B, T]; what belongs to the whole completion
        is paid at its last token then.

        Args:
            rollout: the completions.
            scores: of them.
            policy: log π [B, T] of the policy that sampled.
            reference: log π_ref [B, T]; not read where there is no KL.
        """
        mask = rollout.completion_mask
        penalty = self._penalty(policy, reference, mask)
        if scores.token_rewards is None and not self._paid_per_token:
            return scores.rewards.flatten() - penalty.sum(dim=1)
        paid = scores.token_rewards
        if paid is None:
            paid = at_last_token(scores.rewards.flatten(), mask)
        if self._config.kl_in != "token_reward":
            penalty = at_last_token(penalty.sum(dim=1), mask)
        return returns_to_go(paid - penalty + self._bonus(rollout), mask, self._config.gamma)

    @property
    def _paid_per_token(self) -> bool:
        """Whether the options pay tokens apart, whatever the rewards do."""
        config = self._config
        by_token = bool(config.beta) and config.kl_in == "token_reward"
        return config.gamma < 1 or by_token or self._rewards_entropy

    @property
    def _rewards_entropy(self) -> bool:
        return bool(self._config.entropy_coef) and self._config.entropy_in == "reward"

    def _penalty(self, policy: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        """β (log π - log π_ref) of every token, float64 [B, T]; 0 unless the reward pays for it."""
        if not self._config.beta or self._config.kl_in not in ("reward", "token_reward"):
            return torch.zeros(mask.shape, dtype=torch.float64)
        return self._config.beta * k1(policy.double(), reference.double(), mask)

    def _bonus(self, rollout: Rollout) -> Tensor:
        """What each token earns by the entropy of the one after it, float64 [B, T]."""
        mask = rollout.completion_mask
        if not self._rewards_entropy:
            return torch.zeros(mask.shape, dtype=torch.float64)
        entropies = self._policy.completion_entropies(
            rollout, self._config.temperature, self._config.max_tokens_per_micro_batch
        )
        return self._config.entropy_coef * after_each_token(entropies.double(), mask)

    def policy_logprobs(self, rollout: Rollout) -> Tensor:
        """log π of completions that the policy as it is has drawn, [B, T].

        Where there is a KL, by a forward pass like the reference's: against the log-probs of
        sampling, a policy that is the reference would be 1e-7 away from it, and AdamW would make a
        whole step of that where no reward has anything to say.
        """
        if self._reference is None:
            return rollout.sampling_logprobs
        return self._policy.completion_logprobs(
            rollout, self._config.temperature, self._config.max_tokens_per_micro_batch
        )

    def reference_logprobs(self, rollout: Rollout) -> Tensor:
        """log π_ref of completions, [B, T]; [B, 0] where there is no KL."""
        if self._reference is None:
            return torch.zeros(len(rollout.completion_ids), 0)
        return self._reference(rollout)

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
