"""The model card of an export: what is known of the weights, and nothing else.

Every number is read from the files of a run. What they do not say is left out, or said to be
unknown; places on this machine are named by their last part only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml

from rl4lm.config import OPTIONS
from rl4lm.export.lineage import on_hub, parent, public_name
from rl4lm.export.source import ExportSource, RunFacts
from rl4lm.screen.wording import evaluation_value, headline

# Told elsewhere in the card, or of no meaning to anyone but who ran it.
_NOT_LISTED = frozenset(
    {"model_name_or_path", "dataset_name", "dataset_train_split", "dataset_test_split", "seed"}
    | {"reward_funcs", "reward_weights", "max_steps", "output_dir", "overwrite_output_dir"}
    | {"resume_from_checkpoint", "resume_anyway", "save_steps", "save_total_limit", "sampler_url"}
    | {"logging_steps", "sample_table_steps", "torch_threads", "ddp_timeout"}
    | {"push_to_hub", "hub_model_id", "hub_private_repo", "trust_remote_code"}
)
_LIBRARIES = ("rl4lm", "torch", "transformers", "accelerate", "peft")


@dataclass(frozen=True)
class CardFacts:
    """What a card tells of."""

    title: str
    source: ExportSource
    adapter: Mapping[str, Any] | None  # its configuration, where the weights were an adapter
    merged: bool  # the adapter was added into the base model
    dtype: str  # of the exported weights
    root: str | None  # of `rl4lm.export.lineage.origin`
    terms: Mapping[str, str]  # of `rl4lm.export.lineage.licence`, of the root
    stop_strings: tuple[str, ...] = ()


def model_card(facts: CardFacts) -> str:
    """The text of README.md, front matter included."""
    run = facts.source.run
    parts = [_front_matter(facts), f"# {facts.title}", _what_it_is(facts)]
    if run is not None:
        parts += ["## Before and after", _results(run), "## How it was trained", _training(run)]
    parts += ["## How to load it", _loading(facts), "## Licence", _terms(facts)]
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: CardFacts) -> str:
    base = facts.root
    adapter = facts.adapter is not None and not facts.merged
    values: dict[str, Any] = {
        **facts.terms,
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rl4lm", "reinforce", "reinforcement-learning"],
    }
    if base is not None and on_hub(base):
        values["base_model"] = base
        values["base_model_relation"] = "adapter" if adapter else "finetune"
    if datasets := _hub_datasets(facts.source.run):
        values["datasets"] = datasets
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _hub_datasets(run: RunFacts | None) -> list[str]:
    if run is None or run.given_in_python("train_dataset"):
        return []
    return [name for name in _listed(run.config.get("dataset_name")) if on_hub(name)]


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def _what_it_is(facts: CardFacts) -> str:
    start = parent(facts.source.weights, facts.source.run)
    base = public_name(start) if start else "a model that is not named"
    if facts.root is not None and facts.root != start:
        base += f" (from {public_name(facts.root)})"
    if facts.source.run is None:
        text = f"Exported by rl4lm {version('rl4lm')}; no run of it is known to have trained it."
    else:
        text = f"Fine-tuned from {base} by REINFORCE with rl4lm."
    if facts.adapter is not None:
        text += "\n\n" + _adapter(facts.adapter, facts.merged, base) + _bits(facts)
    return f"{text}\n\nWeights in {facts.dtype}."


def _adapter(settings: Mapping[str, Any], merged: bool, base: str) -> str:
    kind = str(settings.get("peft_type", "adapter"))
    shape = (
        f" of rank {settings['r']}, alpha {settings.get('lora_alpha')}" if "r" in settings else ""
    )
    if merged:
        return f"A {kind} adapter{shape} was added into the weights in float32 or better."
    return f"This is a {kind} adapter{shape} for {base}, without the base model's weights."


def _bits(facts: CardFacts) -> str:
    """That an adapter was trained on other weights than those on disk."""
    config = {} if facts.source.run is None else facts.source.run.config
    bits = next((n for n in (4, 8) if config.get(f"load_in_{n}bit")), None)
    if bits is None:
        return ""
    return (
        f" It was trained on base weights quantised to {bits} bits, and evaluated so; "
        + ("those that it was added to" if facts.merged else "those on disk")
        + " are not."
    )


def _results(run: RunFacts) -> str:
    if not run.after and not run.before:
        return "This run was not evaluated."
    if not run.after:
        return "These weights were not evaluated."
    split = run.summary.get("eval_on") or run.config.get("dataset_test_split")
    seen = " (prompts that were trained on)" if split == "train" else ""
    count = run.after.get("samples")
    of = f"{count:.0f} prompts" if isinstance(count, (int, float)) else "prompts"
    lines = [f"Greedy completions of {of} of the split `{split}`{seen}.", ""]
    lines += ["| | before | after |", "|---|---|---|"]
    for name in _measured(run.after):
        lines.append(f"| {name} | {_value(run.before, name)} | {_value(run.after, name)} |")
    if any(f"{name}_low" in run.after for name in run.after):
        lines += ["", "In brackets: the interval that the evaluation states for it."]
    return "\n".join(lines)


def _measured(metrics: Mapping[str, Any]) -> list[str]:
    ends = ("_low", "_high")
    return [name for name in headline(metrics) if name in metrics and not name.endswith(ends)]


def _value(metrics: Mapping[str, Any], name: str) -> str:
    shown = evaluation_value(name, metrics.get(name))
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    if low is None or high is None:
        return shown
    return f"{shown} ({evaluation_value(name, low)} to {evaluation_value(name, high)})"


def _training(run: RunFacts) -> str:
    lines = [f"- {line}" for line in (*_data(run), *_rewards(run), *_course(run))]
    if versions := [f"{name} {run.layout[name]}" for name in _LIBRARIES if name in run.layout]:
        lines.append(f"- Versions: {', '.join(versions)}.")
    differing = {
        name: _shown(value)
        for name, value in run.config.items()
        if name not in _NOT_LISTED and (name not in OPTIONS or OPTIONS[name].default != value)
    }
    if not differing:
        return "\n".join([*lines, "- All other settings are the defaults."])
    settings = yaml.safe_dump(differing, sort_keys=False, allow_unicode=True)
    return "\n".join(
        [*lines, "", "Settings that differ from the defaults:", "", f"```yaml\n{settings}```"]
    )


def _shown(value: Any) -> Any:
    if isinstance(value, list):
        return [_shown(each) for each in value]
    return public_name(value) if isinstance(value, str) else value


def _data(run: RunFacts) -> Iterator[str]:
    if given := run.given_in_python("train_dataset"):
        yield f"Prompts: handed over in Python, as a {given}."
    elif names := _listed(run.config.get("dataset_name")):
        split = run.config.get("dataset_train_split")
        yield f"Prompts: {', '.join(f'`{public_name(name)}`' for name in names)}, split `{split}`."


def _rewards(run: RunFacts) -> Iterator[str]:
    given = run.given_in_python("reward_funcs")
    names = given.split(", ") if given else _listed(run.config.get("reward_funcs"))
    weights = run.config.get("reward_weights") or [1.0] * len(names)
    if names and len(names) == len(weights):
        told = [f"`{public_name(n)}` x {w:g}" for n, w in zip(names, weights, strict=True)]
        yield f"Rewards and their weights: {', '.join(told)}."


def _course(run: RunFacts) -> Iterator[str]:
    """What was done, and how often."""
    if run.config.get("baseline") is not None:
        yield f"Estimator: REINFORCE over whole completions, baseline `{_baseline(run.config)}`."
    if run.step is not None:
        done = f"{run.step} optimizer step{'' if run.step == 1 else 's'}"
        if {"samples", "tokens"} <= run.summary.keys():
            done += f", {run.summary['samples']:,} completions, {run.summary['tokens']:,} tokens"
        if isinstance(seconds := run.summary.get("train_seconds"), (int, float)):
            done += f", {seconds:.0f} s of training"
        yield f"{done}."
    if "seed" in run.config:
        yield f"Seed {run.config['seed']}; one run."


def _baseline(config: Mapping[str, Any]) -> str:
    if config["baseline"] != "auto":
        return str(config["baseline"])
    if config.get("num_generations", 1) > 1:
        return "prompt_leave_one_out"
    return "batch_leave_one_out" if config.get("prompts_per_step", 2) > 1 else "none"


def _loading(facts: CardFacts) -> str:
    start = parent(facts.source.weights, facts.source.run)
    if facts.adapter is not None and not facts.merged:
        code = (
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"base = AutoModelForCausalLM.from_pretrained({public_name(start or 'BASE')!r})\n"
            f"model = PeftModel.from_pretrained(base, {facts.title!r})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({facts.title!r})"
        )
    else:
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"model = AutoModelForCausalLM.from_pretrained({facts.title!r})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({facts.title!r})"
        )
    text = f"```python\n{code}\n```"
    if facts.stop_strings:
        ends = ", ".join(repr(each) for each in facts.stop_strings)
        text += f"\n\nIn training a completion also ended with one of the texts {ends}."
    return text


def _terms(facts: CardFacts) -> str:
    if facts.root is None:
        return "No base model is named, so that no licence is known."
    name = public_name(facts.root)
    if not facts.terms:
        return f"No card of {name} that states a licence was found; its terms apply."
    return f"The card of {name} states: {', '.join(facts.terms.values())}."
