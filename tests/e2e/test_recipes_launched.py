"""Every recipe takes two steps through `accelerate launch`, on tiny models and invented rows."""

from __future__ import annotations

import functools
import json
import re
import shlex
import sys

import pytest
from chat_templates import CHATML, save_chat_checkpoint
from launching import RECIPES, launch, lines, recipe

from rl4lm import ReinforceConfig
from rl4lm.commandline.commands import default_values, settings_for
from rl4lm.data.splits import split_rows, training_splits
from rl4lm.errors import ConfigError, DataError
from rl4lm.options import parse_options

PROBLEMS = [
    {
        "question": f"Ann has {a} apples and buys {b} bags of {c}. How many apples has she now?",
        "answer": f"The bags hold {b}*{c}=<<{b}*{c}={b * c}>>{b * c} apples.\n"
        f"So she has {a}+{b * c}=<<{a}+{b * c}={a + b * c}>>{a + b * c}.\n#### {a + b * c}",
    }
    for a, b, c in [(3, 2, 4), (10, 5, 6), (7, 1, 9), (20, 40, 30), (1, 3, 3), (8, 8, 2)]
]
TASKS = [
    {
        "text": f"Write a function to add {n} to a number.",
        "code": f"def plus(x):\n    return x + {n}",
        "task_id": n,
        "test_setup_code": "",
        "test_list": [f"assert plus(1) == {1 + n}", f"assert plus(-5) == {n - 5}"],
        "challenge_test_list": [],
    }
    for n in range(1, 7)
]
TWO_STEPS = ["--max_steps", "2", "--prompts_per_step", "2", "--num_generations", "4"]
TWO_STEPS += ["--eval_samples", "2", "--save_steps", "0"]
CHAT = ["--warmup_steps", "1", "--max_completion_length", "16"]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")


