"""Mistakes at the command line: words and exit code 2, nothing loaded that is not needed,
nothing written, nothing written over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import datasets
import pytest
import torch
from launching import finished
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from rl4lm.builtin import model_path
from rl4lm.cli import main, run
from rl4lm.errors import ConfigError, RewardError
from rl4lm.model import loading

SMALL = "--dataset_name good.jsonl --max_steps 1 --eval_samples 2 --prompts_per_step 1"
TRAIN = f"train --output_dir out {SMALL}"
SCORE = "score --reward rewards.arithmetic:exact_answer --data"

FILES = {
    "good.jsonl": '{"prompt": "1+1=", "answer": "2"}\n{"prompt": "2+1=", "answer": "3"}\n',
    "plain.jsonl": '{"prompt": "1+1="}\n',
    "broken.jsonl": '{"prompt": "1+1=", "answer": "2"}\n{"prompt": \n',
    "typo.csv": "promt,answer\n1+1=,2\n",
    "empty.jsonl": "",
    "header.csv": "prompt,answer\n",
    "number.jsonl": '{"prompt": 3, "answer": "2"}\n',
    "chat.jsonl": '{"prompt": [{"role": "user", "content": "1+1="}], "answer": "2"}\n',
    "rows.jsonl": '{"prompt": "p", "completion": "c", "answer": "2"}\nnot json\n',
    "typo.yaml": "learning_rat: 1\n",
    "value.yaml": "learning_rate: many\n",
    "broken.yaml": "max_steps: [\n",
    "at_import.py": "raise RuntimeError('no licence')\n",
    "my.py": """
