"""Completions run through the model as they stand: what it says of their tokens, and its gradient.

One pass reads all tokens of a micro-batch at once. The logits of a micro-batch never exist: the
head gives log-probs, entropies and gradients tile by tile (`rl4lm.estimator.logprobs`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rl4lm.estimator.logprobs import Head, tiled_entropies, tiled_gradient, tiled_logprobs
from rl4lm.estimator.losses import TokenWeights
from rl4lm.model.module import PolicyModule
from rl4lm.passes.microbatch import MicroBatch, first_of_equals, micro_batches
from rl4lm.processes.sharding import Shards
from rl4lm.types import Rollout


def completion_logprobs(
    module: PolicyModule, rollout: Rollout, temperature: float, max_tokens: int
) -> Tensor:
    """log π of every completion token, [B, T]."""
    return _read_tokens(
        module,
        rollout,
        lambda hidden, head, targets: tiled_logprobs(
            hidden, head, targets, temperature, module.vocabulary
        ),
        max_tokens,
    )


def completion_entropies(
    module: PolicyModule, rollout: Rollout, temperature: float, max_tokens: int
) -> Tensor:
    """Entropy of the distribution that each completion token was drawn from, [B, T]."""
    return _read_tokens(
        module,
        rollout,
        lambda hidden, head, targets: tiled_entropies(hidden, head, temperature, module.vocabulary),
        max_tokens,
    )


@torch.no_grad()
def _read_tokens(
    module: PolicyModule,
    rollout: Rollout,
    read_tokens: Callable[[Tensor, Head, Tensor], Tensor],
    max_tokens: int,
) -> Tensor:
    """A number per completion token, [B, T], from hidden states [n, H] and targets [n]."""

    def read(hidden: Tensor, head: Head) -> Tensor:
        chosen = hidden.flatten(0, 1)[batch.predicts.to(hidden.device)]
        return read_tokens(chosen, head, batch.targets.to(hidden.device))

    result = torch.zeros(rollout.completion_mask.shape, dtype=module.logprob_dtype)
    rows = range(len(rollout.completion_ids))
    with module.packing():
        for batch in micro_batches(rollout, rows, max_tokens, module.packs):
            _scatter(result, batch, rollout.completion_mask, module.run(batch, read))
    return result


def accumulate_gradient(
    module: PolicyModule,
    shards: Shards,
    rollout: Rollout,
    weights: TokenWeights,
    temperature: float,
    max_tokens: int,
) -> Tensor:
    """Add the gradient of the weighted sum over all tokens; returns the log-probs met, [B, T]."""
    mask = rollout.completion_mask  # bool [B, T]
    owners = first_of_equals(rollout)  # int64 [B]
    tables = _added_up(weights, owners, mask)  # [B, T] each
    batches = list(micro_batches(rollout, _live(tables, mask), max_tokens, module.packs))
    idle = shards.most(len(batches)) - len(batches)  # passes for the sake of other processes
    dealt = bool(shards)
    met = torch.full(mask.shape, float("nan"), dtype=module.logprob_dtype)
    met.masked_fill_(~mask, 0.0)
    # The backward pass is in it too, since it may compute activations again.
    with module.packing(), shards.passing():
        for batch in batches:
            chosen = [_of_tokens(table, batch, mask) for table in tables]  # [n] each
            _scatter(met, batch, mask, _differentiate(module, batch, temperature, dealt, *chosen))
        if idle:
            batch = _shortest(rollout, module.packs)
            nothing = [_of_tokens(torch.zeros_like(table), batch, mask) for table in tables]
            for _ in range(idle):
                _differentiate(module, batch, temperature, dealt, *nothing)
    return met[owners]


def _added_up(weights: TokenWeights, owners: Tensor, mask: Tensor) -> list[Tensor]:
    """∂L/∂log π [B, T], and ∂L/∂H [B, T] where any is not 0, else no entropy is computed.

    The weights of equal completions are added up at their owner, int64 [B], which is run for all.
    """
    of_logprobs, of_entropies = (
        torch.zeros_like(table).index_add_(0, owners, table)
        for table in (weights.logprobs, weights.entropies)
    )
    return [of_logprobs, of_entropies] if (of_entropies.ne(0) & mask).any() else [of_logprobs]


def _live(tables: list[Tensor], mask: Tensor) -> list[int]:
    """The completions that have any weight; the others have no gradient and are not run."""
    weighed = torch.stack([table.ne(0) & mask for table in tables])  # bool [1 or 2, B, T]
    return weighed.any(dim=2).any(dim=0).nonzero().flatten().tolist()


def _shortest(rollout: Rollout, packed: bool) -> MicroBatch:
    """A micro-batch of the shortest sequence."""
    lengths = rollout.lengths + rollout.prompt_lengths.repeat_interleave(rollout.num_generations)
    return next(micro_batches(rollout, [int(lengths.argmin())], 1, packed))


def _of_tokens(table: Tensor, batch: MicroBatch, mask: Tensor) -> Tensor:
    """[n], the entries of a [B, T] table at the tokens that the micro-batch predicts."""
    return table[batch.rows][mask[batch.rows]]


def _differentiate(
    module: PolicyModule,
    batch: MicroBatch,
    temperature: float,
    dealt: bool,
    weights: Tensor,
    entropy_weights: Tensor | None = None,
) -> Tensor:
    """Add the gradient of ``Σ weights · log π + Σ entropy_weights · H`` over n tokens.

    Args:
        module: whose parameters receive it.
        batch: holds the n tokens.
        temperature: of the distribution, > 0.
        dealt: the parameters are dealt over the processes.
        weights: [n].
        entropy_weights: [n], or None where they are all 0.

    Returns:
        log π [n].
    """

    def read(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor]:
        """log π [n], the hidden states [S·L, H], and the gradient that goes back from them."""
        device = hidden.device
        flat = hidden.flatten(0, 1)  # [S·L, H]
        predicts = batch.predicts.to(device)  # int64 [n]
        logprobs, gradient = tiled_gradient(
            flat.detach()[predicts],
            head,
            batch.targets.to(device),
            weights.to(device),
            temperature,
            module.vocabulary,
            None if entropy_weights is None else entropy_weights.to(device),
        )
        if dealt:  # the way back sums gradients: it must begin here, and not in a view
            flat = flat.clone() if flat.requires_grad else flat.detach().requires_grad_()
        return logprobs, flat, torch.zeros_like(flat).index_add_(0, predicts, gradient)

    logprobs, flat, gradient = module.run(batch, read)
    if flat.requires_grad:  # not so where only the head is trained
        flat.backward(gradient)
    return logprobs


def _scatter(table: Tensor, batch: MicroBatch, mask: Tensor, values: Tensor) -> None:
    """Write flat values [n] of a micro-batch to their places in a table [B, T]."""
    inside = mask[batch.rows]  # bool [b, T]
    rows = torch.zeros(inside.shape, dtype=table.dtype)
    rows[inside] = values.to("cpu", table.dtype)
    table[batch.rows] = rows
