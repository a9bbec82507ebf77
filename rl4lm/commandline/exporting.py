"""The verb ``rl4lm export``: what a run has learned, as a folder or a repository for others.

Modules that need torch are imported inside the functions.
"""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl4lm.commandline.commands import print_json, quiet_libraries
from rl4lm.errors import ConfigError, HubError, did_you_mean
from rl4lm.export.hub import check_upload, greet, upload
from rl4lm.export.lineage import adapter_settings, on_hub, parent
from rl4lm.export.source import ExportSource, check_place, find_source
from rl4lm.options import OptionParser, add_output_arguments

_DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def export(argv: Sequence[str]) -> None:
    """``rl4lm export``: weights, tokenizer and model card in a folder of their own."""
    parser = export_parser()
    given = parser.parse_args(argv)
    if given.source is None or given.out is None:
        raise parser.lacks("name a run (or a checkpoint, or a model) and the folder to write")
    if given.private and given.push_to_hub is None:
        raise ConfigError("--private is said of an upload; name the repository with --push_to_hub")
    source = find_source(given.source, _step(given.checkpoint))
    if given.push_to_hub is not None:
        check_upload(given.push_to_hub)
        if given.adapter_only:
            _check_base(source)
    found = _written(source, given)
    if given.json:
        print_json(found)


def export_parser() -> OptionParser:
    """The options of ``rl4lm export``."""
    parser = OptionParser(
        prog="rl4lm export",
        description="Write the weights of a run, a checkpoint or any model to a folder that "
        "transformers loads without rl4lm: adapters merged into the base model, safetensors, "
        "tokenizer, model card.",
        usage="%(prog)s RUN_DIR|CHECKPOINT|MODEL --out FOLDER [--option value ...]",
    )
    parser.add_argument("source", metavar="RUN_DIR", nargs="?", help="a run, checkpoint or model")
    parser.add_argument("--out", metavar="FOLDER", help="folder to write; whole or not there")
    parser.add_argument(
        "--dtype",
        default="auto",
        type=_dtype,
        choices=_DTYPES,
        metavar="NAME",
        help=f"type of the weights: {', '.join(_DTYPES)}; auto = as trained, nothing is rounded",
    )
    parser.add_argument("--checkpoint", metavar="N", help="step of a checkpoint of the run")
    parser.add_argument(
        "--adapter_only", action="store_true", help="the adapter alone, in peft's format"
    )
    parser.add_argument(
        "--max_shard_size", default="5GB", metavar="SIZE", help="of a file of weights; default 5GB"
    )
    parser.add_argument(
        "--overwrite_output_dir", action="store_true", help="replace a model in that folder"
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run model code that the model brings"
    )
    parser.add_argument(
        "--push_to_hub",
        metavar="ORG/NAME",
        help="upload the folder too; the token is read from HF_TOKEN or `hf auth login`",
    )
    parser.add_argument("--private", action="store_true", help="make a private repository")
    add_output_arguments(parser, "what was written")
    return parser


def _dtype(given: str) -> str:
    if given not in _DTYPES:
        nearest = did_you_mean(given, _DTYPES)
        raise ArgumentTypeError(f"{given!r} given, expected one of {', '.join(_DTYPES)}{nearest}")
    return given


def _step(given: str | None) -> int | None:
    if given is None:
        return None
    if not given.isdecimal():
        raise ConfigError(f"checkpoint: {given!r} given, expected the step of a checkpoint")
    return int(given)


def _check_base(source: ExportSource) -> None:
    base = parent(source.weights, source.run)
    if adapter_settings(source.weights) is not None and (base is None or not on_hub(base)):
        raise ConfigError(
            f"the adapter's base model is {base}, which is not on the hub, so that nobody could "
            "load the adapter from there; leave --adapter_only out to upload the merged model"
        )


def _written(source: ExportSource, given: Namespace) -> dict[str, Any]:
    """Write the folder, upload it where that was asked for, and say so."""
    out = Path(given.out)
    check_place(out, source.weights, given.overwrite_output_dir)
    if given.push_to_hub is not None:
        greet(given.push_to_hub)
    from rl4lm.export.exported import ExportChoices
    from rl4lm.export.exported import export as write
    from rl4lm.screen.console import Screen

    quiet_libraries()
    screen = Screen(stderr=given.json)
    choices = ExportChoices(
        dtype=given.dtype,
        adapter_only=given.adapter_only,
        max_shard_size=given.max_shard_size,
        trust_remote_code=given.trust_remote_code,
        title=given.push_to_hub,
    )
    found = write(source, out, choices)
    screen.note(_told(found))
    if given.push_to_hub is not None:
        found["hub_url"] = _uploaded(out, given)
        screen.note(f"uploaded to {found['hub_url']}")
    return found


def _uploaded(out: Path, given: Namespace) -> str:
    try:
        return upload(out, given.push_to_hub, given.private)
    except HubError as error:
        raise HubError(
            f"{error}\n{str(out)!r} is whole; the same command with --overwrite_output_dir tries "
            "again"
        ) from None


def _told(found: dict[str, Any]) -> str:
    kind = {"adapter": "the adapter", "merged": "the merged model", "model": "the model"}
    text = (
        f"{kind[found['kind']]} is in {found['out']}: {found['parameters']:,} parameters in "
        f"{found['dtype']}, {found['bytes'] / 1e6:,.1f} MB"
    )
    if rounding := found.get("rounding_gap"):
        text += f"; rounded to it, log-probs differ by up to {rounding:.2g}"
    return text