def needs(completions, solution, **kwargs): return [0.0] * len(completions)
def short(completions, **kwargs): return [1.0]
def nan(completions, **kwargs): return [0.0, float("nan")]
def text(completions, **kwargs): return ["1"] * len(completions)
def tokens(completions, **kwargs): return [[1.0]] * len(completions)
def scalar(completions, **kwargs): return 1.0
def raises(completions, **kwargs): raise KeyError("gold")
number = 3
""",
    "file": "mine",
    "run/metrics.jsonl": "earlier\n",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertForMaskedLM(BertConfig(vocab_size=100, intermediate_size=8, **small)).save_pretrained(
        root / "bert"
    )
    gpt2 = GPT2Config(vocab_size=100, n_embd=8, n_layer=1, n_head=1, n_positions=16, eos_token_id=2)
    for name in ("bare", "short"):
        GPT2LMHeadModel(gpt2).save_pretrained(root / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_path("builtin:tiny-arithmetic") / file, root / "short")
    return root


def snapshot(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def make_folder(work, models):
    """A working folder with good and bad files and models in it."""
    for name, text in FILES.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)
    (work / "models").symlink_to(models)
    return work


@pytest.fixture
def folder(tmp_path, models, monkeypatch):
    """Where command lines are run that must leave no trace."""
    work = make_folder(tmp_path / "work", models)
    monkeypatch.chdir(work)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return work


@pytest.fixture
def refused(folder, capsys):
    """Run a command line in this process; it must be refused in words and leave no trace."""
    handler, before = signal.getsignal(signal.SIGTERM), snapshot(folder)

    def refused(words, code=2):
        with warnings.catch_warnings():
            returned = main(words.split() if isinstance(words, str) else words)
        signal.signal(signal.SIGTERM, handler)
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
        printed = capsys.readouterr().err
        assert returned == code, printed
        assert printed.startswith("rl4lm: error: ")
        assert snapshot(folder) == before
        assert (code == 2) == ("Traceback" not in printed)
        return printed

    return refused


BEFORE_THE_WEIGHTS = [
    (f"{TRAIN} --dataset_name none.jsonl", "there is no file 'none.jsonl'"),
    (f"{TRAIN} --dataset_name broken.jsonl", "cannot be read: JSON parse error"),
    (f"{TRAIN} --dataset_name empty.jsonl", "is empty"),
    (f"{TRAIN} --dataset_name header.csv", "has no rows"),
    (f"{TRAIN} --dataset_name typo.csv", "no column 'prompt'; did you mean promt?; they have:"),
    (f"{TRAIN} --dataset_name number.jsonl", "row 0 of split 'train': the prompt must be text"),
    (f"{TRAIN} --dataset_name chat.jsonl", "the tokenizer has no chat template"),
    (f"{TRAIN} --dataset_name plain.jsonl", "'exact_answer' needs the column 'answer'"),
    (f"{TRAIN} --dataset_name builtin:arithmetics", "did you mean 'builtin:arithmetic'?"),
    (f"{TRAIN} --dataset_train_split trian", "has no split 'trian'; it has: train"),
    (f"{TRAIN} --reward_funcs nowhere:reward", "No module named 'nowhere'"),
    (f"{TRAIN} --reward_funcs none.py:reward", "there is no file"),
    (f"{TRAIN} --reward_funcs my.py", "write it as my.py:function"),
    (f"{TRAIN} --reward_funcs my.py:shorts", "my.py has no 'shorts'; did you mean short?"),
    (f"{TRAIN} --reward_funcs my.py:number", "must be a function or its name, got int"),
    (
        f"{TRAIN} --reward_funcs rewards.arithmetic:exact_anser",
        "has no 'exact_anser'; did you mean exact_answer?",
    ),
    (
        f"{TRAIN} --reward_funcs at_import.py:reward",
        "'at_import.py:reward' cannot be loaded: RuntimeError: no licence",
    ),
    (f"{TRAIN} --reward_funcs my.py:needs", "needs the column 'solution'"),
    (f"{TRAIN} --max_prompt_length 3", "2 of the 2 prompts of split 'train' are longer"),
    (f"{TRAIN} --model_name_or_path ./none", "there is no directory './none'"),
    (
        f"{TRAIN} --model_name_or_path builtin:tiny-arithmetics",
        "did you mean 'builtin:tiny-arithmetic'?",
    ),
    (f"{TRAIN} --model_name_or_path models/bert", "is a BertForMaskedLM, not a causal language"),
    (f"{TRAIN} --model_name_or_path models/bare", "there are no tokenizer files"),
    (
        f"{TRAIN} --model_name_or_path models/short --max_completion_length 13",
        "context of 16 tokens is too short for the longest prompt",
    ),
    (f"train --output_dir run {SMALL}", "'run' already holds a run; choose another directory"),
    (f"train --output_dir file {SMALL}", "output_dir 'file' is a file"),
    (f"train --output_dir file/deep/run {SMALL}", "cannot be made"),
    ("eval --dataset_name typo.csv --dataset_test_split train", "no column 'prompt'"),
    ("eval --dataset_name good.jsonl", "no split 'test'; it has: train. Choose splits with"),
    ("sample --prompt 1+1= --model_name_or_path ./none", "there is no directory"),
    (f"{SCORE} none.jsonl", "--data 'none.jsonl' cannot be read"),
    (f"{SCORE} rows.jsonl --out o.jsonl", "rows.jsonl, line 2: not JSON"),
    (f"{SCORE} good.jsonl --out o.jsonl", "good.jsonl, line 1: .*and completion is missing"),
]


@pytest.mark.parametrize(("words", "expected"), BEFORE_THE_WEIGHTS)
def test_what_is_wrong_is_said_before_the_weights_are_read(words, expected, refused, monkeypatch):
    def read(*args, **kwargs):
        raise AssertionError("the weights were read")

    monkeypatch.setattr(loading, "load_model", read)
    printed = refused(words)
    found, _, rest = expected.partition(".*")
    assert found in printed
    assert rest in printed


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("short", "'short' returned 1 values for 2 completions"),
        ("nan", "'nan' returned nan for row 1 (prompt train-1)"),
        ("text", "'text' returned '1' for row 0 (prompt train-0), which is not a number"),
        ("tokens", "give one float per token of `completion_ids`, the end token included"),
        ("scalar", "'scalar' must return a list"),
    ],
)
def test_what_is_no_reward_is_refused_and_an_earlier_run_is_kept(name, expected, refused):
    words = f"train --output_dir run --overwrite_output_dir {SMALL} --reward_funcs my.py:{name}"
    assert expected in refused(words)


def test_a_reward_that_raises_is_a_failure_with_its_traceback(refused):
    printed = refused(f"{TRAIN} --reward_funcs my.py:raises", code=1)
    assert "the reward 'raises' raised KeyError: 'gold'" in printed
    assert "Traceback" in printed
    assert "my.py" in printed


WITHOUT_TORCH = [
    ("trian", "no verb 'trian'; did you mean train?"),
    ("train", "name a folder with --output_dir"),
    (f"{TRAIN} --learning-rat 1", "unknown option --learning_rat; did you mean --learning_rate?"),
    (f"{TRAIN} surplus", "unexpected argument 'surplus'"),
    (f"{TRAIN} --max_steps many", "max_steps: 'many' given, expected a whole number >= 1"),
    (f"{TRAIN} --optim adam", "did you mean adamw?"),
    (f"{TRAIN} --reward_weights 1 2", "reward_weights has 2 values for 1 rewards"),
    (f"{TRAIN} --config none.yaml", "none.yaml: cannot be read"),
    (f"{TRAIN} --config typo.yaml", "unknown option learning_rat; did you mean learning_rate?"),
    (f"{TRAIN} --config value.yaml", "learning_rate: 'many' given"),
    (f"{TRAIN} --config broken.yaml", "broken.yaml: not valid YAML"),
    (f"{TRAIN} --top_p 0.9", "training differentiates exactly the distribution it samples from"),
    (f"{TRAIN} --top_k=5", "--top_k is not offered, because"),
    (f"{TRAIN} --min_p 0.1", "--min_p is not offered, because"),
    (f"{TRAIN} --repetition_penalty 1.1", "--repetition_penalty is not offered, because"),
    (f"{TRAIN} --lora_dropout 0.1", "dropout would make the sampled and the differentiated"),
    (f"{TRAIN} --rename anwser=solution", "no column 'anwser'; did you mean answer?"),
    (f"{TRAIN} --prompt_template {{question}}", "no column 'question'; they have: prompt, answer"),
    (f"{TRAIN} --dataset_name none/*.jsonl", "no file fits the pattern 'none/*.jsonl'"),
    (f"{TRAIN} --dataset_streaming", "dataset_streaming=true needs max_train_samples"),
    (f"{TRAIN} --streaming", "it is called dataset_streaming here"),
    ("eval --dataset_name none.jsonl", "there is no file 'none.jsonl'"),
    ("eval --learning_rate 1", "--learning_rate is an option of training"),
    ("sample", "give at least one prompt with --prompt TEXT"),
    ("sample --prompt a --top_p 2", "top_p=2.0 above 0"),
    ("score --data rows.jsonl", "--reward is missing"),
]


def answer(words, folder):
    """What a command line answers in a process of its own, which must not import torch."""
    script = (
        "import json, sys\nfrom rl4lm.cli import main\n"
        "codes = [main(words) for words in json.load(sys.stdin)]\n"
        "heavy = [m for m in ('torch', 'transformers', 'datasets') if m in sys.modules]\n"
        "print(json.dumps([codes, heavy]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps([each.split() for each in words]),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return *json.loads(done.stdout.splitlines()[-1]), done


def test_mistakes_of_the_command_line_are_answered_without_importing_torch(folder):
    before = snapshot(folder)
    codes, heavy, done = answer([words for words, _ in WITHOUT_TORCH], folder)
    assert codes == [2] * len(WITHOUT_TORCH)
    assert heavy == []
    assert "Traceback" not in done.stderr
    said = done.stderr.split("rl4lm: error: ")[1:]
    for (words, expected), message in zip(WITHOUT_TORCH, said, strict=True):
        assert expected in message, words
    assert snapshot(folder) == before


def test_help_answers_at_once_without_importing_torch(folder):
    codes, heavy, done = answer(["", "help", "--help", "--version", "completion bash"], folder)
    assert (codes, heavy) == ([0] * 5, [])
    assert "rl4lm train --output_dir runs/first" in done.stdout
    seconds = {}
    for words in ("--help", "train --help", "train --max_stepz 3"):
        started = time.perf_counter()
        command = [sys.executable, "-X", "importtime", "-m", "rl4lm", *words.split()]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
        seconds[words] = time.perf_counter() - started
        assert done.returncode == (2 if "stepz" in words else 0)
        assert not [line for line in done.stderr.splitlines() if line.endswith(" torch")]
    sys.stdout.write(f"seconds: {seconds}\n")
    assert min(seconds.values()) < 1.5


def test_a_user_sees_words_and_no_traceback(folder):
    before = snapshot(folder)
    done = subprocess.run(
        [sys.executable, "-m", "rl4lm", *TRAIN.split(), "--dataset_name", "typo.csv"],
        cwd=folder,
        env={**os.environ, "HF_DATASETS_CACHE": str(folder.parent / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("rl4lm: error: the rows of 'typo.csv' have no column 'prompt'")
    assert snapshot(folder) == before


def test_torch_is_what_the_control_of_these_tests_finds(folder):
    row = '{"prompt": "1+1=", "completion": "2", "answer": "2"}\n'
    (folder / "fine.jsonl").write_text(row)
    _, heavy, _ = answer([f"{SCORE} fine.jsonl"], folder)
    assert torch.__name__ in heavy


@pytest.mark.parametrize(
    ("error", "said"), [(RewardError("of row 3"), True), (ConfigError("x"), False)]
)
def test_what_only_one_process_meets_is_said_by_that_process(error, said, monkeypatch, capsys):
    """A broken reward on the second process's rows alone must not end the run without a word."""
    monkeypatch.setenv("RANK", "1")

    def broken():
        raise error

    assert run(broken) == 2
    assert ("rl4lm (process 1): error: of row 3" in capsys.readouterr().err) is said


