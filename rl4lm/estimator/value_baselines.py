"""What past steps say that a prompt is worth: V(q) [..., P], and the history that it is read from.

Each function is pure: (means [..., P], counts [..., P], the prompts, history) -> (V [..., P], new
history). `means` and `counts` are the mean and the number of the valid rewards of each prompt in
the present step; they go into the *new* history only. V is read from the *given* history, so it is
independent of the step's samples, and as a baseline its scale is 1 however bad an estimate it is.

A history is a flat mapping of tensors, and an empty one is the start. What depends on rewards has
their leading axes, or none (one history for all batches); keys and features never have any.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

History = Mapping[str, Tensor]

RATE = 0.1  # 1 - decay of the running means, once they have seen 10 values
WINDOW = 512  # prompts that the regression remembers
RIDGE = 0.1  # regulariser over the mean diagonal of the centred kernel


def running_mean(means: Tensor, counts: Tensor, history: History) -> tuple[Tensor, History]:
    """The moving average of the mean valid reward of past steps, the same for every prompt.

    Returns:
        V [..., P] and ``value`` float64 [...], ``visits`` int64 [...]: 16 bytes.
    """
    start = {"value": means.new_zeros(()), "visits": counts.new_zeros(())}
    old = _stored(history, start, means)
    value, visits = _after_step(old["value"], old["visits"], means, counts)
    return old["value"][..., None].expand_as(means), {"value": value, "visits": visits}


def value_of_key(
    means: Tensor, counts: Tensor, keys: Tensor, history: History
) -> tuple[Tensor, History]:
    """A running mean for each prompt key; `running_mean` for a key without a reward so far.

    Args:
        means: float64 [..., P], 0 where no reward applied.
        counts: int64 [..., P], valid samples of each prompt.
        keys: int64 [P]; prompts with the same key are one prompt, and make one update.
        history: of the same function.

    Returns:
        V [..., P] and ``keys`` int64 [K] in rising order, ``values`` float64 [..., K], ``visits``
        int64 [..., K] (0 for a key whose samples were never valid), and ``mean`` float64 [...],
        ``steps`` int64 [...] of the average over all prompts: 24 bytes for each of K prompts.
    """
    none = {"keys": keys[:0], "values": means.new_zeros(0), "visits": counts.new_zeros(0)}
    start = {**none, "mean": means.new_zeros(()), "steps": counts.new_zeros(())}
    old = _stored(history, start, means)
    distinct, group = keys.unique(return_inverse=True)  # [U] in rising order, [P]
    known = torch.cat([old["keys"], distinct]).unique()  # [K], in rising order
    values = _moved(old["values"], old["keys"], known)  # [..., K]
    visits = _moved(old["visits"], old["keys"], known)
    at = torch.searchsorted(known, distinct)  # [U], where the keys of this step stand
    estimate = torch.where(visits[..., at] > 0, values[..., at], old["mean"][..., None])

    pooled, samples = _pool(means, counts, group, len(distinct))  # [..., U]
    updated = _towards(values[..., at], visits[..., at], pooled, samples > 0)
    lead = means.shape[:-1]
    mean, steps = _after_step(old["mean"], old["steps"], means, counts)
    return estimate[..., group].expand_as(means), {
        "keys": known,
        "values": values.expand(*lead, -1).index_copy(-1, at, updated[0]),
        "visits": visits.expand(*lead, -1).index_copy(-1, at, updated[1]),
        "mean": mean,
        "steps": steps,
    }


def value_of_features(
    means: Tensor, counts: Tensor, features: Tensor, history: History
) -> tuple[Tensor, History]:
    """Ridge regression from the features of past prompts to their mean rewards, over a window.

    Args:
        means: float64 [..., P], 0 where no reward applied.
        counts: int64 [..., P], valid samples of each prompt.
        features: float64 [P, F], kept in float32, which holds every hidden state exactly.
        history: of the same function.

    Returns:
        V [..., P] and ``features`` float32 [W, F], ``targets`` float64 [..., W], ``known`` bool
        [..., W] (False where no reward applied), oldest first, W ≤ 512: 4·F + 9 bytes a prompt.

    Raises:
        ValueError: no features, not finite ones, or other ones than the history holds.
    """
    if features.shape[-1] == 0 or not features.isfinite().all():
        raise ValueError(
            f"linear_value needs finite prompt_features [P, F > 0], got {tuple(features.shape)} "
            f"with {int((~features.isfinite()).sum())} values that are not finite"
        )
    fresh = features.float()
    empty = means.new_zeros(0)
    start = {"features": fresh[:0], "targets": empty, "known": empty.bool()}
    old = _stored(history, start, means)
    if old["features"].shape[-1] != features.shape[-1]:
        raise ValueError(
            f"prompt_features {tuple(features.shape)} and those of the history "
            f"{tuple(old['features'].shape)} must have the same F; was it kept for another model?"
        )
    values = _regression(old["features"].double(), old["targets"], old["known"], features)
    return values.expand_as(means), {
        "features": torch.cat([old["features"], fresh])[-WINDOW:].clone(),
        "targets": _appended(old["targets"], means),
        "known": _appended(old["known"], counts > 0),
    }


def _regression(features: Tensor, targets: Tensor, known: Tensor, asked: Tensor) -> Tensor:
    """V [..., P] = ȳ + k(q)ᵀ (K + λI)⁻¹ (y - ȳ), with K [W, W] = X̄X̄ᵀ of the centred features.

    In this dual form (Saunders et al., 1998) the cost goes with W³ and not with F³. V stays
    within the range of the known targets: far from the window a line says nothing, and equal
    targets are given back exactly.
    """
    if targets.shape[-1] == 0:
        return targets.new_zeros(*targets.shape[:-1], len(asked))
    x, x_mean = _centred(features, known)  # [..., W, F], [..., 1, F]
    y, y_mean = _centred(targets[..., None], known)  # [..., W, 1], [..., 1, 1]
    kernel = x @ x.mT  # [..., W, W]
    spread = kernel.diagonal(dim1=-2, dim2=-1).sum(-1) / known.sum(-1).clamp(min=1)  # [...]
    # Equal features make a kernel of exactly 0, because a float64 sum of 512 equal float32 values
    # has no rounding; any regulariser then leaves V = ȳ.
    ridge = torch.where(spread > 0, RIDGE * spread, 1.0)[..., None, None]
    dual = torch.linalg.solve(kernel + ridge * torch.eye(len(features)).to(kernel), y)
    values = (y_mean + (asked - x_mean) @ (x.mT @ dual))[..., 0]  # [..., P]
    lowest = torch.where(known, targets, torch.inf).amin(-1, keepdim=True)  # [..., 1]
    highest = torch.where(known, targets, -torch.inf).amax(-1, keepdim=True)
    bounded = torch.minimum(torch.maximum(values, lowest), highest)
    return torch.where(known.any(-1, keepdim=True), bounded, 0.0)


def _centred(rows: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [..., W, D] less the mean of the known ones, 0 where not known; the mean [..., 1, D]."""
    chosen = known[..., None]  # [..., W, 1]
    total = torch.where(chosen, rows, 0.0).sum(-2, keepdim=True)
    mean = total / chosen.sum(-2, keepdim=True).clamp(min=1)
    return torch.where(chosen, rows - mean, 0.0), mean


