"""What may be asked of a run, and how a request that cannot be meant is answered."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from rl4lm.config import COMPARES_WITHIN_PROMPT, OPTIONS, ReinforceConfig
from rl4lm.errors import ConfigError, Rl4lmError
from rl4lm.estimator.baselines import BASELINES
from rl4lm.settings.refusals import NOT_OFFERED


def refusal(**values):
    """The message with which `ReinforceConfig` refuses these values."""
    with pytest.raises(ConfigError) as caught:
        ReinforceConfig(**values)
    return str(caught.value)


def test_every_option_has_a_default_and_the_defaults_pass_every_check():
    config = ReinforceConfig()
    assert config.model_name_or_path == "builtin:tiny-arithmetic"
    assert config.dataset_name == "builtin:arithmetic"
    assert config.learning_rate == 1e-5
    assert list(config.to_dict()) == list(OPTIONS)


def test_the_listed_defaults_are_those_of_a_fresh_instance():
    assert {name: option.default for name, option in OPTIONS.items()} == ReinforceConfig().to_dict()


def test_every_option_has_a_theme_and_a_meaning():
    assert all(option.theme and option.help for option in OPTIONS.values())


def test_every_option_that_may_be_off_says_what_off_means():
    for option in OPTIONS.values():
        if option.optional:
            assert "none" in option.help, option.name


def test_the_configuration_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ReinforceConfig().seed = 1


def test_two_configurations_do_not_share_a_list():
    first, second = ReinforceConfig(), ReinforceConfig()
    first.stop_strings.append("x")
    assert second.stop_strings == []


def test_a_configuration_survives_pickling_copying_and_replacement():
    config = ReinforceConfig(seed=3, stop_strings=["\n"])
    assert pickle.loads(pickle.dumps(config)) == config == copy.deepcopy(config)
    assert dataclasses.replace(config, seed=4).seed == 4


def test_to_dict_gives_back_the_same_configuration():
    config = ReinforceConfig(lora_alpha=8, reward_weights=[2], stop_token_ids=[5])
    assert ReinforceConfig(**config.to_dict()) == config


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "3e-4", 3e-4),
        ("max_steps", "512", 512),
        ("max_steps", 512.0, 512),
        ("temperature", 1, 1.0),
        ("use_peft", "true", True),
        ("use_peft", "False", False),
        ("lora_alpha", "none", None),
        ("dataset_test_split", "None", None),
        ("accuracy_func", None, None),
        ("stop_strings", "\n", ["\n"]),
        ("stop_token_ids", 5, [5]),
        ("stop_token_ids", ["5", 6], [5, 6]),
        ("reward_weights", ("0.5",), [0.5]),
        ("reward_weights", ["none"], None),
        ("baseline", "none", "none"),
        ("output_dir", Path("runs") / "a", str(Path("runs") / "a")),
    ],
)
def test_text_becomes_the_value_that_it_means(name, text, value):
    read = getattr(ReinforceConfig(**{name: text}), name)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("learning_rate", "abc", "a number >= 0"),
        ("learning_rate", -1, "a number >= 0"),
        ("learning_rate", True, "a number >= 0"),
        ("learning_rate", None, "a number >= 0"),
        ("learning_rate", "nan", "a number >= 0"),
        ("learning_rate", float("inf"), "a number >= 0"),
        ("learning_rate", [1e-5], "a number >= 0"),
        ("adam_beta1", 1, "a number >= 0 and < 1"),
        ("temperature", 0, "a number > 0"),
        ("max_steps", 1.5, "a whole number >= 1"),
        ("max_steps", "1.5", "a whole number >= 1"),
        ("max_steps", False, "a whole number >= 1"),
        ("max_steps", 0, "a whole number >= 1"),
        ("seed", -1, "a whole number >= 0"),
        ("max_time", 0, "a number > 0, or none"),
        ("lora_alpha", ["none"], "a number > 0, or none"),
        ("use_peft", "maybe", "true or false"),
        ("prompt_column", 5, "non-empty text"),
        ("prompt_column", "", "non-empty text"),
        ("baseline", None, "one of auto, none, batch_mean"),
        ("stop_strings", [""], "a list of non-empty texts"),
        ("stop_token_ids", [True], "a list of whole numbers >= 0"),
        ("stop_token_ids", [-1], "a list of whole numbers >= 0"),
        ("stop_token_ids", {"a": 1}, "a list of whole numbers >= 0"),
        ("reward_funcs", [], "a list of non-empty texts (at least 1)"),
        ("reward_weights", ["much"], "a list of numbers, or none"),
    ],
)
def test_a_wrong_value_is_answered_with_name_value_and_expectation(name, value, expected):
    message = refusal(**{name: value})
    given = value[0] if isinstance(value, list) and value and OPTIONS[name].many else value
    assert message.startswith(f"{name}: ")
    assert repr(given) in message
    assert f"expected {expected}" in message


def test_a_misspelt_choice_is_answered_with_the_nearest_one():
    assert refusal(optim="adam").endswith("did you mean adamw?")


def test_all_wrong_values_are_named_at_once():
    assert [line.split(":")[0] for line in refusal(seed=-1, max_steps=0).splitlines()] == [
        "max_steps",
        "seed",
    ]


def test_an_unknown_keyword_is_answered_with_the_nearest_name():
    assert refusal(learning_rte=1) == "unknown option learning_rte; did you mean learning_rate?"


def test_a_keyword_like_no_other_gets_no_suggestion():
    assert refusal(zzzzzz=1) == "unknown option zzzzzz"


def test_an_option_without_its_name_is_a_type_error():
    with pytest.raises(TypeError):
        ReinforceConfig("builtin:tiny-arithmetic")


def test_the_error_is_caught_as_ours_and_as_a_value_error():
    for kind in (Rl4lmError, ValueError):
        with pytest.raises(kind):
            ReinforceConfig(seed="abc")


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_an_option_that_is_not_offered_is_answered_with_the_reason(name):
    assert refusal(**{name: 0.37}) == f"{name} is not offered, because {NOT_OFFERED[name]}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("top_p", "rl4lm sample"),
        ("lora_dropout", "sampled and the differentiated policy differ"),
        ("gradient_accumulation_steps", "max_tokens_per_micro_batch"),
        ("num_train_epochs", "max_steps"),
        ("save_strategy", "save_steps"),
        ("kl_coef", "called beta"),
        ("gradient_checkpointing", "activation_checkpointing"),
        ("bf16", "dtype"),
    ],
)
def test_the_reason_names_what_to_do_instead(name, words):
    assert words in refusal(**{name: 0.37})


def test_no_option_is_both_taken_and_not_offered():
    assert not set(NOT_OFFERED) & set(OPTIONS)


@pytest.mark.parametrize(
    ("prompts", "generations", "baseline"),
    [(8, 8, "prompt_leave_one_out"), (8, 1, "batch_leave_one_out"), (1, 1, "none")],
)
def test_the_automatic_baseline_follows_from_the_size_of_a_step(prompts, generations, baseline):
    config = ReinforceConfig(prompts_per_step=prompts, num_generations=generations)
    assert config.resolved_baseline == baseline
    assert config.completions_per_step == prompts * generations


def test_a_baseline_that_is_named_is_kept():
    assert ReinforceConfig(baseline="batch_mean").resolved_baseline == "batch_mean"


def test_leaving_one_out_of_a_prompt_needs_two_completions_of_it():
    message = refusal(baseline="prompt_leave_one_out", num_generations=1)
    assert "num_generations=1" in message
    assert "baseline=batch_leave_one_out" in message


@pytest.mark.parametrize("baseline", ["batch_mean", "batch_leave_one_out"])
def test_a_baseline_over_the_batch_needs_two_completions(baseline):
    assert baseline in refusal(baseline=baseline, prompts_per_step=1, num_generations=1)
    ReinforceConfig(baseline=baseline, prompts_per_step=2, num_generations=1)


def test_a_warm_up_that_the_schedule_ignores_is_refused():
    assert "constant_with_warmup" in refusal(warmup_steps=5)
    ReinforceConfig(warmup_steps=5, lr_scheduler_type="constant_with_warmup")


def test_a_reward_named_twice_is_refused():
    assert "twice" in refusal(reward_funcs=["a:f", "a:f"])


def test_all_conflicts_are_named_at_once():
    message = refusal(warmup_steps=5, baseline="prompt_leave_one_out", num_generations=1)
    assert len(message.splitlines()) == 2


def test_rewards_weigh_one_each_unless_weights_are_given():
    assert ReinforceConfig().weights_for(3) == [1.0, 1.0, 1.0]
    config = ReinforceConfig(reward_funcs=["a:f", "a:g"], reward_weights=[1, 0.5])
    assert config.weights_for(2) == [1.0, 0.5]


def test_weights_must_be_as_many_as_the_rewards_that_are_named():
    assert "2 values for 1 rewards" in refusal(reward_funcs="a:f", reward_weights=[1, 2])


def test_weights_for_functions_from_python_are_checked_when_their_number_is_known():
    config = ReinforceConfig(reward_weights=[1, 2])
    assert config.weights_for(2) == [1.0, 2.0]
    with pytest.raises(ConfigError, match="2 values for 3 rewards"):
        config.weights_for(3)


def test_the_scale_of_the_adapters_is_twice_their_rank_unless_given():
    assert ReinforceConfig(lora_r=4).resolved_lora_alpha == 8.0
    assert ReinforceConfig(lora_r=4, lora_alpha=1).resolved_lora_alpha == 1.0


@pytest.mark.parametrize(
    ("given", "target"),
    [(None, "all-linear"), ("all-linear", "all-linear"), (["q", "v"], ["q", "v"])],
)
def test_adapters_go_to_all_linear_layers_unless_layers_are_named(given, target):
    assert ReinforceConfig(lora_target_modules=given).resolved_lora_target_modules == target


def test_the_schedules_are_names_of_transformers():
    trainer_utils = pytest.importorskip("transformers.trainer_utils")
    known = {each.value for each in trainer_utils.SchedulerType}
    assert set(OPTIONS["lr_scheduler_type"].choices) <= known


def test_reading_a_configuration_loads_no_slow_library():
    code = (
        "import sys, rl4lm.config, rl4lm.options;"
        "slow = {'torch', 'transformers', 'numpy', 'peft', 'datasets', 'accelerate'};"
        "print(sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_p", 1.0),
        ("top_k", 0),
        ("lora_dropout", 0.0),
        ("use_vllm", False),
    ],
)
def test_an_option_that_is_not_offered_may_be_switched_off(name, value):
    assert ReinforceConfig(**{name: value}) == ReinforceConfig()


@pytest.mark.parametrize(("name", "value"), [("top_k", False), ("use_vllm", 0), ("top_p", 0.9)])
def test_only_the_very_value_that_switches_it_off_is_taken(name, value):
    with pytest.raises(ConfigError, match=f"{name} is not offered"):
        ReinforceConfig(**{name: value})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("k1", "expected gradient of k1 in the loss is exactly zero"),
        ("k1_loss", "kl_in=reward uses k1 where its gradient is exact"),
        ("k3", "ask for it as kl_in=grpo_k3"),
        ("loss_k3", "does not follow the gradient of the KL"),
    ],
)
def test_a_divergence_that_does_not_do_what_one_thinks_is_refused_with_the_reason(value, words):
    message = refusal(beta=0.1, kl_in=value)
    assert message.startswith(f"kl_in: {value} is refused, because ")
    assert words in message
    for taken in OPTIONS["kl_in"].choices:
        assert ReinforceConfig(beta=0.1, kl_in=taken).kl_in == taken


def test_another_place_for_the_divergence_is_answered_with_the_nearest_one():
    assert refusal(kl_in="rewards").endswith("did you mean reward?")


@pytest.mark.parametrize("baseline", sorted(COMPARES_WITHIN_PROMPT))
def test_a_baseline_that_compares_within_a_prompt_needs_two_completions_of_it(baseline):
    message = refusal(baseline=baseline, num_generations=1)
    assert f"baseline={baseline} compares the completions of one prompt" in message
    ReinforceConfig(baseline=baseline, num_generations=2, prompts_per_step=1)


def test_a_baseline_of_past_steps_does_with_one_completion_of_one_prompt():
    for baseline in ("none", "moving_average", "prompt_value", "linear_value"):
        ReinforceConfig(baseline=baseline, num_generations=1, prompts_per_step=1)


def test_the_baselines_to_choose_from_are_those_there_are():
    assert set(OPTIONS["baseline"].choices) == {"auto", *BASELINES}


@pytest.mark.parametrize(
    ("values", "resolved"),
    [
        ({}, None),
        ({"num_iterations": 1}, None),
        ({"num_iterations": 2}, 0.2),
        ({"epsilon": 0.1}, 0.1),
        ({"epsilon": 0.3, "num_iterations": 4}, 0.3),
        ({"epsilon": "none", "num_iterations": 4}, 0.2),
    ],
)
def test_the_ratio_is_clipped_where_there_are_several_steps_or_a_range_is_named(values, resolved):
    assert ReinforceConfig(**values).resolved_epsilon == resolved


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta", -0.1),
        ("gamma", 1.01),
        ("gamma", -0.1),
        ("entropy_coef", -1),
        ("num_iterations", 0),
        ("epsilon", 0),
        ("noise_every", -1),
        ("entropy_in", "both"),
    ],
)
def test_an_estimator_beyond_its_range_is_refused(name, value):
    assert refusal(**{name: value}).startswith(f"{name}: {value!r} given, expected ")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (True, "true"),
        ("true", "true"),
        (False, None),
        ("false", None),
        (None, None),
        ("a/b", "a/b"),
    ],
)
def test_resuming_takes_a_folder_or_a_flag(given, kept):
    assert ReinforceConfig(resume_from_checkpoint=given).resume_from_checkpoint == kept
