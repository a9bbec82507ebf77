"""A folder for others: weights in one piece, tokenizer, ends, model card; whole or not there.

What is written is what was trained. An adapter is added into the base model in float32 or better,
and the log-probs of made-up tokens are compared three times: before and after that sum, and with
those of the folder, read again as its users will. Only the rounding to a shorter type may differ.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl4lm.errors import ModelError, SaveError, VerificationError, first_line
from rl4lm.export.card import CardFacts, model_card
from rl4lm.export.lineage import adapter_settings, licence, origin
from rl4lm.export.source import ExportSource
from rl4lm.model.adapters import merge_adapter
from rl4lm.model.loading import ModelSource, load_model, open_model
from rl4lm.model.preparing import end_token_ids
from rl4lm.rundir import durable

DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")
}
_NOT_TAKEN = ("adapter_model.", "trainer_state.pt", durable.MANIFEST, "README.md", "training_args")
_TOKENS = 24  # of the row whose log-probs are compared
_STRIDE = 7919  # a prime, so that they are all over the vocabulary
_TOLERANCE = 1e-3  # of log-probs in float32


@dataclass(frozen=True)
class ExportChoices:
    """How weights are to be exported."""

    dtype: str = "auto"  # auto = as they were saved: nothing is rounded
    adapter_only: bool = False
    max_shard_size: str = "5GB"
    trust_remote_code: bool = False
    title: str | None = None  # of the model card; None = the name of the folder


def export(source: ExportSource, out: Path, choices: ExportChoices) -> dict[str, Any]:
    """Write the folder.

    Args:
        source: of `find_source`.
        out: a folder that `rl4lm.export.source.check_place` has let pass.
        choices: how.

    Returns:
        Plain values: what was written and how far its log-probs are off.

    Raises:
        ModelError: weights that cannot be read, or cannot be merged.
        VerificationError: what was written is not what was trained; the folder is not there.
        SaveError: the disk is full or not writable.
    """
    adapter = adapter_settings(source.weights)
    if choices.adapter_only and adapter is None:
        raise ModelError(
            f"{source.name!r} is a whole model without an adapter of its own; leave --adapter_only "
            "out"
        )
    merged = adapter is not None and not choices.adapter_only
    with _whole_or_not_there(out) as partial:
        write = _write_adapter if choices.adapter_only else _write_model
        found = write(source, partial, choices)
        root = origin(source)
        card = CardFacts(
            title=choices.title or out.name,
            source=source,
            adapter=adapter,
            merged=merged,
            dtype=found["dtype"],
            root=root,
            terms=licence(root),
            stop_strings=tuple(_option(source, "stop_strings")),
        )
        (partial / "README.md").write_text(model_card(card), encoding="utf-8")
    return {
        "out": str(out),
        "kind": "adapter" if choices.adapter_only else "merged" if merged else "model",
        "step": None if source.run is None else source.run.step,
        **found,
        "bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
    }


def _option(source: ExportSource, name: str) -> list[Any]:
    """An option of the run that is a list."""
    value = None if source.run is None else source.run.config.get(name)
    return value if isinstance(value, list) else []


@contextmanager
def _whole_or_not_there(out: Path) -> Iterator[Path]:
    from safetensors import SafetensorError

    try:
        partial = durable.begin(out)
        try:
            yield partial
            durable.finish(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # the room may be what is missing
            raise
    except ModelError:
        raise
    except (OSError, SafetensorError) as error:
        raise SaveError(f"{str(out)!r} cannot be written: {error}") from error


def _write_adapter(source: ExportSource, partial: Path, choices: ExportChoices) -> dict[str, Any]:
    """The adapter alone; its base model is not read."""
    from peft.utils import load_peft_weights
    from safetensors.torch import save_file

    weights: dict[str, Tensor] = load_peft_weights(source.weights, device="cpu")
    dtype = _target(choices.dtype, {tensor.dtype for tensor in weights.values()})
    rounded = {name: _cast(tensor, dtype).contiguous() for name, tensor in weights.items()}
    for file in sorted(Path(source.weights).iterdir()):
        if file.is_file() and not file.name.startswith(_NOT_TAKEN):
            shutil.copyfile(file, partial / file.name)
    save_file(rounded, partial / "adapter_model.safetensors", metadata={"format": "pt"})
    return {
        "dtype": _name(dtype),
        "parameters": sum(tensor.numel() for tensor in rounded.values()),
    }


def _write_model(source: ExportSource, partial: Path, choices: ExportChoices) -> dict[str, Any]:
    opened = open_model(source.weights, trust_remote_code=choices.trust_remote_code)
    if getattr(opened.config, "quantization_config", None) is not None:
        raise ModelError(
            f"the weights of {source.name!r} (or of its base model) are quantised already, and "
            "cannot be written in another type; export an adapter with --adapter_only"
        )
    saved = _saved_dtypes(Path(opened.adapter or opened.path))
    precision = torch.float64 if torch.float64 in saved else torch.float32
    model: Any = _load(opened, precision).eval()
    found: dict[str, Any] = {}
    if opened.adapter is not None:
        model, found["merge_gap"] = _merge(model, opened.adapter)
    dtype = _target(choices.dtype, saved)
    trained = _logprobs(model)
    _round(model, dtype)
    rounded = _logprobs(model)
    found["rounding_gap"] = _gap(rounded, trained)
    _set_ends(model, opened, _option(source, "stop_token_ids"))
    _save(model, opened, partial, dtype, choices.max_shard_size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    del model  # there may be no room for two
    again = open_model(str(partial), trust_remote_code=choices.trust_remote_code)
    found["reload_gap"] = _checked(
        _gap(_logprobs(_load(again, precision).eval()), rounded), "the exported folder, read again,"
    )
    return {"dtype": _name(dtype), "parameters": parameters, **found}


def _load(opened: ModelSource, precision: torch.dtype) -> nn.Module:
    return load_model(opened, dtype=_name(precision), device=torch.device("cpu"))


def _merge(model: Any, name: str) -> tuple[Any, float]:
    """The merged model, and how far its log-probs are off those of the adapted one."""
    expected = _logprobs(model)
    merged = merge_adapter(model, name).eval()
    return merged, _checked(_gap(_logprobs(merged), expected), "the merged model")


def _checked(gap: float, what: str) -> float:
    if not gap <= _TOLERANCE:
        raise VerificationError(
            f"{what} gives other log-probs than what was trained (largest difference {gap:.2g}), "
            "and is not kept; --adapter_only exports an adapter as it is"
        )
    return gap


@torch.no_grad()
def _logprobs(model: Any) -> Tensor:
    """log π [L, V] along a row of made-up tokens."""
    ids = torch.arange(_TOKENS) * _STRIDE % model.get_input_embeddings().weight.shape[0]
    return model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)


def _gap(logprobs: Tensor, expected: Tensor) -> float:
    both = logprobs.isfinite() & expected.isfinite()  # a masked logit is -inf in each
    if not torch.equal(logprobs.isfinite(), expected.isfinite()) or not both.any():
        return float("nan")
    return float((logprobs - expected)[both].abs().max())


def _saved_dtypes(folder: Path) -> set[torch.dtype]:
    """The types of the weights in a folder; float32 where its files do not say."""
    from safetensors import safe_open

    words = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16}
    words |= {"F16": torch.float16}
    found = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {words.get(file.get_slice(n).get_dtype()) for n in file.keys()}  # noqa: SIM118, no dict
    return {dtype for dtype in found if dtype is not None} or {torch.float32}


def _target(asked: str, saved: set[torch.dtype]) -> torch.dtype:
    """The type that was asked for; auto is the finest one that was saved."""
    if asked != "auto":
        return DTYPES[asked]
    return max(
        (dtype for dtype in saved if dtype.is_floating_point),
        key=lambda dtype: (dtype.itemsize, dtype == torch.bfloat16),
    )


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _round(model: Any, dtype: torch.dtype) -> None:
    """Give every parameter a value that the type can hold, without changing its own type."""
    for _, parameter in _to_round(model):
        parameter.data = parameter.data.to(dtype).to(parameter.dtype)


def _to_round(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters but those that transformers keeps in float32, whatever the model's type."""
    words = {*(getattr(model, "_keep_in_fp32_modules", None) or ())}
    words |= {*(getattr(model, "_keep_in_fp32_modules_strict", None) or ())}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not words & set(name.split(".")):
            yield name, parameter


def _set_ends(model: Any, opened: ModelSource, stop_token_ids: list[int]) -> None:
    """Let `generate` end where completions ended in training."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    ends = end_token_ids(model, opened.tokenizer, stop_token_ids, vocabulary)
    if ends:
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]


def _save(
    model: Any, opened: ModelSource, partial: Path, dtype: torch.dtype, max_shard_size: str
) -> None:
    for _, parameter in _to_round(model):
        parameter.data = parameter.data.to(dtype)
    try:
        model.save_pretrained(partial, max_shard_size=max_shard_size)
    except ValueError as error:  # settings of generation that deny each other, for instance
        raise ModelError(f"transformers will not write this model: {first_line(error)}") from error
    opened.tokenizer.save_pretrained(partial)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