def write_rows(path, rows):
    """A JSONL file."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@functools.cache
def chat_model(folder):
    """The name of a checkpoint, made once."""
    return str(save_chat_checkpoint(folder, CHATML, context=8192))


@pytest.fixture
def chat(tmp_path_factory):
    """Options for a tiny chat model."""
    folder = tmp_path_factory.getbasetemp() / "chat_model"
    return ["--model_name_or_path", chat_model(folder), *CHAT]


def two_steps(name, *options, folder, run=None):
    """Launch a recipe for two steps; what it logged of its completions."""
    done = launch(f"{name}.py", *TWO_STEPS, *options, folder=folder, seconds=250)
    assert done.returncode == 0, done.stderr
    run = folder / "runs" / (run or name)
    assert [row["step"] for row in lines(run / "metrics.jsonl")] == [1, 2]
    assert (run / "model").is_dir()
    return [row for step in (1, 2) for row in lines(run / f"completions/step-00000{step}.jsonl")]


@pytest.mark.timeout(300)
def test_gsm8k_takes_two_steps_on_a_folder_with_two_splits(tmp_path, chat):
    write_rows(tmp_path / "problems" / "train.jsonl", PROBLEMS[:4])
    write_rows(tmp_path / "problems" / "test.jsonl", PROBLEMS[4:])
    settings = tmp_path / "settings.yaml"
    settings.write_text("dataset_name: problems\nlora_r: 4\nmax_completion_length: 12\n")
    done = two_steps("gsm8k", "--config", str(settings), *chat, folder=tmp_path)
    assert len(done) == 2 * 2 * 4
    system, user = done[0]["prompt"]
    assert "####" in system["content"]
    assert user["content"] in {problem["question"] for problem in PROBLEMS[:4]}
    assert re.fullmatch(r"read .*, expected \d+", done[0]["detail"])
    assert all(len(row["completion_ids"]) <= 16 for row in done)  # the command line's, not 12
    run = tmp_path / "runs" / "gsm8k"
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["eval_on"] == "test"
    assert set(summary["eval_after"]) >= {"accuracy", "reward"}
    config = json.loads((run / "model" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == 4


@pytest.mark.slow
@linux_only
@pytest.mark.timeout(300)
def test_mbpp_takes_two_steps_and_shows_one_test_of_a_task(tmp_path, chat):
    rows = write_rows(tmp_path / "tasks.jsonl", TASKS)
    done = two_steps("mbpp", "--dataset_name", rows, *chat, folder=tmp_path)
    for row in done:
        asked = row["prompt"][-1]["content"]
        assert "assert plus(1) ==" in asked
        assert "plus(-5)" not in asked
        assert row["detail"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_rewards_of_trl_take_two_steps(tmp_path, chat):
    pytest.importorskip("trl")
    rows = write_rows(tmp_path / "problems.jsonl", PROBLEMS)
    done = two_steps("trl_reward", "--dataset_name", rows, *chat, folder=tmp_path)
    names = {"think_format_reward", "accuracy_reward", "boxed_once"}
    assert all(set(row["rewards"]) == names for row in done)
    assert all(value is not None for row in done for value in row["rewards"].values())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_format_then_answer_takes_two_steps(tmp_path):
    done = two_steps("format_then_answer", folder=tmp_path)
    assert all(set(row["rewards"]) == {"display", "exact_answer"} for row in done)
    for row in done:
        parts = row["rewards"]
        weights = ReinforceConfig(**recipe("format_then_answer").DEFAULTS).reward_weights
        expected = weights[0] * parts["display"] + weights[1] * parts["exact_answer"]
        assert row["reward"] == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_curriculum_takes_two_steps(tmp_path):
    done = two_steps("curriculum", folder=tmp_path)
    assert {row["prompt"][-1] for row in done} == {"="}
    logged = lines(tmp_path / "runs" / "curriculum" / "metrics.jsonl")
    assert all("curriculum/expected_success" in row for row in logged)


@pytest.mark.slow
@linux_only
@pytest.mark.timeout(300)
def test_coding_takes_two_steps(tmp_path):
    assert all(row["detail"] for row in two_steps("coding", folder=tmp_path))


@pytest.mark.slow
@linux_only
@pytest.mark.timeout(300)
def test_hacking_takes_two_steps_with_each_grader(tmp_path):
    done = two_steps("hacking", folder=tmp_path, run="hacking/exit_status")
    assert all(set(row["rewards"]) == {"exit_status", "unit_tests"} for row in done)
    assert len(lines(tmp_path / "runs/hacking/unit_tests/metrics.jsonl")) == 2


def test_every_recipe_that_trains_is_launched_by_a_test():
    here = (RECIPES.parent / "tests" / "e2e").glob("test_recipes*.py")
    tests = "".join(path.read_text(encoding="utf-8") for path in here)
    for path in RECIPES.glob("*.py"):
        launched = f'"{path.name}"' in tests or f'two_steps("{path.stem}"' in tests
        assert launched or path.stem.startswith("make_"), path.name


@pytest.mark.parametrize(
    "name", ["gsm8k", "mbpp", "trl_reward", "format_then_answer", "curriculum"]
)
def test_the_settings_of_a_recipe_can_be_meant(name):
    settings = recipe(name).DEFAULTS
    config = ReinforceConfig(**{**settings_for({**default_values(), **settings}), **settings})
    assert config.output_dir == f"runs/{name}"
    assert config.resolved_baseline == "prompt_leave_one_out"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.py")), ids=lambda path: path.stem)
def test_the_first_lines_of_a_recipe_hold_a_command_that_names_it(path):
    page = path.read_text(encoding="utf-8").split('"""')[1]
    commands = re.findall(r"^    ((?:accelerate launch|python) .*)$", page, re.MULTILINE)
    words = shlex.split(commands[0].partition("[")[0])
    assert words in (
        ["accelerate", "launch", f"recipes/{path.name}"],
        ["python", f"recipes/{path.name}"],
    )
    assert "core" in page or "GPU" in page or path.stem == "hacking"


