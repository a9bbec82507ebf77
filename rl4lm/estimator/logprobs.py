"""Log-probabilities and entropies of tokens, and the head that computes them tile by tile.

Pure functions of tensors; `head` is any callable from hidden states to logits. The logits of a
whole batch never exist at once: a tile of rows is multiplied, normalised, read and dropped, and
where gradients are wanted they are taken per tile as well.

The distribution is ``π = softmax(logits / temperature)`` over the full vocabulary, everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from rl4lm.estimator.head import LinearHead, is_plain

Head = Callable[[Tensor], Tensor]  # hidden [n, H] -> logits [n, V]

# Elements of one tile of logits: 64 MiB in float32, which stays in reach of the caches' bandwidth.
TILE_ELEMENTS = 2**24


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) over the last dimension, in float32 or better.

    bf16 keeps under three significant digits, too few to sum a vocabulary of probabilities.
    """
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(exact / temperature, dim=-1)


def token_logprobs(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """log π(target) of each row: logits [n, V], targets int64 [n] -> [n]."""
    return _of_targets(log_softmax(logits, temperature), targets)


def token_entropies(logits: Tensor, temperature: float) -> Tensor:
    """The entropy of the distribution that each token is drawn from.

        H = -Σ_v π_v log π_v,  π = softmax(logits / temperature)

    Args:
        logits: [n, V]; -inf marks a token that cannot be drawn, which adds nothing to H.
        temperature: of the distribution, > 0.

    Returns:
        [n], in nats, from 0 (one token is certain) to log V (all are equally likely); float32, or
        float64 where the logits are.
    """
    return _entropies(log_softmax(logits, temperature))


@torch.no_grad()
def tiled_logprobs(
    hidden: Tensor, head: Head, targets: Tensor, temperature: float, vocabulary: int
) -> Tensor:
    """log π of the targets without gradient: hidden [n, H], targets [n] -> [n]."""
    tiles = list(_tiles(len(targets), vocabulary))
    if (linear := _linear(head, temperature, tiles)) is not None:
        return torch.cat([linear.logprobs(hidden[t], targets[t]) for t in tiles])
    pieces = [token_logprobs(head(hidden[t]), targets[t], temperature) for t in tiles]
    return torch.cat(pieces) if pieces else hidden.new_zeros(0)


@torch.no_grad()
def tiled_entropies(hidden: Tensor, head: Head, temperature: float, vocabulary: int) -> Tensor:
    """Entropies of the next token without gradient: hidden [n, H] -> [n]."""
    tiles = _tiles(len(hidden), vocabulary)
    pieces = [token_entropies(head(hidden[t]), temperature) for t in tiles]
    return torch.cat(pieces) if pieces else hidden.new_zeros(0)


def tiled_gradient(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    weights: Tensor,
    temperature: float,
    vocabulary: int,
    entropy_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One pass of the head that gives the log-probs and the gradient of a weighted sum.

        S = Σ_k weights_k · log π(targets_k) + Σ_k entropy_weights_k · H_k

    ``∂S/∂(head parameters)`` is added to their ``.grad`` and ``∂S/∂hidden`` is returned, so that
    the caller goes on through the backbone.

    Args:
        hidden: [n, H], hidden states from which the targets are predicted.
        head: hidden states to logits; its parameters receive gradients in place.
        targets: int64 [n], the tokens that followed.
        weights: [n], ∂L/∂log π of each token.
        temperature: of the distribution, > 0.
        vocabulary: V, which sets the size of a tile.
        entropy_weights: [n], ∂L/∂H of the distribution each token was drawn from; without them no
            entropy is computed.

    Returns:
        Log-probs [n], without gradient, and ∂S/∂hidden [n, H].

    Raises:
        ValueError: not one row per predicted token in each.
    """
    _check_rows(hidden, targets, weights, entropy_weights)
    tiles = list(_tiles(len(targets), vocabulary))
    if entropy_weights is None and (linear := _linear(head, temperature, tiles)) is not None:
        return _linear_gradient(hidden.detach(), linear, targets, weights, tiles)
    logprobs = []
    hidden_gradient = torch.zeros_like(hidden)
    for tile in tiles:
        of_entropies = None if entropy_weights is None else entropy_weights[tile]
        found, hidden_gradient[tile] = _tile_gradient(
            hidden[tile], head, targets[tile], weights[tile], of_entropies, temperature
        )
        logprobs.append(found)
    return torch.cat(logprobs) if logprobs else weights.new_zeros(0), hidden_gradient


@torch.enable_grad()
def _tile_gradient(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    weights: Tensor,
    entropy_weights: Tensor | None,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """`tiled_gradient` of one tile by autograd, for any head and for entropies."""
    leaf = hidden.detach().requires_grad_()
    log_pi = log_softmax(head(leaf), temperature)  # [rows of the tile, V]
    logprobs = _of_targets(log_pi, targets)
    total = _weighted_sum(logprobs, weights)
    if entropy_weights is not None:
        total = total + _weighted_sum(_entropies(log_pi), entropy_weights)
    total.backward()
    assert leaf.grad is not None
    return logprobs.detach(), leaf.grad


@torch.no_grad()
def _linear_gradient(
    hidden: Tensor, head: LinearHead, targets: Tensor, weights: Tensor, tiles: list[slice]
) -> tuple[Tensor, Tensor]:
    """`tiled_gradient` in closed form, for a plain linear head."""
    logprobs = []
    hidden_gradient = torch.empty_like(hidden)
    for tile in tiles:
        logprobs.append(head.logprobs(hidden[tile], targets[tile]))
        hidden_gradient[tile] = head.gradient(hidden[tile], targets[tile], weights[tile])
    return torch.cat(logprobs), hidden_gradient


def _linear(head: Head, temperature: float, tiles: list[slice]) -> LinearHead | None:
    """The closed form, where there are rows and the head is a plain linear layer."""
    if not tiles or not is_plain(head):
        return None
    assert isinstance(head, nn.Linear)
    return LinearHead(head, temperature, rows=tiles[0].stop)


def _of_targets(log_pi: Tensor, targets: Tensor) -> Tensor:
    """log π(target) of each row: log_pi [n, V], targets int64 [n] -> [n]."""
    if log_pi.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits {tuple(log_pi.shape)} must have one row per target {tuple(targets.shape)}"
        )
    return log_pi.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def _entropies(log_pi: Tensor) -> Tensor:
    """-Σ_v π_v log π_v of each row: [n, V] -> [n]."""
    # Replaced before the product: 0 · -inf is nan, and so would its derivative be after it.
    finite = log_pi.masked_fill(log_pi.isneginf(), 0.0)
    return -(log_pi.exp() * finite).sum(dim=-1)


def _weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights.to(values.dtype)).sum()


def _check_rows(
    hidden: Tensor, targets: Tensor, weights: Tensor, entropy_weights: Tensor | None
) -> None:
    if not len(hidden) == len(targets) == len(weights):
        raise ValueError(
            f"hidden ({len(hidden)}), targets ({len(targets)}) and weights ({len(weights)}) "
            "must have one row per predicted token"
        )
    if entropy_weights is not None and entropy_weights.shape != weights.shape:
        raise ValueError(
            f"entropy_weights {tuple(entropy_weights.shape)} and weights {tuple(weights.shape)} "
            "must have one row per predicted token"
        )


def _tiles(rows: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, TILE_ELEMENTS // vocabulary)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))