# Command lines, each in a process of its own, and what the answer must say.
AT_ONCE = {
    "trian": "there is no verb 'trian'; did you mean train?",
    f"{TRAIN} --learning_rate nan": "learning_rate: 'nan' given, expected a number >= 0",
    f"{TRAIN} --prompts_per_step 99999999999": "lower one of them",
    f"{TRAIN} --config twice.yaml": "seed is given twice",
    f"{TRAIN} --config latin.yaml": "latin.yaml: cannot be read",
    f"{TRAIN} --dataset_name none.jsonl": "there is no file 'none.jsonl' (looked in",
    f"{TRAIN} --dataset_name ./none": "there is no file or folder './none' (looked in",
    f"{TRAIN} --dataset_name empty.jsonl": "is empty; at least one prompt is needed",
    f"{TRAIN} --dataset_name twice.csv": "has 2 columns called 'answer'; give every column",
    f"{TRAIN} --dataset_name typo.csv": "no column 'prompt'; did you mean promt?; they have: promt",
    f"{TRAIN} --dataset_name my.py": "is a .py file; prompts are read from",
    f"{TRAIN} --reward_funcs nowhere:f": "No module named 'nowhere'; name it as package.module",
    f"{TRAIN} --reward_funcs syntax.py:f": "SyntaxError: invalid syntax (syntax.py, line 1); mend",
    f"{TRAIN} --reward_funcs my.py:number": "got int: 3; name a function",
    f"train --output_dir file {SMALL}": "output_dir 'file' is a file; name a directory",
    f"train --output_dir run {SMALL}": "already holds a run; choose another directory",
    f"{TRAIN} --resume_from_checkpoint gone": "there is no folder 'gone'; name a folder",
    f"{TRAIN} --resume_from_checkpoint run": "it has no manifest.json, so it was never finished",
    "score --reward rewards.arithmetic:exact_answer": "--data is missing; usage:",
    "replay run": "name a run and a step; usage:",
    "replay run --step 1": "'run' holds no run: there is no config.yaml; name the output_dir",
    "doctor none": "'none' is no directory; name the output_dir of a run",
}


