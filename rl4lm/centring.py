"""From the scores of a step to its advantages: by how much each completion beat its baseline.

Over the completions of all processes, whose numbers meet here; each then keeps those of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rl4lm.config import ReinforceConfig
from rl4lm.earnings import Earnings, from_start
from rl4lm.errors import ModelError
from rl4lm.estimator.baselines import BASELINES, NEEDS_FEATURES, BaselineInputs, State
from rl4lm.estimator.shaping import shaped_advantages
from rl4lm.groups import Groups
from rl4lm.metrics import measured, pack
from rl4lm.model.policy import Policy
from rl4lm.model.preparing import inference_mode_of
from rl4lm.objective import shaping_of
from rl4lm.processes.dealing import Deal
from rl4lm.processes.world import World
from rl4lm.types import Drawing, Experience, Rollout


class Centre:
    """Makes experience of completions and scores: returns, baseline, advantages."""

    def __init__(
        self, config: ReinforceConfig, policy: Policy, earnings: Earnings, world: World
    ) -> None:
        """Take the parts.

        Args:
            config: names the baseline and the shaping.
            policy: whose hidden states some baselines read.
            earnings: what the baselines and the gradient see of a completion.
            world: the processes, over which a step is centred.

        Raises:
            ModelError: the baseline needs hidden states that this model does not give apart.
        """
        self._policy = policy
        self._world = world
        self.earnings = earnings
        self.baseline = BASELINES[config.resolved_baseline]
        self.shaping = shaping_of(config)
        self._needs_features = config.resolved_baseline in NEEDS_FEATURES
        if self._needs_features and not policy.module.separate_head:
            raise ModelError(
                f"baseline={config.baseline} reads the hidden states of prompts, which are not at "
                f"hand for {type(policy.module.causal_lm).__name__}: its logits are more than its "
                "head's output, so it runs whole; choose baseline=prompt_value"
            )

    def __call__(
        self, keys: Sequence[int], deal: Deal, groups: Groups, state: State
    ) -> tuple[Experience, State]:
        """From scores to advantages, over the whole step.

        Args:
            keys: rows of the data that the whole step's P prompts come from.
            deal: who has which of them.
            groups: this process's prompts, with their completions and scores.
            state: the baseline's, of past steps.

        Returns:
            The experience, and the baseline's state after it.
        """
        rollout, scores = groups.rollout, groups.scores
        policy = self.earnings.policy_logprobs(rollout)
        reference = self.earnings.reference_logprobs(rollout)
        returns = self.earnings.returns(rollout, scores, policy, reference)  # [B] or [B, T]
        packed = pack(rollout, scores, from_start(returns))
        measures = deal.in_order(self._world.gather(packed))
        step = measured(measures)  # of all processes, in the order of the step's list
        baseline, new_state = self.baseline(
            step.returns, self.inputs(keys, deal, rollout, measures), state
        )  # [P, G]
        scales = self.shaping.scales(step.returns, step.valid)
        weights = self.shaping.weights(step.lengths, step.ended)
        mine, factors, counts = (
            each[list(deal.mine)].flatten() for each in (baseline, weights / scales, weights)
        )  # [B]
        experience = Experience(
            examples=groups.examples,
            rollout=rollout,
            texts=groups.texts,
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
            keys=[keys[place] for place in deal.mine],
            drawing=Drawing(baseline.numel(), int(step.lengths.sum())),
        )
        return experience, new_state

    def inputs(
        self, keys: Sequence[int], deal: Deal, rollout: Rollout, measures: Tensor
    ) -> BaselineInputs:
        """What a baseline may look at besides the rewards, of the whole step."""
        step = measured(measures)
        return BaselineInputs(
            lengths=step.lengths,
            valid=step.valid,
            prompt_keys=torch.tensor(list(keys)),
            prompt_features=self._features(deal, rollout, len(measures)),
        )

    def _features(self, deal: Deal, rollout: Rollout, prompts: int) -> Tensor:
        """float64 [P, F] of the step's prompts; F = 0 where the baseline asks for none."""
        if not self._needs_features:
            return torch.zeros(prompts, 0, dtype=torch.float64)
        with inference_mode_of(self._policy.module):
            mine = self._policy.prompt_features(rollout.prompt_ids, rollout.prompt_mask)
        return deal.in_order(self._world.gather(mine))
