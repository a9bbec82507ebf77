"""Weights on disk, as transformers and peft read them, and the state of training beside them.

A checkpoint is a folder that `from_pretrained` reads, with `trainer_state.pt` (optimizer, schedule,
baseline, what a window of several updates learns from, random states of every process) and a
manifest. Everything is read back with safetensors and ``weights_only``: reading runs no code.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl4lm.errors import DataError, SaveError
from rl4lm.model.policy import Policy
from rl4lm.processes.sharding import dealt_like, whole_on_main
from rl4lm.rundir import durable
from rl4lm.rundir.tracking import checkpoints

_STATE = "trainer_state.pt"


Weights = Mapping[str, Tensor]


def whole_weights(policy: Policy, keep: bool) -> Weights | None:
    """The weights put together where they are dealt over the processes, which all call this.

    Args:
        policy: whose weights.
        keep: hold on to them: on the process that is going to write them.

    Returns:
        Name -> tensor on the CPU; None where they are not dealt, or not kept.
    """
    if not policy.shards:
        return None
    seen: dict[int, Tensor] = {}  # tied weights are one tensor under several names, and stay one
    result = {}
    for name, tensor in policy.module.model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen[id(tensor)] = whole_on_main(tensor, keep)
        result[name] = seen[id(tensor)]
    return result if keep else None


def save_weights(policy: Policy, directory: Path, weights: Weights | None = None) -> None:
    """Save the weights and the tokenizer so that ``from_pretrained`` reads them.

    A full model is saved whole, an adapter alone in peft's format. The directory appears under
    its name only when it is complete.

    Args:
        policy: what is saved.
        directory: where to.
        weights: of `whole_weights`.

    Raises:
        SaveError: the disk is full or not writable; what stood there before is still there.
    """
    _write(policy, directory, weights, None, None)


def save_checkpoint(
    policy: Policy,
    directory: Path,
    weights: Weights | None,
    state: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> None:
    """`save_weights` with the state of training, and sealed.

    Args:
        policy: what is saved.
        directory: of `rl4lm.rundir.tracking.checkpoint_path`.
        weights: of `whole_weights`.
        state: tensors and plain values.
        facts: plain values of the manifest: what a run must agree with to go on from here.

    Raises:
        SaveError: the disk is full or not writable; every earlier checkpoint is still there.
    """
    _write(policy, directory, weights, state, facts)


def _write(
    policy: Policy,
    directory: Path,
    weights: Weights | None,
    state: Mapping[str, Any] | None,
    facts: Mapping[str, Any] | None,
) -> None:
    try:
        partial = durable.begin(directory)
        try:
            # nn.Module declares every attribute as a tensor or a module, methods included.
            policy.module.model.save_pretrained(  # type: ignore[operator]
                partial, state_dict=None if weights is None else dict(weights)
            )
            policy.codec.tokenizer.save_pretrained(partial)
            if state is not None:
                torch.save(dict(state), partial / _STATE)
            if facts is not None:
                durable.seal(partial, facts)
            durable.finish(partial, directory)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # the room may be what is missing
            raise
    except (OSError, RuntimeError, _safetensors_error()) as error:
        # torch's and safetensors' writers have errors of their own for a full disk.
        raise SaveError(f"the weights cannot be saved to {str(directory)!r}: {error}") from error


def _safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError


def load_checkpoint(directory: Path, policy: Policy) -> dict[str, Any]:
    """Put the weights of a checkpoint into a policy of the same shape, bit for bit.

    Args:
        directory: of `save_checkpoint`; its files were compared with its manifest before.
        policy: keeps its reference, its adapter's shape and everything but the weights.

    Returns:
        The state that was saved beside the weights, its tensors on the CPU.

    Raises:
        DataError: files that are missing, broken or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights: dict[str, Tensor] = {}
        for path in sorted(directory.glob("*.safetensors")):
            weights |= load_file(path, device="cpu")
        _put(policy, weights)
        return torch.load(directory / _STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, KeyError, EOFError) as error:
        raise DataError(f"the checkpoint {str(directory)!r} cannot be read: {error}") from error


@torch.no_grad()
def _put(policy: Policy, weights: Weights) -> None:
    """Overwrite the policy's weights by those of a checkpoint, and insist that none is left out."""
    model: Any = policy.module.model
    places, tied = model.state_dict(), set(getattr(model, "all_tied_weights_keys", None) or {})
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        places, tied = get_peft_model_state_dict(model), set()
    missing = [name for name in places if name not in weights and name not in tied]
    if missing or not weights:
        raise KeyError(f"it lacks {len(missing)} of the policy's tensors, such as {missing[:1]}")
    for name in places.keys() & weights.keys():
        _copy(weights[name], places[name], name)


def _copy(weight: Tensor, place: Tensor, name: str) -> None:
    if weight.shape != place.shape:
        shapes = f"{list(weight.shape)} there and {list(place.shape)} here"
        raise RuntimeError(f"size mismatch: {name} is {shapes}")
    place.copy_(dealt_like(weight, place))


def keep_newest(run: Path, limit: int | None, best: int | None) -> list[Path]:
    """Remove all checkpoints of a run but the newest `limit` and the best one.

    Args:
        run: the run directory.
        limit: how many of the newest are kept; None = all.
        best: the step of a checkpoint that is kept besides them, None where none is known.

    Returns:
        What was removed.
    """
    saved = checkpoints(run)
    kept = set(list(saved)[-limit:]) if limit is not None else set(saved)
    removed = [path for step, path in saved.items() if step not in kept and step != best]
    for path in removed:
        durable.remove(path)
    return removed
