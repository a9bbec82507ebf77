"""Weights on disk: the final model or adapter, as transformers and peft read them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rl4lm.errors import OutputError
from rl4lm.policy import Policy


def save_weights(policy: Policy, directory: Path) -> None:
    """Save the weights and the tokenizer so that ``from_pretrained`` reads them.

    A full model is saved whole, an adapter alone in peft's format. The directory appears under
    its name only when it is complete.

    Args:
        policy: what is saved.
        directory: replaced where it exists.

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
        _sync(partial)
        if directory.exists():
            shutil.rmtree(directory)
        partial.rename(directory)
    except OSError as error:
        raise OutputError(f"the weights cannot be saved to {str(directory)!r}: {error}") from error


def _sync(directory: Path) -> None:
    """Have every file of the directory on the disk before it gets its name."""
    for path in (*directory.rglob("*"), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