ODD_FILES = {
    "twice.yaml": b"seed: 1\nseed: 2\n",
    "latin.yaml": b"seed: 1 # \xe9\n",
    "twice.csv": b"prompt,answer,answer\n1+1=,2,2\n",
    "syntax.py": b"def f(:\n",
}
# Forks for each command line, having imported what every one of them needs, and no more.
ANSWER = """
import json, os, sys
from pathlib import Path
from rl4lm.cli import main

def content():
    return {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}

def answer(words, place):
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(place + name, os.O_WRONLY | os.O_CREAT), number)
    code = main(words.split())
    sys.stdout.flush()
    heavy = [name for name in ("torch", "transformers", "datasets") if name in sys.modules]
    Path(place + "json").write_text(json.dumps([code, heavy]))

for number, words in enumerate(json.loads(sys.argv[2])):
    before = content()
    child = os.fork()
    if child == 0:
        try:
            answer(words, f"{sys.argv[1]}/{number}-")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert content() == before, words
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory, models):
    """Of each command line: exit code, large libraries it has imported, and both outputs."""
    work = make_folder(tmp_path_factory.mktemp("bad") / "work", models)
    for name, content in ODD_FILES.items():
        (work / name).write_bytes(content)
    place = tmp_path_factory.mktemp("answers")
    finished([sys.executable, "-B", "-c", ANSWER, place, json.dumps(list(AT_ONCE))], work)
    return {
        words: (
            *json.loads((place / f"{number}-json").read_text()),
            (place / f"{number}-out").read_text(),
            (place / f"{number}-err").read_text(),
        )
        for number, words in enumerate(AT_ONCE)
    }


@pytest.mark.parametrize("words", AT_ONCE)
def test_a_process_of_its_own_answers_bad_input_without_torch(words, answers):
    code, heavy, out, said = answers[words]
    assert (code, heavy, out) == (2, [], ""), said
    assert said.startswith("rl4lm: error: ")
    assert said.count("rl4lm: error: ") == 1
    assert AT_ONCE[words] in said
    assert "Traceback" not in said