def _appended(past: Tensor, present: Tensor) -> Tensor:
    """The last `WINDOW` of past [..., W] and present [..., P]; a copy, or all would be saved."""
    return torch.cat([past.expand(*present.shape[:-1], -1), present], dim=-1)[..., -WINDOW:].clone()


def _after_step(
    value: Tensor, visits: Tensor, means: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """A running mean [...] over steps, after a step with these means [..., P]."""
    everyone = torch.zeros_like(counts[(0,) * (counts.dim() - 1)])  # [P], all in group 0
    mean, samples = _pool(means, counts, everyone, 1)  # [..., 1]
    return _towards(value, visits, mean[..., 0], samples[..., 0] > 0)


def _towards(value: Tensor, visits: Tensor, mean: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """value + rate·(mean - value) where seen, rate = max(1 - decay, 1/visits).

    The first visit has rate 1 and the value starts at 0, so constant means are kept exactly.
    """
    visits = visits + seen
    rate = visits.clamp(min=1).double().reciprocal().clamp(min=RATE)
    return torch.where(seen, value + rate * (mean - value), value), visits


def _pool(means: Tensor, counts: Tensor, group: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Mean over all samples of each group of prompts: group [P] -> [..., size], and their number.

    Computed on ``means - means[first of the group]``, so that equal means are pooled exactly.
    """
    last = len(group) - 1
    order = torch.arange(len(group), device=group.device)
    position = torch.where(counts > 0, order, last)  # [..., P]
    first = position.new_full((*means.shape[:-1], size), last)
    first = first.scatter_reduce(-1, group.expand_as(position), position, "amin")
    reference = means.gather(-1, first)  # [..., size]
    excess = counts * (means - reference[..., group])
    samples = torch.zeros_like(first).index_add(-1, group, counts)
    total = torch.zeros_like(reference).index_add(-1, group, excess)
    return reference + total / samples.clamp(min=1), samples


def _moved(values: Tensor, keys: Tensor, known: Tensor) -> Tensor:
    """Values [..., k] of the keys, at the places of these keys among the known; 0 elsewhere."""
    target = values.new_zeros(*values.shape[:-1], len(known))
    return target.index_copy(-1, torch.searchsorted(known, keys), values)


def _stored(history: History, start: History, means: Tensor) -> History:
    """The given history, or the start where it is empty, on the device of the rewards."""
    if history and history.keys() != start.keys():
        raise ValueError(
            f"the baseline's state holds {sorted(history)}, expected {sorted(start)} or nothing; "
            "was it kept by another baseline?"
        )
    lead = means.shape[:-1]
    for name, tensor in history.items():
        axes = tensor.shape[: tensor.dim() - start[name].dim()]
        if axes not in (torch.Size(), lead):
            raise ValueError(
                f"{name} of the baseline's state has the leading axes {tuple(axes)}, "
                f"the rewards have {tuple(lead)}"
            )
    return {name: tensor.to(means.device) for name, tensor in (history or start).items()}
