"""Every option that people bring from TRL is taken, or answered by name with a reason."""

from __future__ import annotations

import dataclasses

import pytest
from transformers import TrainingArguments

from rl4lm import ReinforceConfig
from rl4lm.config import OPTIONS
from rl4lm.errors import ConfigError
from rl4lm.settings.elsewhere import NOTHING
from rl4lm.settings.refusals import NOT_OFFERED, asks_for_nothing

COMMON = {field.name for field in dataclasses.fields(TrainingArguments)}


def own_fields():
    """Name -> default of what TRL's configurations add to TrainingArguments."""
    trl = pytest.importorskip("trl")
    fields = {}
    for of in (trl.RLOOConfig, trl.GRPOConfig, trl.ModelConfig, trl.ScriptArguments):
        fields |= {f.name: f.default for f in dataclasses.fields(of) if f.name not in COMMON}
    return fields


def answer(name):
    """What is said of an option given a value that nobody means."""
    try:
        ReinforceConfig(**{name: "certainly-not"})
    except ConfigError as error:
        return str(error)
    return ""


def test_no_option_of_trl_gets_a_bare_unknown_option():
    bare = [name for name in own_fields() if "unknown option" in answer(name)]
    assert not bare, f"TRL has options that nobody here has an answer to: {bare}"


def test_no_option_of_transformers_gets_a_bare_unknown_option():
    bare = [name for name in COMMON if "unknown option" in answer(name)]
    assert not bare, f"TrainingArguments has options that nobody here has an answer to: {bare}"


def test_an_option_of_nobody_is_still_unknown():
    assert answer("certainly_no_option_of_anybody") == (
        "unknown option certainly_no_option_of_anybody"
    )


def test_a_configuration_that_spells_out_trls_defaults_asks_for_nothing_where_they_mean_nothing():
    """Those that remain are different here by default, and must not be taken in silence."""
    differ = {
        "disable_dropout",  # off there
        "importance_sampling_level",  # of tokens there
        "use_bias_correction_kl",  # on there
        "use_cache",
        "vllm_mode",
    }
    checked = {
        name: default
        for name, default in own_fields().items()
        if name not in OPTIONS and name not in differ and NOTHING.get(name)
    }
    assert len(checked) > 40
    refused = [name for name, default in checked.items() if not asks_for_nothing(name, default)]
    assert refused == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("epsilon_high", "ratio here is that of the whole completion"),
        ("steps_per_generation", "num_iterations"),
        ("log_completions", "completions/"),
        ("use_liger_kernel", "tile by tile"),
        ("vllm_server_host", "sampler_url"),
        ("load_best_model_at_end", "save_total_limit"),
        ("normalize_advantages", "scale_rewards"),
        ("dataloader_num_workers", "without a DataLoader"),
    ],
)
def test_the_reason_names_what_there_is_instead(name, words):
    assert words in NOT_OFFERED[name]
    assert answer(name).endswith(NOT_OFFERED[name])


def test_a_value_that_asks_for_nothing_is_taken():
    config = ReinforceConfig(use_vllm=False, log_completions=True, epsilon_high=None, delta=None)
    assert config == ReinforceConfig()
