"""Weights on disk, as transformers and peft read them, and the state of training beside them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl4lm.errors import DataError, OutputError
from rl4lm.policy import Policy

_STATE = "trainer_state.pt"


def save_weights(policy: Policy, directory: Path, state: Mapping[str, Any] | None = None) -> None:
    """Save the weights and the tokenizer so that ``from_pretrained`` reads them.

    A full model is saved whole, an adapter alone in peft's format. The directory appears under
    its name only when it is complete.

    Args:
        policy: what is saved.
        directory: replaced where it exists.
        state: of training, tensors and plain values, saved beside the weights; None for weights
            alone.

    Raises:
        OutputError: the disk is full or not writable; what stood there before is still there.
    """
    partial = directory.with_name(directory.name + ".partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        # nn.Module declares every attribute as a tensor or a module, methods included.
        policy.module.model.save_pretrained(partial)  # type: ignore[operator]
        policy.codec.tokenizer.save_pretrained(partial)
        if state is not None:
            torch.save(dict(state), partial / _STATE)
        _sync(partial)
        if directory.exists():
            shutil.rmtree(directory)
        partial.rename(directory)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
        raise OutputError(f"the weights cannot be saved to {str(directory)!r}: {error}") from error


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps is kept."""
    return run / f"checkpoint-{step:06d}"


def checkpoints(run: Path) -> dict[int, Path]:
    """The complete checkpoints of a run by their number of steps, ascending."""
    found = {}
    for path in sorted(run.glob("checkpoint-*")):
        if re.fullmatch(r"checkpoint-\d{6,}", path.name) and (path / _STATE).exists():
            found[int(path.name.removeprefix("checkpoint-"))] = path
    return found


def load_checkpoint(directory: Path, policy: Policy) -> dict[str, Any]:
    """Put the weights of a checkpoint into a policy of the same shape, bit for bit.

    Args:
        directory: of `save_weights` with a state.
        policy: keeps its reference, its adapter's shape and everything but the weights.

    Returns:
        The state that was saved beside the weights.

    Raises:
        DataError: files that are missing, broken or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights: dict[str, Tensor] = {}
        for path in sorted(directory.glob("*.safetensors")):
            weights |= load_file(path, device=str(policy.device))
        _put(policy, weights)
        return torch.load(directory / _STATE, map_location=policy.device, weights_only=True)
    except (OSError, RuntimeError, SafetensorError, KeyError, EOFError) as error:
        raise DataError(f"the checkpoint {str(directory)!r} cannot be read: {error}") from error


def _put(policy: Policy, weights: Mapping[str, Tensor]) -> None:
    """Overwrite the policy's weights by those of a checkpoint, and insist that none is left out."""
    model: Any = policy.module.model
    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, dict(weights))
        missing = [n for n in policy.trainable() if n.replace(".default", "") not in weights]
    else:
        report = model.load_state_dict(dict(weights), strict=False)
        tied = set(getattr(model, "all_tied_weights_keys", None) or {})
        missing = [name for name in report.missing_keys if name not in tied]
    if missing or not weights:
        raise KeyError(f"it lacks {len(missing)} of the policy's tensors, such as {missing[:1]}")


def _sync(directory: Path) -> None:
    """Have every file of the directory on the disk before it gets its name."""
    for path in (*directory.rglob("*"), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
