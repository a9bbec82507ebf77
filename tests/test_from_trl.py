"""What docs/from_trl.md says of options is so: names, defaults, and that none is forgotten."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from rl4lm.config import OPTIONS
from rl4lm.settings.refusals import NOT_OFFERED

PAGE = (Path(__file__).parents[1] / "docs" / "from_trl.md").read_text(encoding="utf-8")
OLDER = ("warmup_ratio", "gradient_checkpointing", "normalize_advantages")  # of releases before
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def table(title):
    """The cells of the table of a section."""
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def trl_defaults():
    """Name -> default of every option of TRL's command line for GRPO."""
    trl = pytest.importorskip("trl")
    fields = {}
    for of in (trl.ScriptArguments, trl.ModelConfig, trl.GRPOConfig):
        fields |= {f.name: f.default for f in dataclasses.fields(of)}
    return {k: None if v is dataclasses.MISSING else v for k, v in fields.items()}


def shown(value):
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def test_options_under_another_name_are_trls_on_the_left_and_ours_on_the_right():
    theirs = trl_defaults()
    rows = table("Options under another name")
    assert len(rows) > 10
    for left, right, _ in rows:
        assert left.strip("`") in {*theirs, *OLDER}, left
        assert left.strip("`") in NOT_OFFERED, f"{left} is taken here by its own name"
        assert right.strip("`") in OPTIONS, right


def test_every_default_that_differs_is_on_the_page_and_is_what_it_says():
    theirs = trl_defaults()
    differ = {
        f"`{name}`": (shown(theirs[name]), shown(option.default))
        for name, option in OPTIONS.items()
        if name in theirs
        and theirs[name] != option.default
        and shown(theirs[name]) != shown(option.default)
        # None is how TRL writes an empty list and a flag that is off.
        and not (theirs[name] is None and option.default in ([], False))
    }
    told = {
        name: (there, here)
        for name, there, here in table("Options of the same name and another default")
    }
    assert told == differ


def test_both_sides_of_the_example_are_configurations_that_are_taken(monkeypatch, tmp_path):
    trl = pytest.importorskip("trl")
    import rl4lm

    made = []
    monkeypatch.chdir(tmp_path)
    for module, name in ((trl, "GRPOTrainer"), (rl4lm, "ReinforceTrainer")):
        monkeypatch.setattr(module, name, _noting(made), raising=False)
    for block in BLOCKS:
        block = block.replace("GRPOConfig(\n", "GRPOConfig(\n        bf16=False, use_cpu=True,\n")
        exec(block, {"__name__": "example"})
    there, here = (each["args"] for each in made)
    assert here.learning_rate == there.learning_rate
    assert here.max_steps == there.max_steps
    completions = there.per_device_train_batch_size * there.gradient_accumulation_steps
    assert here.completions_per_step == completions


def _noting(made):
    class Trainer:
        def __init__(self, **given):
            made.append(given)

        def train(self):
            pass

    return Trainer
