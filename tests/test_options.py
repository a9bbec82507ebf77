"""The command line and YAML: what is accepted, what wins, and how mistakes are answered."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from rl4lm.config import OPTIONS, ReinforceConfig
from rl4lm.errors import ConfigError, did_you_mean
from rl4lm.options import OptionParser, add_config_arguments, config_from, parse_options

PROG = {"prog": "rl4lm train", "description": "Train a model."}


def parse(*argv, **settings):
    """The configuration that a command line gives."""
    return parse_options(argv, **PROG, **settings)


def refusal(*argv, **settings):
    """The message with which a command line is refused."""
    with pytest.raises(ConfigError) as caught:
        parse(*argv, **settings)
    return str(caught.value)


@pytest.fixture
def yaml_file(tmp_path):
    """Write a YAML file and return its path."""

    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_an_empty_command_line_gives_the_defaults():
    assert parse() == ReinforceConfig()


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--seed", "3"], "seed", 3),
        (["--seed=3"], "seed", 3),
        (["--seed", "1", "--seed", "2"], "seed", 2),
        (["--learning-rate", "3e-4"], "learning_rate", 3e-4),
        (["--learning-rate=3e-4"], "learning_rate", 3e-4),
        (["--dataset-name=my-data/a-b.jsonl"], "dataset_name", "my-data/a-b.jsonl"),
        (["--dataset_name", "my-data"], "dataset_name", "my-data"),
        (["--reward_funcs", "a:f", "b:g"], "reward_funcs", ["a:f", "b:g"]),
        (["--reward_funcs", "a:f", "--reward_funcs", "b:g"], "reward_funcs", ["a:f", "b:g"]),
        (["--reward_funcs=a:f"], "reward_funcs", ["a:f"]),
        (["--stop_strings", "a b", "="], "stop_strings", ["a b", "="]),
        (["--stop_strings=--end-here"], "stop_strings", ["--end-here"]),
        (["--stop_strings"], "stop_strings", []),
        (["--stop_token_ids", "1", "2"], "stop_token_ids", [1, 2]),
        (["--accuracy_func", "none"], "accuracy_func", None),
        (["--lora_target_modules", "None"], "lora_target_modules", None),
        (["--baseline", "none"], "baseline", "none"),
        (["--use_peft"], "use_peft", True),
        (["--use-peft", "--seed", "1"], "use_peft", True),
        (["--use_peft", "true"], "use_peft", True),
        (["--use_peft=false"], "use_peft", False),
        (["--no_use_peft"], "use_peft", False),
        (["--use_peft", "--no-use-peft"], "use_peft", False),
    ],
)
def test_an_option_is_read_in_every_way_it_may_be_written(argv, name, value):
    assert getattr(parse(*argv), name) == value


@pytest.mark.parametrize("weight", ["-1", "-0.5", "-.5", "-1e-3", "-2.5E+1"])
def test_a_negative_number_is_a_value_and_not_an_option(weight):
    config = parse("--reward_funcs", "a:f", "b:g", "--reward_weights", "1", weight)
    assert config.reward_weights == [1.0, float(weight)]


def test_a_negative_number_out_of_range_is_named_as_a_value():
    assert refusal("--learning_rate", "-1e-4").startswith("learning_rate: '-1e-4' given")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--learning_rte", "1"],
            "unknown option --learning_rte; did you mean --learning_rate?",
        ),
        (
            ["--learning-rte=1"],
            "unknown option --learning_rte; did you mean --learning_rate?",
        ),
        (["--learning_rat", "1"], "unknown option --learning_rat; did you mean --learning_rate?"),
        (["--no_us_peft"], "unknown option --no_us_peft; did you mean --no_use_peft?"),
        (["--confg", "a"], "unknown option --confg; did you mean --config?"),
        (["runs/a"], "unexpected argument 'runs/a'; options are written --name value"),
        (["--seed"], "--seed: expected one argument"),
    ],
)
def test_a_mistake_on_the_command_line_is_answered_with_what_was_meant(argv, message):
    assert refusal(*argv) == message


def test_an_abbreviation_is_not_taken():
    assert refusal("--learning", "1").startswith("unknown option --learning")


def test_a_flag_with_a_stray_word_is_refused():
    assert refusal("--use_peft", "maybe") == "use_peft: 'maybe' given, expected true or false"


def test_a_well_known_option_that_is_not_offered_is_answered_with_the_reason(yaml_file):
    for message in (refusal("--top_p", "0.9"), refusal("--top-p=0.9")):
        assert message.startswith("--top_p is not offered, because training differentiates")
    path = yaml_file("top_p: 0.9")
    assert f"{path}: top_p is not offered, because" in refusal("--config", path)


def test_yaml_values_are_converted_like_those_of_the_command_line(yaml_file):
    path = yaml_file(
        "learning_rate: 3e-4\nmax_steps: '512'\nuse_peft: yes\nreward_funcs: a:f\n"
        "stop_token_ids: [1, 2]\naccuracy_func:\ndataset_test_split: none\nbaseline: none\n"
    )
    assert parse("--config", path) == ReinforceConfig(
        learning_rate=3e-4,
        max_steps=512,
        use_peft=True,
        reward_funcs=["a:f"],
        stop_token_ids=[1, 2],
        accuracy_func=None,
        dataset_test_split=None,
        baseline="none",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_steps: yes", "max_steps: True given, expected a whole number >= 1"),
        ("max_steps: 1.5", "max_steps: 1.5 given, expected a whole number >= 1"),
        ("seed: [1]", "seed: [1] given"),
        ("prompt_column: 5", "prompt_column: 5 given, expected non-empty text"),
    ],
)
def test_a_mistyped_yaml_value_is_refused(yaml_file, text, message):
    assert refusal("--config", yaml_file(text)).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rte: 1", "unknown option learning_rte; did you mean learning_rate?"),
        ("learning-rate: 1", "unknown option learning-rate; did you mean learning_rate?"),
        ("lora: {r: 8}", "unknown option lora"),
        ("1: 2", "unknown option 1"),
        ("seed: 1\nseed: 2", "seed is given twice"),
        ("- seed", "expected lines of `option: value`"),
        ("seed", "expected lines of `option: value`"),
        ("seed: [1", "not valid YAML"),
        ("seed: !!python/object:a.b {}", "not valid YAML"),
        ("prompt_column: 2020-99-99", "cannot be read"),
    ],
)
def test_a_mistake_in_the_file_is_answered_with_its_path(yaml_file, text, message):
    path = yaml_file(text)
    assert refusal("--config", path).startswith(f"--config {path}: {message}")


def test_all_unknown_options_of_a_file_are_named_at_once(yaml_file):
    message = refusal("--config", yaml_file("sed: 1\ntop_k: 5\nmax_step: 2"))
    assert len(message.splitlines()) == 3


def test_an_empty_file_gives_the_defaults(yaml_file):
    assert parse("--config", yaml_file("# nothing yet\n")) == ReinforceConfig()


def test_a_configuration_written_as_yaml_is_read_back_unchanged(yaml_file):
    config = ReinforceConfig(learning_rate=1e-7, stop_strings=["\n", "none", "- x: y"], seed=3)
    assert parse("--config", yaml_file(yaml.safe_dump(config.to_dict()))) == config


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    missing, binary = tmp_path / "missing.yaml", tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xff")
    assert str(missing) in refusal("--config", str(missing))
    assert "No such file" in refusal("--config", str(missing))
    assert "cannot be read" in refusal("--config", str(binary))
    assert "cannot be read" in refusal("--config", str(tmp_path))


def test_the_command_line_wins_over_the_file_over_the_recipe_over_the_model(yaml_file):
    path = yaml_file("max_steps: 3\nseed: 3\n")
    config = parse(
        *("--config", path, "--seed", "4"),
        base={"num_generations": 2, "max_steps": 2, "seed": 2},
        base_for=lambda given: {
            "prompts_per_step": 1,
            "num_generations": 1,
            "max_steps": 1,
            "seed": 1,
        },
    )
    assert config.max_completion_length == ReinforceConfig().max_completion_length
    assert config.prompts_per_step == 1  # only the model brings it
    assert config.num_generations == 2  # the recipe wins
    assert config.max_steps == 3  # the file wins
    assert config.seed == 4  # the command line wins


def test_the_place_of_config_on_the_command_line_does_not_matter(yaml_file):
    assert parse("--seed", "4", "--config", yaml_file("seed: 3")).seed == 4


def test_the_model_is_asked_for_its_settings_with_all_that_was_given(yaml_file):
    seen = {}

    def settings_of(given):
        seen.update(given)
        return {}

    parse(base={"optim": "sgd"}, base_for=settings_of)
    assert seen["model_name_or_path"] == ReinforceConfig().model_name_or_path
    assert seen["optim"] == "sgd"
    parse("--config", yaml_file("model_name_or_path: theirs"), base_for=settings_of)
    assert seen["model_name_or_path"] == "theirs"
    parse("--model_name_or_path", "mine", base_for=settings_of)
    assert seen["model_name_or_path"] == "mine"


RECIPE = {"dataset_name": "openai/gsm8k", "dataset_config": "main"}


@pytest.mark.parametrize(
    ("given", "configuration"),
    [
        ((), "main"),
        (("--dataset_name", "openai/gsm8k"), "main"),
        (("--dataset_config", "socratic"), "socratic"),
        (("--dataset_name", "mine"), None),
        (("--dataset_name", "mine", "--dataset_config", "main"), "main"),
    ],
)
def test_the_configuration_of_a_recipes_data_goes_with_them(given, configuration):
    assert parse(*given, base=RECIPE).dataset_config == configuration


def test_data_that_a_file_names_have_no_configuration_of_the_recipe(yaml_file):
    config = parse("--config", yaml_file("dataset_name: mine"), base={**RECIPE, "seed": 4})
    assert (config.dataset_name, config.dataset_config, config.seed) == ("mine", None, 4)


def test_a_recipe_cannot_set_an_option_that_does_not_exist():
    assert "unknown option max_step" in refusal(base={"max_step": 1})


def test_conflicts_and_weights_are_checked_before_anything_starts():
    assert "num_generations=1" in refusal(
        "--baseline", "prompt_leave_one_out", "--num_generations=1"
    )
    assert "2 values for 1 rewards" in refusal("--reward_weights", "1", "2")


def make_parser():
    """The parser of a verb that takes two options of training and one of its own."""
    parser = OptionParser(prog="rl4lm eval", description="Evaluate a model.")
    add_config_arguments(parser, ["seed", "model_name_or_path"])
    parser.add_argument("--top_p", type=float, default=1.0)
    return parser


def test_another_verb_takes_some_options_and_its_own():
    namespace = make_parser().parse_args(["--seed", "3", "--top-p", "0.9"])
    assert namespace.top_p == 0.9
    assert config_from(namespace, base={"max_steps": 2}) == ReinforceConfig(seed=3, max_steps=2)


def test_another_verb_says_which_options_belong_to_training():
    with pytest.raises(ConfigError, match=r"--optim is an option of training; `rl4lm eval` does"):
        make_parser().parse_args(["--optim", "sgd"])


def test_another_verb_suggests_its_own_options():
    with pytest.raises(ConfigError, match=r"did you mean --top_p\?"):
        make_parser().parse_args(["--top_pp", "1"])


def help_text(capsys, **settings):
    """What ``--help`` prints."""
    with pytest.raises(SystemExit) as caught:
        parse("--help", **settings)
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_the_help_lists_every_option_under_its_theme_in_narrow_lines(capsys):
    lines = help_text(capsys).splitlines()
    assert max(map(len, lines)) < 100
    theme, found = "", {}
    for line in lines:
        if line and not line.startswith(" "):
            theme = line.rstrip(":")
        elif line.startswith("  --"):
            found[line.split()[0][2:]] = theme
    assert found.pop("config") == "options"
    assert found == {name: option.theme for name, option in OPTIONS.items()}


def test_the_help_states_the_range_and_the_default(capsys):
    text = " ".join(help_text(capsys).split())
    assert "[a whole number >= 1; default 200]" in text
    assert "0 = off [a number >= 0; default 1.0]" in text
    for option in OPTIONS.values():
        assert option.help in text
        assert option.expected in text


def test_the_help_of_a_recipe_shows_the_recipes_defaults(capsys):
    text = " ".join(help_text(capsys, base={"max_steps": 77, "stop_token_ids": [5, 6]}).split())
    assert "default 77]" in text
    assert "default 5 6; empty = off]" in text


def test_the_help_is_printed_in_a_moment_by_a_fresh_process():
    code = (
        "import sys, time; start = time.perf_counter();"
        "from rl4lm.options import parse_options\n"
        "try: parse_options(['--help'], prog='rl4lm train', description='Train.')\n"
        "finally: print(time.perf_counter() - start, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert "--learning_rate" in done.stdout
    assert float(done.stderr) < 1.5


def test_the_nearest_name_is_suggested_and_a_far_one_is_not():
    assert did_you_mean("promt", ["answer", "prompt"]) == "; did you mean prompt?"
    assert did_you_mean("xyz", ["answer", "prompt"]) == ""
    assert did_you_mean("xyz", []) == ""
