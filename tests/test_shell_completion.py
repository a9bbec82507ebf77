"""What a shell offers behind `rl4lm`: in a real bash, and the words of all three scripts."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from rl4lm.cli import main
from rl4lm.commandline.shell_completion import offers
from rl4lm.commandline.verbs import VERBS
from rl4lm.config import OPTIONS

# Asks bash what it would offer for words as its own line editor splits them.
ASK = """
source script.bash
complete -p rl4lm > registered
IFS=$'\\n'
while IFS='|' read -r -a COMP_WORDS; do
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  # read drops an empty last word; a lone % stands for it
  [[ ${COMP_WORDS[COMP_CWORD]} == % ]] && COMP_WORDS[COMP_CWORD]=
  _rl4lm
  (IFS=' '; echo "${COMPREPLY[*]}")
done < asked
"""

# What has been typed, as bash splits it -> what is offered.
LINES = {
    "rl4lm|tr": "train",
    "rl4lm|%": " ".join(VERBS),
    "rl4lm|train|--learning_r": "--learning_rate",
    "rl4lm|score|--learning_r": "",
    "rl4lm|train|--baseline|prompt_l": "prompt_leave_one_out",
    "rl4lm|train|--baseline|=|prompt_l": "prompt_leave_one_out",
    "rl4lm|train|--baseline|=": "",  # filled in below, with every choice
    "rl4lm|train|--baseline|none|prompt_l": "",
    "rl4lm|train|--use_peft|f": "false",
    "rl4lm|train|--report_to|wandb|m": "mlflow",
    "rl4lm|train|--seed|%": "",
    "rl4lm|train|--config|ro": "rows.jsonl",
    "rl4lm|train|--output_dir|r": "runs",
    "rl4lm|train|--model_name_or_path|builtin|:|tiny-c": "tiny-code",
    "rl4lm|train|--model_name_or_path|bui": "builtin:tiny-arithmetic builtin:tiny-code",
    "rl4lm|export|--dtype|pure": "",
    "rl4lm|export|--dtype|f": "float32 float16 float64",
    "rl4lm|export|--out|r": "runs",
    "rl4lm|train|--dtype|p": "pure_bfloat16",
    "rl4lm|score|--data|ro": "rows.jsonl",
    "rl4lm|score|--data|builtin|:|gr": "graded-arithmetic",
    "rl4lm|train|--eval_dataset_name|bui": (
        "builtin:arithmetic builtin:code builtin:graded-arithmetic"
    ),
    "rl4lm|report|r": "runs",
    "rl4lm|doctor|--json|r": "runs",
    "rl4lm|completion|f": "fish",
    "rl4lm|completion|%": "bash zsh fish",
}
LINES["rl4lm|train|--baseline|="] = " ".join(OPTIONS["baseline"].choices)


def script(shell, capsys):
    """The script of a shell, as the command line prints it."""
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.fixture
def folder(tmp_path, capsys):
    """A folder with the script, a file of rows and a folder of runs."""
    (tmp_path / "script.bash").write_text(script("bash", capsys))
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "runs").mkdir()
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_offers_verbs_options_values_files_and_folders(folder):
    (folder / "asked").write_text("".join(f"{line}\n" for line in LINES))
    command = ["bash", "--norc", "-c", ASK]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert (folder / "registered").read_text() == "complete -F _rl4lm rl4lm\n"
    assert dict(zip(LINES, done.stdout.splitlines(), strict=True)) == LINES


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_names_every_verb_and_every_option_of_each(shell, capsys):
    text = script(shell, capsys)
    dashes = "-l " if shell == "fish" else "--"
    for name, verb in VERBS.items():
        lines = [line for line in text.splitlines() if name in line]
        assert lines, name
        for offer in offers(verb.parser()):
            assert f"{dashes}{offer.name[2:]}" in text if offer.name else True
    assert "--no_" not in text  # both ways of a flag would double the list
    assert "--learning_rates" not in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_itself_can_read_its_script(shell, capsys, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "script"

    def read(text):
        path.write_text(text)
        return subprocess.run([shell, "-n", path], capture_output=True, timeout=60).returncode

    text = script(shell, capsys)
    assert read(text) == 0
    assert read(text + "\nif (") != 0


def test_options_with_choices_offer_them_and_those_that_may_be_none_offer_that_too():
    found = {offer.name[2:]: offer for offer in offers(VERBS["train"].parser())}
    assert set(OPTIONS) <= set(found)
    for name, option in OPTIONS.items():
        assert set(option.choices) <= set(found[name].words), name
        assert found[name].meaning, name
    assert found["use_peft"].words == ("true", "false")
    assert "none" in found["report_to"].words
    assert found["seed"].words == ()


def test_choices_of_a_verb_of_its_own_are_offered_and_checked(capsys):
    found = {offer.name: offer for offer in offers(VERBS["export"].parser())}
    assert found["--dtype"].words == ("auto", "float32", "bfloat16", "float16", "float64")
    assert main(["export", "run", "--out", "here", "--dtype", "flot32"]) == 2
    assert "'flot32' given, expected one of auto, float32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [([], "name a shell: bash, zsh, fish"), (["bush"], "did you mean bash?")],
)
def test_a_shell_that_is_not_known_is_refused_with_those_that_are(words, said, capsys):
    assert main(["completion", *words]) == 2
    assert said in capsys.readouterr().err
