"""What the documentation says the gradient of a step is, worked out from the truth alone.

The right hand of every comparison that `verify` makes: nothing here runs code that trains.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl4lm.config import ReinforceConfig
from rl4lm.estimator.baselines import SCALES
from rl4lm.exact.enumeration import END, Rewards, Truth


class Stated:
    """The estimator of a configuration on the tiny problem, by its definition."""

    def __init__(
        self, config: ReinforceConfig, truth: Truth, rewards: Rewards, token_rewards: bool
    ) -> None:
        """Take the configuration and the truth about the policy and its rewards."""
        self._config = config
        self._truth = truth
        self.returns = self._returns(rewards, token_rewards)  # float64 [P, n, T]
        self.ended = torch.tensor([ids[-1] == END for ids in truth.completions])  # bool [n]

    def _returns(self, rewards: Rewards, token_rewards: bool) -> Tensor:
        """What each token is answerable for: Σ_{k≥t} γ^{k-t} of what is paid at k."""
        config, truth = self._config, self._truth
        paid = torch.zeros_like(truth.logprobs)
        for o, ids in enumerate(truth.completions):
            last = len(ids) - 1
            earned = rewards.per_token[:, o]  # [P, T]
            ratio = truth.logprobs[:, o] - truth.reference[:, o]  # [P, T]
            if token_rewards:
                paid[:, o] += earned
            else:
                paid[:, o, last] += earned.sum(dim=1)
            if config.kl_in == "reward":
                paid[:, o, last] -= config.beta * ratio.sum(dim=1)
            if config.kl_in == "token_reward":
                paid[:, o] -= config.beta * ratio
            if config.entropy_in == "reward":
                paid[:, o, :last] += config.entropy_coef * truth.entropies[:, o, 1 : last + 1]
        places = torch.arange(paid.shape[-1])
        ahead = places - places[:, None]  # [t, k], k - t
        powers = torch.where(ahead >= 0, config.gamma ** ahead.clamp(min=0).double(), 0.0)
        return (paid @ powers.T) * truth.mask

    def expected(self) -> Tensor:
        """E[-∇L] over all batches: [D]."""
        truth, config = self._truth, self._config
        prompts = len(truth.logprobs)
        weight = truth.probability[..., None] / prompts  # [P, n, 1]
        scale = SCALES[config.resolved_baseline](prompts, config.num_generations)
        seen = (1 - scale) * self.returns[..., :1]  # what a mean that sees its own sample takes off
        weights = (self.returns - seen + self._direct(truth)) * weight
        slopes = weights[..., None] * truth.slopes
        entropic = config.entropy_coef * weight[..., None] * truth.entropy_slopes
        return (slopes + entropic).sum(dim=(0, 1, 2))

    @property
    def is_shaped(self) -> bool:
        """Whether completions are multiplied by anything but 1."""
        config = self._config
        weighed = config.loss_type != "reinforce" or config.mask_truncated_completions
        return weighed or config.scale_rewards != "none"

    def factors(self, chosen: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """What the advantages of batches are multiplied by, and what direct terms are.

        Args:
            chosen: int64 [..., P, G], the completions.
            rewards: float64 [..., P, G], their returns from the start.

        Returns:
            (w/s, w), float64 [..., P, G] each.
        """
        lengths = self._truth.mask.sum(dim=1)[chosen].double()
        kept = self.ended[chosen].double()
        if not self._config.mask_truncated_completions:
            kept = torch.ones_like(kept)
        tokens = (kept * lengths).sum(dim=(-2, -1), keepdim=True)
        weight = {
            "reinforce": kept,
            "grpo": kept / lengths,
            "dr_grpo": kept / self._config.max_completion_length,
            "dapo": kept * lengths.shape[-2] * lengths.shape[-1] / tokens.clamp(min=1),
        }[self._config.loss_type]
        if self._config.scale_rewards == "group":
            return weight / (rewards.std(dim=-1, keepdim=True) + 1e-4), weight
        if self._config.scale_rewards == "batch":
            return weight / (rewards.flatten(-2).std(dim=-1)[..., None, None] + 1e-4), weight
        return weight, weight

    def expected_over(self, chosen: Tensor, probability: Tensor, baseline: Tensor) -> Tensor:
        """E[-∇L] as the mean over enumerated batches: [D].

        Args:
            chosen: int64 [K, P, G], the completions of every batch.
            probability: float64 [K], of the batches.
            baseline: float64 [K, P, G].
        """
        truth, count = self._truth, chosen[0].numel()
        prompts = range(len(truth.logprobs))
        start = torch.stack([self.returns[p, chosen[:, p], 0] for p in prompts], dim=1)
        factors, weights = self.factors(chosen, start)
        total = torch.zeros_like(truth.slopes[0, 0, 0])
        for p in prompts:
            held = torch.nn.functional.one_hot(chosen[:, p], len(truth.completions)).double()
            scaled, taken, counted = (
                torch.einsum("k,kg,kgn->n", probability, each[:, p], held)
                for each in (factors, factors * baseline, weights)
            )
            direct = counted[:, None] * self._direct(truth)[p]
            pull = scaled[:, None] * self.returns[p] - taken[:, None] + direct  # [n, T]
            entropic = self._config.entropy_coef * counted[:, None]
            slopes = pull[..., None] * truth.slopes[p]
            total += (slopes + entropic[..., None] * truth.entropy_slopes[p]).sum(dim=(0, 1))
        return total / count

    def of_batch(
        self, p: Tensor, o: Tensor, advantages: Tensor, weights: Tensor, now: Truth
    ) -> Tensor:
        """-∇L of one batch by linearity: [D].

        Args:
            p: int64 [B], the prompt of each completion.
            o: int64 [B], which completion it is.
            advantages: float64 [B, T], times w/s.
            weights: w [B].
            now: the policy that is differentiated; the truth is the one that sampled.
        """
        epsilon = self._config.resolved_epsilon
        ratio = (now.logprobs[p, o].sum(-1) - self._truth.logprobs[p, o].sum(-1)).exp()[:, None]
        pulls = advantages * ratio
        if epsilon is not None:
            too_high = (advantages > 0) & (ratio > 1 + epsilon)
            too_low = (advantages < 0) & (ratio < 1 - epsilon)
            pulls = pulls.masked_fill(too_high | too_low, 0.0)
        pulls = pulls + weights[:, None] * self._direct(now)[p, o]
        slopes = pulls[..., None] * now.slopes[p, o]
        counts = self._config.entropy_coef * weights[:, None, None]
        entropic = counts * now.entropy_slopes[p, o]
        return (slopes + entropic).sum(dim=(0, 1)) / len(p)

    def spread(
        self, direction: Tensor, chosen: Tensor, probability: Tensor, baseline: Tensor
    ) -> float:
        """Standard deviation of -∇L along a direction [D] over batches, as in `variance`."""
        truth, coefficient = self._truth, self._config.entropy_coef
        slopes, entropic = truth.slopes @ direction, truth.entropy_slopes @ direction  # [P, n, T]
        direct = self._direct(truth) * slopes + coefficient * entropic
        prompts, group = range(len(slopes)), chosen.shape[-1]
        earned, straight, score, start = (
            torch.stack([table[p][chosen[:, p]] for p in prompts], dim=1)
            for table in (
                (self.returns * slopes).sum(dim=-1),
                direct.sum(dim=-1),
                slopes.sum(dim=-1),
                self.returns[..., 0],
            )
        )  # [K, P, G]
        factors, weights = self.factors(chosen, start)
        pulls = factors * (earned - baseline * score) + weights * straight
        along = pulls.sum(dim=(1, 2)) / (len(slopes) * group)  # [K]
        mean = probability @ along
        return float((probability @ (along - mean).square()).sqrt())

    def _direct(self, truth: Truth) -> Tensor:
        """Weights of ∇log π that the KL terms of the loss give every token, [P, n, T]."""
        beta, form = self._config.beta, self._config.kl_in
        if form == "loss":
            return -beta * truth.log_ratio[..., None].expand_as(truth.logprobs)
        if form == "grpo_k3":
            return -beta * (1 - (truth.reference - truth.logprobs).exp())
        return torch.zeros_like(truth.logprobs)

    def variance(self, chosen: Tensor, probability: Tensor, baseline: Tensor) -> float:
        """tr Cov of (1/N) Σ_i (Σ_t G_{i,t} ∇log π_{i,t} - b_i ∇log π_i) over batches.

        Args:
            chosen: int64 [K, P, G], the completions of every batch.
            probability: float64 [K], of the batches.
            baseline: float64 [K, P, G].
        """
        truth = self._truth
        pulls = (self.returns[..., None] * truth.slopes).sum(dim=2)  # [P, n, D]
        stacked = torch.cat([pulls, truth.scores]).flatten(0, 1)  # [2·P·n, D]
        gram = stacked @ stacked.T
        prompts, n, count = len(pulls), len(truth.completions), chosen[0].numel()
        first = (chosen + n * torch.arange(prompts)[:, None]).flatten(1)  # [K, B]
        places = torch.cat([first, first + n * prompts], dim=1)  # [K, 2B]
        parts = torch.cat([torch.ones_like(baseline), -baseline], dim=1).flatten(1) / count
        weights = torch.zeros(len(chosen), len(stacked), dtype=torch.float64)
        weights.scatter_add_(1, places, parts)  # [K, 2·P·n], of each vector in a batch's gradient
        squares = ((weights @ gram) * weights).sum(dim=1)
        mean = probability @ weights
        return float(probability @ squares - mean @ gram @ mean)