@pytest.mark.parametrize(
    ("name", "rows", "configuration"),
    [("gsm8k", PROBLEMS, "main"), ("trl_reward", PROBLEMS, "main"), ("mbpp", TASKS, "full")],
)
def test_the_hubs_data_are_asked_for_by_configuration(monkeypatch, name, rows, configuration):
    asked = []
    hub = recipe(name).DEFAULTS["dataset_name"]

    def load_dataset(name, configuration, **options):
        asked.append((name, configuration))
        return {"train": rows, "test": rows[:2]}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    module = recipe(name)
    config = settings_of(module)
    train, held_out = prompts_of(module, config)
    assert set(asked) == {(hub, configuration)}
    assert len(train) == len(rows)
    assert len(held_out) == 2
    for i, source in enumerate(rows):
        system, user = train.example(i).prompt
        assert (system["role"], user["role"]) == ("system", "user")
        assert source.get("question", source.get("text")) in user["content"]


def settings_of(module, *words):
    """The configuration of a recipe, as its command line makes it."""
    how = {"prog": "recipe", "description": "", "base": module.DEFAULTS, "base_for": settings_for}
    return parse_options(words, **how)


def prompts_of(module, config):
    """What a recipe trains on and evaluates on: through the options, or rows of its own."""
    made = getattr(module, "problem", None) or getattr(module, "task", None)
    splits = training_splits(config, *(split_rows(config, made) if made else ()))
    return splits.train, splits.evaluation


@pytest.mark.parametrize("name", ["gsm8k", "trl_reward"])
def test_a_lone_file_has_no_configuration_and_no_problems_to_hold_out(tmp_path, name):
    rows = write_rows(tmp_path / "problems.jsonl", PROBLEMS)
    module = recipe(name)
    for given in ((), ("--dataset_test_split", "none")):
        config = settings_of(module, "--dataset_name", rows, *given)
        assert config.dataset_config is None
        train, held_out = prompts_of(module, config)
        assert len(train) == len(PROBLEMS)
        assert held_out is None


@pytest.mark.parametrize("name", ["gsm8k", "mbpp", "trl_reward"])
def test_a_file_without_the_column_is_refused_before_a_model_is_read(tmp_path, monkeypatch, name):
    rows = write_rows(tmp_path / "rows.jsonl", [{"problem": "1+1", "answer": "#### 2"}])
    arguments = [name, "--dataset_name", rows, "--model_name_or_path", "no/such/model"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(DataError, match=r"no column '(question|text)'.*they have: problem"):
        recipe(name).main()


def test_without_trl_its_recipe_says_what_to_install(monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "trl" else found(name)
    )
    with pytest.raises(ConfigError, match="pip install trl math-verify"):
        recipe("trl_reward").check_installed()


def test_trl_is_handed_the_number_behind_the_hashes():
    solution = recipe("trl_reward").solution
    assert solution(PROBLEMS[3]) == "$1220$"
    assert solution({"answer": "Half of it.\n#### 1,234"}) == "$1234$"
    assert solution({"solution": r"$\frac{1}{3}$", "answer": "#### 7"}) == r"$\frac{1}{3}$"


@pytest.mark.parametrize(
    ("text", "reward"),
    [(r"It is \boxed{4}.", 1.0), ("It is 4.", 0.0), (r"\boxed{4}\boxed{5}", 0.0)],
)
def test_the_reward_in_trls_style_is_for_one_box(text, reward):
    completion = [{"role": "assistant", "content": text}]
    assert recipe("trl_reward").boxed_once(completions=[completion], solution=["$4$"]) == [reward]


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        *[(text, 1.0) for text in ("046", "007", "312", "1042")],
        *[(text, 0.0) for text in ("46", "0046", "", " 046", "٤٦٠")],
    ],
)
def test_a_display_shows_three_digits(completion, reward):
    assert recipe("format_then_answer").display(completions=[completion]) == [reward]
