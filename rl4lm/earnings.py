"""What completions have earned: rewards less the KL, and with what tokens are paid besides.

Measured under the policy that sampled, and constant afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl4lm.config import ReinforceConfig
from rl4lm.estimator.kl import k1
from rl4lm.estimator.returns import after_each_token, at_last_token, returns_to_go
from rl4lm.model.policy import Policy
from rl4lm.model.reference import Reference
from rl4lm.types import Rollout, Scores


def from_start(returns: Tensor) -> Tensor:
    """What a whole completion has earned, [B], of its returns [B] or [B, T]."""
    return returns if returns.dim() == 1 else returns[:, 0]


class Earnings:
    """What the baselines and the gradient see of each completion."""

    def __init__(
        self, config: ReinforceConfig, policy: Policy, reference: Reference | None
    ) -> None:
        """Take the parts.

        Args:
            config: the options of the run.
            policy: what has sampled.
            reference: log π_ref of completions; None where there is no KL.
        """
        self._config = config
        self._policy = policy
        self._reference = reference

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
