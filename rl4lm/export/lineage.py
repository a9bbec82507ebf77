"""The base model of weights, as far back as the files on this machine tell, and its licence.

Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rl4lm.builtin import builtin_name, is_builtin, model_path
from rl4lm.export.source import ExportSource, RunFacts, run_of

_FAR = 20  # generations; a folder that is its own base must not hold us
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LICENCE = ("license", "license_name", "license_link")
_ADAPTER = "adapter_config.json"


def on_hub(name: str) -> bool:
    """Whether a name is one that the hub could know, rather than something on this machine."""
    return bool(_HUB_ID.fullmatch(name)) and not name.startswith(".") and not Path(name).exists()


def public_name(name: str) -> str:
    """A name as others may read it: of a place on this machine its last part only."""
    path, colon, function = name.partition(".py:")
    if colon:
        return f"{Path(path).name}.py:{function}"
    if is_builtin(name) or on_hub(name) or "/" not in name:
        return builtin_name(name) or name
    return builtin_name(name) or Path(name).name


def adapter_settings(weights: str) -> Mapping[str, Any] | None:
    """The configuration of an adapter, None where the weights are a whole model."""
    try:
        settings = json.loads((Path(weights) / _ADAPTER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


def parent(weights: str, run: RunFacts | None) -> str | None:
    """What weights were trained from or are put on: a name or a folder; None if unknown."""
    if (settings := adapter_settings(weights)) is not None:
        return _known(settings.get("base_model_name_or_path"))
    if run is None or run.given_in_python("model"):
        return None
    return _known(run.config.get("model_name_or_path"))


def _known(name: Any) -> str | None:
    if not isinstance(name, str) or not name:
        return None
    return builtin_name(name) or name


def origin(source: ExportSource) -> str | None:
    """The model at the root: a hub id, a built-in name, or the last folder that is known."""
    name, found = source.weights, parent(source.weights, source.run)
    if found is None:
        return name if on_hub(name) else builtin_name(name)
    for _ in range(_FAR):
        before = None if on_hub(found) or is_builtin(found) else parent(found, run_of(found))
        if before is None:
            break
        found = before
    return found


def licence(name: str | None) -> dict[str, str]:
    """The licence that a model's card states; empty where there is no card or it states none."""
    if name is None:
        return {}
    text = _card(name)
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        stated = yaml.safe_load(head[1]) if head else None
    except (yaml.YAMLError, ValueError):
        return {}
    if not isinstance(stated, dict):
        return {}
    return {key: str(stated[key]) for key in _LICENCE if stated.get(key)}


def _card(name: str) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    folder = model_path(name) if is_builtin(name) else Path(name)
    try:
        if not on_hub(name):
            return (folder / "README.md").read_text(encoding="utf-8")
        return Path(hf_hub_download(name, "README.md")).read_text(encoding="utf-8")
    except (OSError, ValueError, HTTPError):  # no card, or no way to it
        return ""
