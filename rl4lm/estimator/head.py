"""The head of a language model and the log-softmax behind it, as one pass with its gradient.

For a plain linear head the derivative of Σ_k w_k log π(target_k) is known in closed form, so that
a tile of probabilities, made in place of its logits, is all that is held:

    ∂/∂logits_k = (w_k / temperature) · (onehot(target_k) - π_k)

Three matrix products a tile: logits, ∂/∂hidden, ∂/∂weight; no other tile-sized tensor is made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def is_plain(head: object) -> bool:
    """Whether a head is a linear layer that computes hidden · Wᵀ + bias and nothing besides."""
    if type(head) is not nn.Linear:
        return False
    return not (head._forward_hooks or head._forward_pre_hooks or head._backward_hooks)


class LastLogits:
    """Logits [b, V] after the last token of each row, every time in the same memory.

    With a large vocabulary, memory that is fresh from the system costs a third of the product.
    The logits are good until the next call.
    """

    def __init__(self) -> None:
        """Begin without any memory."""
        self._room: Tensor | None = None

    def __call__(self, hidden: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        """Hidden states [b, L, H] to logits, by the head or, where it is plain, as it does."""
        states = hidden[:, -1]
        if not is_plain(head) or torch.is_autocast_enabled(states.device.type):
            return head(states)
        assert isinstance(head, nn.Linear)
        if self._room is None or len(self._room) < len(states):
            self._room = states.new_empty(len(states), len(head.weight))
        logits = torch.mm(states, head.weight.T, out=self._room[: len(states)])
        return logits if head.bias is None else logits.add_(head.bias)


class LinearHead:
    """A plain linear head at work on tiles; the buffer of a tile is used again for the next."""

    def __init__(self, head: nn.Linear, temperature: float, rows: int) -> None:
        """Prepare.

        Args:
            head: `is_plain`; its parameters that require gradients receive them in place.
            temperature: of the distribution, > 0.
            rows: of the largest tile.
        """
        self._dtype = _compute_dtype(head.weight)
        self._weight = head.weight.detach().to(self._dtype)  # [V, H]
        self._bias = None if head.bias is None else head.bias.detach().to(self._dtype)
        self._head = head
        self._temperature = temperature
        self._buffer = self._weight.new_empty(rows, len(self._weight))  # [rows, V]
        whole = self._dtype in (torch.float32, torch.float64)
        self._exact = self._buffer if whole else self._buffer.float()

    def logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """log π(targets) [n] of hidden states [n, H]; leaves π in the buffer."""
        logits = self._logits(hidden.to(self._dtype))
        best, where = logits.max(dim=-1, keepdim=True)  # [n, 1]
        chosen = logits.gather(-1, targets[:, None])  # [n, 1]
        torch.softmax(logits, dim=-1, out=logits)
        # π(best) = exp(best - logsumexp), which spares a pass for the logsumexp.
        return (chosen - best + logits.gather(-1, where).log()).squeeze(-1)

    def _logits(self, hidden: Tensor) -> Tensor:
        """hidden · Wᵀ + bias, over the temperature, in the buffer: [n, V]."""
        rows = self._buffer[: len(hidden)]
        torch.mm(hidden, self._weight.T, out=rows)
        if self._bias is not None:
            rows += self._bias
        exact = self._exact[: len(hidden)]
        if exact.data_ptr() != rows.data_ptr():
            exact.copy_(rows)
        if self._temperature != 1.0:
            exact /= self._temperature
        return exact

    def gradient(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """∂/∂hidden [n, H] of Σ weights · log π(targets), after `logprobs` of the same rows.

        ∂/∂W and ∂/∂bias are added to the head's gradients.
        """
        probabilities = self._exact[: len(hidden)].to(self._dtype)  # [n, V]
        scale = (weights / self._temperature).to(self._dtype)[:, None]  # [n, 1]
        away = torch.mm(probabilities, self._weight)  # [n, H]
        result = scale * (self._weight[targets] - away)
        if self._head.weight.requires_grad:
            scaled = scale * hidden.to(self._dtype)  # [n, H]
            gradient = _gradient_of(self._head.weight)
            if gradient.dtype == self._dtype:
                gradient.addmm_(probabilities.T, scaled, alpha=-1)
            else:
                gradient.sub_(torch.mm(probabilities.T, scaled))
            gradient.index_add_(0, targets, scaled.to(gradient.dtype))
        if self._head.bias is not None and self._head.bias.requires_grad:
            gradient = _gradient_of(self._head.bias)
            gradient.sub_(torch.mv(probabilities.T, scale[:, 0]))
            gradient.index_add_(0, targets, scale[:, 0].to(gradient.dtype))
        return result.to(hidden.dtype)


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """What a linear layer would compute in here: autocast's precision, or that of its weight."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _gradient_of(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
