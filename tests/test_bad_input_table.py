"""A table of bad inputs: each is answered by one message that says what was given, what was
expected and what to do, with exit code 2, no traceback, and nothing written.

A case is a name, what it changes in a working folder, the words of the command line, and three
patterns. The controls are the same set-ups without the flaw.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from rl4lm.builtin import model_path
from rl4lm.cli import main, run
from rl4lm.errors import ConfigError, DataError, ModelError, OutputError, RewardError
from rl4lm.processes.world import World

ROWS = '{"prompt": "1+1=", "answer": "2"}\n{"prompt": "2+1=", "answer": "3"}\n'
SCORED = '{"prompt": "1+1=", "completion": "2", "answer": "2"}\n'
CHAT = '{"prompt": [{"role": "user", "content": "1+1="}], "answer": "2"}\n'
SIZES = (
    "--max_steps 2 --eval_samples 2 --prompts_per_step 2 --num_generations 2 "
    "--max_completion_length 3 --save_steps 1 --torch_threads 1"
)
TRAIN = f"train --output_dir out --dataset_name good.jsonl --model_name_or_path gpt2 {SIZES}"
SCORE = "score --reward rewards.arithmetic:exact_answer --out scored.jsonl --data"
RESUME = TRAIN + " --resume_from_checkpoint run/checkpoint-000001"
REWARDS = """
number = 3
def constant(completions, **kwargs): return [0.0] * len(completions)
def needs(completions, solution, **kwargs): return [0.0] * len(completions)
def short(completions, **kwargs): return [0.0]
"""
Change = Callable[[Path], Any]


@dataclass(frozen=True)
class Case:
    """A bad input."""

    name: str
    error: type[Exception]
    words: str | list[str]
    given: str
    expected: str
    to_do: str
    change: Change | None = None


def write(name: str, content: str | bytes) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def cut(name: str, keep: float = 0.5) -> Change:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return change


def flip(name: str, place: int | None = None) -> Change:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2 if place is None else place] ^= 0x40
        (folder / name).write_bytes(bytes(content))

    return change


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def settings(name: str, **values: Any) -> Change:
    """Set entries of a JSON file; None removes one."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        kept = {key: value for key, value in content.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return change


def first_line(name: str, **values: Any) -> Change:
    """Set entries of the first line of a jsonl file."""

    def change(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines()
        lines[0] = json.dumps(json.loads(lines[0]) | values)
        (folder / name).write_text("\n".join(lines) + "\n")

    return change


def weights(name: str, edit: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / name)
        edit(tensors)
        save_file(tensors, folder / name, {"format": "pt"})

    return change


def config_case(name: str, words: str, given: str, expected: str, to_do: str = "") -> Case:
    return Case(name, ConfigError, f"{TRAIN} {words}", given, expected, to_do or expected)


def yaml_case(name: str, content: str | bytes, given: str, expected: str, to_do: str) -> Case:
    words = f"{TRAIN} --config my.yaml"
    return Case(name, ConfigError, words, given, expected, to_do, write("my.yaml", content))


def data_case(name: str, file: str, content: str | bytes, given: str, expected: str, to_do: str):
    words = f"{TRAIN} --dataset_name {file}"
    return Case(name, DataError, words, given, expected, to_do, write(file, content))


def model_case(name: str, change: Change, given: str, expected: str, to_do: str) -> Case:
    return Case(name, ModelError, TRAIN, given, expected, to_do, change)


def reward_case(name: str, reward: str, given: str, expected: str, to_do: str) -> Case:
    return Case(name, RewardError, f"{TRAIN} --reward_funcs {reward}", given, expected, to_do)


def score_case(name: str, content: str | bytes, given: str, expected: str, to_do: str) -> Case:
    words = f"{SCORE} rows.jsonl"
    return Case(name, DataError, words, given, expected, to_do, write("rows.jsonl", content))


def resume_case(name: str, change: Change | None, given: str, expected: str, to_do: str) -> Case:
    return Case(name, DataError, RESUME, given, expected, to_do, change)


def replay_case(name: str, change: Change, given: str, expected: str, to_do: str) -> Case:
    return Case(name, DataError, "replay run --step 2", given, expected, to_do, change)


CONFIGURATION = [
    config_case("an unknown option", "--learning_rat 1", "learning_rat", "unknown", "did you mean"),
    config_case("a word for a number", "--max_steps many", "'many'", "a whole number >= 1"),
    config_case("a fraction for a count", "--max_steps 1.5", "'1.5'", "a whole number >= 1"),
    config_case("a negative count", "--num_generations -2", "'-2'", "a whole number >= 1"),
    config_case("zero steps", "--max_steps 0", "max_steps: '0'", ">= 1"),
    config_case("nan", "--learning_rate nan", "'nan'", "a number >= 0"),
    config_case("infinity", "--max_grad_norm inf", "'inf'", "a number >= 0"),
    config_case("a number too large for a float", "--beta 1e999", "'1e999'", "a number >= 0"),
    config_case("temperature 0", "--temperature 0", "temperature: '0'", "> 0"),
    config_case(
        "a gigantic step",
        "--prompts_per_step 99999999999",
        "99999999999",
        "at most",
        "lower one of them",
    ),
    config_case("gigantic threads", "--torch_threads 99999999999", "99999999999", "<= 1024"),
    config_case("a gigantic rank", "--lora_r 99999999999", "99999999999", "<= 16384"),
    config_case("a seed that is no seed", "--seed -1", "seed: '-1'", ">= 0 and <= 4294967295"),
    config_case(
        "an unknown choice",
        "--optim adamx",
        "'adamx'",
        "one of adamw, adamw_8bit, sgd",
        "did you",
    ),
    config_case("a flag that is none", "--use_peft maybe", "'maybe'", "true or false"),
    config_case("a blank name", "--dataset_name \t", "dataset_name: '\\\\t'", "non-empty text"),
    config_case("an option without value", "--max_steps", "--max_steps", "expected one argument"),
    config_case("a stray word", "surplus", "'surplus'", "unexpected", "--name value"),
    config_case("top_p in training", "--top_p 0.9", "--top_p", "differentiates", "rl4lm sample"),
    config_case(
        "one completion to compare",
        "--baseline prompt_mean --num_generations 1",
        "baseline=prompt_mean",
        "compares the completions of one prompt",
        "set num_generations to 2 or more",
    ),
    config_case("a warm-up without effect", "--warmup_steps 5", "=5", "no effect", "set lr_sched"),
    config_case("a weight too many", "--reward_weights 1 2", "2 values", "1 rewards", "give one w"),
    config_case("a weight that is nan", "--reward_weights nan", "'nan'", "a list of numbers"),
    config_case(
        "a reward twice", "--reward_funcs my.py:a my.py:a", "twice", "my.py:a", "name each"
    ),
    config_case("no such file", "--config none.yaml", "none.yaml", "No such file", "--config"),
    config_case(
        "a folder for a file", "--config gpt2", "--config gpt2", "Is a directory", "cannot be read"
    ),
    yaml_case("a key twice", "seed: 1\nseed: 2\n", "my.yaml: seed", "twice", "is given twice"),
    yaml_case("broken yaml", "seed: [\n", "my.yaml: not valid", "line 2", "write a line"),
    yaml_case("endless yaml", "seed: " + "[" * 3000, "not valid YAML", "recursion", "write a line"),
    yaml_case("a list", "- seed\n- 2\n", "my.yaml", "no other structure", "lines of `option: v"),
    yaml_case("sections", "optim:\n  lr: 1\n", "optim: {'lr': 1}", "one of adamw", "adamw_8bit"),
    yaml_case("latin text", b"seed: 1 # \xe9\n", "my.yaml", "can't decode byte 0xe9", "'utf-8'"),
    yaml_case("python in yaml", "seed: !!python/name:os.system\n", "python/name", "not", "write a"),
    yaml_case("an unknown key", "learning_rat: 1\n", "learning_rat", "unknown", "did you mean lea"),
    yaml_case("nothing for a number", "gamma:\n", "gamma: None", "a number >= 0 and <= 1", "expec"),
    yaml_case("an empty name", "prompt_column: ''\n", "prompt_column: ''", "non-empty", "expected"),
    yaml_case(
        "a null byte", 'reward_funcs: "a\\0b"\n', r"a\\x00b", "list of non-empty text", "expect"
    ),
    config_case(
        "a stream without a bound",
        "--dataset_streaming",
        "dataset_streaming=true",
        "needs max_train_samples",
        "set max_train_samples to the rows",
    ),
    config_case("half a renaming", "--rename answer", "rename: 'answer'", "two names with ="),
    config_case("a lone brace", "--prompt_template {a", "prompt_template", "'}'", "write {column}"),
    config_case(
        "a field into a value", "--prompt_template {a.b}", "{a.b}", "name of a column", "as in {na"
    ),
    config_case(
        "how a template is called",
        "--chat_template_kwargs tokenize=true",
        "tokenize",
        "no variable of a template",
        "give variables of the template",
    ),
    config_case(
        "all held out", "--held_out_share 1", "held_out_share: '1'", "a number >= 0 and < 1"
    ),
    config_case(
        "a share and a split",
        "--held_out_share 0.5 --dataset_test_split validation",
        "held_out_share=0.5",
        "dataset_test_split=validation names one",
        "leave one of them out",
    ),
    Case("no output folder", ConfigError, "train", "where", "name a folder", "--output_dir"),
]

DATA = [
    Case(
        "a missing file",
        DataError,
        f"{TRAIN} --dataset_name none.jsonl",
        "'none.jsonl'",
        "there is no file",
        "looked in",
    ),
    Case(
        "a missing folder",
        DataError,
        f"{TRAIN} --dataset_name ./none",
        "'./none'",
        "there is no file or folder",
        "looked in",
    ),
    Case(
        "a name too long",
        DataError,
        f"{TRAIN} --dataset_name {'a' * 300}.jsonl",
        "'aaa",
        "is no data set",
        "too long",
    ),
    Case(
        "an empty folder",
        DataError,
        f"{TRAIN} --dataset_name vacant",
        "'vacant'",
        "data files",
        "put files in it that end in .jsonl",
        lambda folder: (folder / "vacant").mkdir(),
    ),
    Case(
        "a split that is not there",
        DataError,
        f"{TRAIN} --dataset_train_split trian",
        "'trian'",
        "it has: train",
        "--dataset_train_split",
    ),
    Case(
        "a test split that is not there",
        DataError,
        f"{TRAIN} --dataset_test_split tset",
        "'tset'",
        "it has: train",
        "--dataset_test_split",
    ),
    Case(
        "prompts over the limit",
        DataError,
        f"{TRAIN} --max_prompt_length 3",
        "2 of the 2 prompts",
        "longer than max_prompt_length=3",
        "shorten or drop them, or raise the limit",
    ),
    Case(
        "all prompts over the limit",
        DataError,
        f"{TRAIN} --max_prompt_length 3 --long_prompts drop",
        "2 of the 2 prompts.*rows 0, 1",
        "longer than 3 tokens",
        "raise max_prompt_length",
    ),
    Case(
        "a pattern that fits nothing",
        DataError,
        f"{TRAIN} --dataset_name none/*.jsonl",
        "'none/\\*.jsonl'",
        "no file fits the pattern",
        "looked in",
    ),
    Case(
        "a configuration of a file",
        DataError,
        f"{TRAIN} --dataset_config main",
        "dataset_config=main",
        "'good.jsonl' has none",
        "leave dataset_config out",
    ),
    Case(
        "a renamed column that is not there",
        DataError,
        f"{TRAIN} --rename anwser=solution",
        "no column 'anwser'; did you mean answer",
        "the rows have: prompt, answer",
        "name one of them in old=new",
    ),
    Case(
        "two columns of one new name",
        DataError,
        f"{TRAIN} --rename answer=prompt",
        "'prompt' and 'answer'",
        "both be called 'prompt'",
        "give one of them another name",
    ),
    Case(
        "a template with an unknown column",
        DataError,
        f"{TRAIN} --prompt_template {{question}}",
        "no column 'question'",
        "they have: prompt, answer",
        "Write one of these in braces",
    ),
    Case(
        "a system prompt without a chat template",
        DataError,
        f"{TRAIN} --system_prompt brief",
        "chat messages",
        "no chat template",
        "give plain text prompts",
    ),
    Case(
        "a share of almost nothing",
        DataError,
        f"{TRAIN} --held_out_share 0.000001",
        "held_out_share=1e-06 would hold out 0 of the 2 rows",
        "both sides need one",
        "a larger share",
    ),
    Case(
        "a conversation without a question",
        DataError,
        f"{TRAIN} --dataset_name a.jsonl",
        "row 0 of split 'train'",
        "no turn of a user",
        "drop the row",
        write("a.jsonl", CHAT.replace("prompt", "messages").replace("user", "system")),
    ),
    Case(
        "a shortened parquet file",
        DataError,
        f"{TRAIN} --dataset_name good.parquet",
        "'good.parquet'",
        "cannot be read",
        "mend the file or write it again",
        cut("good.parquet"),
    ),
    data_case("an empty file", "a.jsonl", "", "'a.jsonl'", "is empty", "at least one prompt"),
    data_case("a header alone", "a.csv", "prompt,answer\n", "'a.csv'", "no rows", "mend the file"),
    data_case("a broken line", "a.jsonl", ROWS + '{"pro', "line 3", "not JSON", "mend or drop it"),
    data_case("a line of another kind", "a.jsonl", ROWS + "[1]\n", "line 3", "no JSON ob", "mend"),
    data_case("utf-16", "a.jsonl", ROWS.encode("utf-16"), "line 1", "not JSON", "mend or drop it"),
    data_case("latin json", "a.jsonl", b'{"prompt": "\xe9"}\n', "row 0", "not UTF-8", "as UTF-8"),
    data_case("latin csv", "a.csv", b"prompt\n\xe9\n", "'a.csv'", "utf-8", "mend the file"),
    data_case("a ragged csv", "a.csv", "prompt\na\nb,c\nd,e,f\n", "'a.csv'", "Expected", "mend"),
    data_case("columns twice", "a.csv", "prompt,b,b\na,1,2\n", "2 columns", "'b'", "give every"),
    data_case("no prompts", "a.jsonl", '{"promt": "a"}\n', "promt", "'prompt'", "--prompt_column"),
    data_case("an empty prompt", "a.jsonl", ROWS + '{"prompt": ""}\n', "train-2", "token", "drop"),
    data_case(
        "a number as prompt",
        "a.jsonl",
        '{"prompt": 3, "answer": "2"}\n',
        "got 3",
        "must be text",
        "mend",
    ),
    data_case(
        "no prompt in a row", "a.csv", "prompt,answer\na,1\n,2\n", "row 1.*None", "text", "drop"
    ),
    Case(
        "a prompt longer than the context",
        ModelError,
        f"{TRAIN} --dataset_name a.jsonl",
        "row 0, 200 tokens",
        "context of 64 tokens",
        "drop that prompt",
        write("a.jsonl", json.dumps({"prompt": "1+" * 100, "answer": "2"}) + "\n"),
    ),
    data_case("no chat template", "a.jsonl", CHAT, "chat messages", "no chat template", "give pl"),
    data_case(
        "messages without role",
        "a.jsonl",
        CHAT.replace("role", "rule"),
        "'rule'",
        '"role", "content"',
        "mend or drop the row",
    ),
    data_case(
        "messages without text",
        "a.jsonl",
        CHAT.replace('"1+1="', "3"),
        "'content': 3",
        '"role", "content"',
        "mend or drop the row",
    ),
    data_case("text files", "a.txt", "a\n", "'a.txt' is a .txt file", "prompts are read", "jsonl"),
    *(
        data_case(
            f"a column called {name}",
            "a.jsonl",
            json.dumps({"prompt": "1+1=", "answer": "2", name: "x"}) + "\n",
            f"a column '{name}'",
            "told something else under that name",
            "rename it",
        )
        for name in ("prompts", "completions", "completion_ids", "trainer_state", "log_extra")
    ),
    Case(
        "a template that refuses",
        DataError,
        f"{TRAIN} --dataset_name chat.jsonl",
        "role.*user",
        "does not take.*must alternate",
        "mend the messages",
        settings(
            "gpt2/tokenizer_config.json", chat_template="{{ raise_exception('must alternate') }}"
        ),
    ),
    Case(
        "a broken template",
        DataError,
        f"{TRAIN} --dataset_name chat.jsonl",
        "role.*user",
        "TemplateSyntaxError",
        "or the template",
        settings("gpt2/tokenizer_config.json", chat_template="{{ messages"),
    ),
]

GIVE = "give a directory"
MODELS = [
    Case(
        "a missing folder",
        ModelError,
        f"{TRAIN} --model_name_or_path ./none",
        "'./none'",
        "there is no directory",
        GIVE,
    ),
    Case(
        "a file for a folder",
        ModelError,
        f"{TRAIN} --model_name_or_path gpt2/model.safetensors",
        "'gpt2/model.safetensors'",
        "it is a file",
        "name the directory that holds config.json",
    ),
    Case(
        "an unknown built-in model",
        ConfigError,
        f"{TRAIN} --model_name_or_path builtin:tiny",
        "'builtin:tiny'",
        "There are: builtin:tiny-arithmetic",
        "did you mean",
    ),
    Case(
        "a stop token beyond the vocabulary",
        DataError,
        f"{TRAIN} --stop_token_ids 5000",
        "5000",
        "ids below 100",
        "give ids of this model's tokenizer",
    ),
    model_case("no config.json", remove("gpt2/config.json"), "'gpt2'", "no config.json", GIVE),
    model_case("a broken config", cut("gpt2/config.json"), "'gpt2'", "not a valid JSON", GIVE),
    model_case("a list as config", write("gpt2/config.json", "[1]"), "'gpt2'", "model_type", GIVE),
    model_case(
        "an unknown architecture",
        settings("gpt2/config.json", model_type="gpt9"),
        "gpt9",
        "does not recognize",
        GIVE,
    ),
    model_case(
        "a size that is a word",
        settings("gpt2/config.json", n_embd="many"),
        "'gpt2'",
        "n_embd",
        GIVE,
    ),
    model_case(
        "heads that do not divide",
        settings("gpt2/config.json", n_head=3),
        "'gpt2'",
        "divisible",
        GIVE,
    ),
    model_case(
        "an encoder",
        lambda folder: shutil.copy(folder / "bert.json", folder / "gpt2" / "config.json"),
        "BertForMaskedLM",
        "not a causal language model",
        "AutoModelForCausalLM loads",
    ),
    model_case("cut weights", cut("gpt2/model.safetensors"), "'gpt2'", "cut short", GIVE),
    model_case("a flipped header", flip("gpt2/model.safetensors", 3), "'gpt2'", "header", GIVE),
    model_case("no weights", remove("gpt2/model.safetensors"), "'gpt2'", "no file named", GIVE),
    model_case(
        "weights of another shape",
        settings("gpt2/config.json", vocab_size=120),
        r"\[100, 8\] in the file",
        r"\[120, 8\] expected",
        GIVE,
    ),
    model_case(
        "a weight too few",
        weights("gpt2/model.safetensors", lambda w: w.pop("transformer.ln_f.weight")),
        "transformer.ln_f.weight",
        "lacks 1 of the weights of a GPT2LMHeadModel",
        "give a checkpoint of the whole",
    ),
    model_case(
        "weights that are nan",
        weights("gpt2/model.safetensors", lambda w: w["transformer.ln_f.weight"].fill_(torch.nan)),
        "transformer.ln_f.weight",
        "not finite",
        "give another checkpoint",
    ),
    model_case(
        "weights that are 0",
        weights("gpt2/model.safetensors", lambda w: [t.zero_() for t in w.values()]),
        "GPT2LMHeadModel",
        "all be 0",
        "give another checkpoint",
    ),
    model_case(
        "an end token beyond the vocabulary",
        settings("gpt2/generation_config.json", eos_token_id=500),
        "end token 500",
        "ids below 100",
        "set eos_token_id",
    ),
    model_case("no tokenizer", remove("gpt2/tokenizer.json"), "'gpt2'", "no tokenizer", "save one"),
    model_case("a cut tokenizer", cut("gpt2/tokenizer.json"), "'gpt2'", "no tokenizer", "save one"),
    Case(
        "a tokenizer of a larger model",
        ModelError,
        f"{TRAIN} --model_name_or_path narrow",
        "token id 34",
        "ids below 10",
        "give the tokenizer that belongs to the model",
    ),
    *(
        Case(name, ModelError, f"{TRAIN} --model_name_or_path lora", given, expected, to_do, change)
        for name, change, given, expected, to_do in [
            (
                "an adapter without base",
                settings("lora/adapter_config.json", base_model_name_or_path=None),
                "'lora'",
                "does not name its base model",
                "write it into",
            ),
            (
                "an adapter whose base is gone",
                settings("lora/adapter_config.json", base_model_name_or_path="/nowhere/base"),
                "'lora'",
                "no directory '/nowhere/base'",
                "write its new place into base_model_name_or_path",
            ),
            (
                "an adapter of another base",
                settings("lora/adapter_config.json", base_model_name_or_path="builtin:tiny-code"),
                "'lora'",
                "Target modules",
                "the base model that it was trained on",
            ),
            (
                "an adapter of another rank",
                settings("lora/adapter_config.json", r=4),
                "'lora'",
                "cannot be put on its base model",
                "give the adapter as save_pretrained wrote it",
            ),
            (
                "an unknown adapter",
                settings("lora/adapter_config.json", peft_type="NOPE"),
                "NOPE",
                "cannot be put",
                "give the adapter",
            ),
            (
                "an adapter with a broken config",
                cut("lora/adapter_config.json"),
                "'lora'",
                "cannot be read",
                "give the adapter",
            ),
            (
                "an adapter without weights",
                remove("lora/adapter_model.safetensors"),
                "'lora'",
                "no adapter_model.safetensors",
                "give the folder",
            ),
            (
                "an adapter cut short",
                cut("lora/adapter_model.safetensors"),
                "'lora'",
                "deserializing",
                "give the adapter",
            ),
            (
                "an adapter that lacks a weight",
                weights("lora/adapter_model.safetensors", lambda w: w.popitem()),
                "lora_[AB]",
                "lacks 1 of its weights",
                "give the adapter",
            ),
        ]
    ),
]

AS_NAME = "package.module:function"
JUDGES = [
    reward_case("no such module", "nowhere:f", "'nowhere:f'", "No module named", AS_NAME),
    reward_case("no such file", "none.py:f", "'none.py:f'", "there is no file", "none.py"),
    reward_case(
        "no function named", "my.py", "'my.py'", "names no function", "write it as my.py:f"
    ),
    reward_case(
        "no such function", "my.py:constat", "'constat'", "has no", "did you mean constant"
    ),
    reward_case("a number", "my.py:number", "got int: 3", "must be a function", AS_NAME),
    reward_case("a module", "rewards.arithmetic", "got module", "must be a function", AS_NAME),
    reward_case("a syntax error", "syntax.py:f", "'syntax.py:f'", "SyntaxError", "mend syntax.py"),
    reward_case("an exit", "exits.py:f", "'exits.py:f'", "SystemExit: 3", "mend exits.py"),
    reward_case(
        "a column too few", "my.py:needs", "'solution'", "columns are: answer", "needs the"
    ),
    reward_case(
        "a value too few", "my.py:short", "returned 1 values", "for 2 completions", "short"
    ),
]

OUTPUT = [
    Case(
        f"an output folder that is {name}",
        OutputError,
        f"{TRAIN} --output_dir {folder}",
        given,
        expected,
        to_do,
    )
    for name, folder, given, expected, to_do in [
        ("a file", "my.py", "'my.py'", "is a file", "name a directory"),
        ("below a file", "my.py/deep/run", "'my.py/deep/run'", "cannot be made", "is a file"),
        ("a run", "run", "'run'", "already holds a run", "choose another directory"),
        ("too long", "a" * 300, "output_dir 'aaa", "cannot be used", "too long"),
    ]
] + [
    pytest.param(
        Case(
            "an output folder that is read-only",
            OutputError,
            f"{TRAIN} --output_dir /proc/run",
            "'/proc/run'",
            "cannot be made",
            "is not writable",
        ),
        marks=pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc"),
        id="an output folder that is read-only",
    )
]

ANOTHER = "name another one, or true for the newest"
STATE, MANIFEST = "run/checkpoint-000001/trainer_state.pt", "run/checkpoint-000001/manifest.json"
RESUMED = [
    resume_case("flipped state", flip(STATE), "trainer_state.pt", "other content", ANOTHER),
    resume_case("state cut short", cut(STATE), "trainer_state.pt", "were written", ANOTHER),
    resume_case("no state", remove(STATE), "trainer_state.pt", "is missing", ANOTHER),
    resume_case(
        "cut weights", cut("run/checkpoint-000001/model.safetensors"), "bytes", "writ", ANOTHER
    ),
    resume_case(
        "flipped weights",
        flip("run/checkpoint-000001/model.safetensors"),
        "model.safetensors",
        "other content",
        ANOTHER,
    ),
    resume_case("no manifest", remove(MANIFEST), "checkpoint-000001", "never finished", ANOTHER),
    resume_case("a cut manifest", cut(MANIFEST), MANIFEST[-13:], "cannot be read", ANOTHER),
    resume_case("a list as manifest", write(MANIFEST, "[1]"), "manifest", "cannot be", ANOTHER),
    resume_case(
        "files that are numbers",
        settings(MANIFEST, files={"config.json": 3}),
        "manifest.json",
        "cannot be read",
        ANOTHER,
    ),
    resume_case("no step", settings(MANIFEST, step=None), "manifest", "lacks the step", ANOTHER),
    resume_case("another format", settings(MANIFEST, format=99), "99", "reads 1", ANOTHER),
    Case(
        "no such checkpoint",
        DataError,
        RESUME.replace("000001", "000009"),
        "'run/checkpoint-000009'",
        "there are: run/checkpoint-000001, run/checkpoint-000002",
        "name a folder checkpoint-NNNNNN",
    ),
    Case(
        "a run for a checkpoint",
        DataError,
        TRAIN + " --resume_from_checkpoint run",
        "'run'",
        "there are: run/checkpoint-000001",
        ANOTHER,
    ),
    Case(
        "a file for a checkpoint",
        DataError,
        TRAIN + " --resume_from_checkpoint my.py",
        "'my.py'",
        "there is no folder",
        "name a folder checkpoint-NNNNNN",
    ),
    Case(
        "other options",
        ConfigError,
        RESUME + " --learning_rate 0.5",
        "learning_rate: 1e-05 in the checkpoint, 0.5 now",
        "other options",
        "give the options of that run again, or pass --resume_anyway",
    ),
    Case(
        "another model",
        DataError,
        RESUME + " --resume_anyway --model_name_or_path wide",
        "'run/checkpoint-000001'",
        "size mismatch",
        "cannot be read",
    ),
    resume_case(
        "other data",
        write("good.jsonl", ROWS + ROWS),
        "2 rows then",
        "4 now",
        "give the same data",
    ),
    resume_case(
        "as many other rows",
        write("good.jsonl", ROWS.replace("3", "4")),
        "2 rows then",
        "some differ",
        "give the same data",
    ),
]

PAGE = "run/completions/step-000002.jsonl"
OTHER_VERBS = [
    Case("sample nothing", ConfigError, "sample", "at least one", "prompt", "--prompt TEXT"),
    Case(
        "sample above all", ConfigError, "sample --prompt a --top_p 2", "2.0", "at most 1", "top_p"
    ),
    Case(
        "sample half a character",
        DataError,
        ["sample", "--prompt", "\udcff"],
        "udcff",
        "valid Unicode",
        "mend the prompt",
    ),
    Case(
        "evaluate nothing",
        ConfigError,
        "eval --dataset_name good.jsonl --dataset_test_split train --eval_samples 0",
        "eval_samples=0",
        "nothing to evaluate",
        "give 1 or more",
    ),
    Case(
        "evaluate no split", DataError, "eval --dataset_name good.jsonl", "'test'", "train", "--d"
    ),
    Case(
        "train's options", ConfigError, "eval --max_steps 3", "--max_steps", "of training", "eval"
    ),
    Case("score without data", ConfigError, "score --reward a:b", "--data", "missing", "usage:"),
    Case("score a folder", DataError, f"{SCORE} gpt2", "'gpt2'", "cannot be read", "name a jsonl"),
    Case(
        "score into a folder",
        OutputError,
        f"{SCORE} scorable.jsonl --out gpt2",
        "'gpt2'",
        "is a directory",
        "name a file",
    ),
    score_case("score nothing", "", "'rows.jsonl'", "no rows", "write one JSON object per line"),
    score_case("score a broken line", SCORED + "{", "line 2", "not JSON", "write one JSON object"),
    score_case("score latin text", SCORED.encode() + b"\xe9\n", "line 2", "utf-8", "in UTF-8"),
    score_case("score no end of lists", "[" * 100000, "line 1", "recursion", "one JSON object"),
    score_case("score a list", "[1]\n", r"\[1\]", "a JSON object", "with prompt and completion"),
    score_case("score a number", SCORED.replace('"2"', "2", 1), "got 2", "must be text", "role"),
    score_case("score no ids", SCORED.replace("{", '{"completion_ids": "x", '), "x", "list", "ids"),
    Case("replay no run", DataError, "replay gpt2 --step 1", "'gpt2'", "no config", "name the out"),
    Case("replay no step", DataError, "replay run --step 9", "step 9", "steps 1 to 2", "holds"),
    Case("replay a word", ConfigError, "replay run --step x", "'x'", "int value", "--step"),
    replay_case(
        "a cut log", cut("run/metrics.jsonl", 0.9), "line 2", "not as a run", "drop a last"
    ),
    replay_case("a log of lists", write("run/metrics.jsonl", "[1]\n"), "line 1", "no JSON", "drop"),
    replay_case(
        "a log without steps", write("run/metrics.jsonl", "{}\n"), "line 1", "step", "drop"
    ),
    replay_case("no completions", remove(PAGE), "step-000002", "cannot be read", "name a run"),
    replay_case(
        "completions too few", cut(PAGE, 0), "holds 0", "a multiple", "replay another step"
    ),
    replay_case(
        "foreign ids", first_line(PAGE, completion_ids=[500]), "500", "below 100", "replay"
    ),
    replay_case(
        "a nameless prompt", first_line(PAGE, prompt_id="x"), "line 1", "prompt_id", "drop"
    ),
    replay_case(
        "a flipped checkpoint",
        flip("run/checkpoint-000001/model.safetensors"),
        "checkpoint-000001",
        "other content",
        "cannot be read",
    ),
    Case(
        "doctor no run", DataError, "doctor none", "'none'", "no directory", "name the output_dir"
    ),
    Case(
        "verify no choice", ConfigError, "verify --baseline non", "'non'", "one of", "did you mean"
    ),
]

CASES = [*CONFIGURATION, *DATA, *MODELS, *JUDGES, *OUTPUT, *RESUMED, *OTHER_VERBS]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything is right: data, models, rewards and a run."""
    from peft import LoraConfig, get_peft_model

    logging.set_verbosity_error()
    folder = tmp_path_factory.mktemp("original")
    small = {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 64, "eos_token_id": 2}
    torch.manual_seed(0)
    for name, sizes in {"gpt2": {}, "narrow": {"vocab_size": 10}, "wide": {"n_embd": 16}}.items():
        config = GPT2Config(**{"vocab_size": 100, "bos_token_id": 1, **small, **sizes})
        GPT2LMHeadModel(config).save_pretrained(folder / name)
    model = GPT2LMHeadModel.from_pretrained(folder / "gpt2")
    lora = get_peft_model(model, LoraConfig("CAUSAL_LM", r=2, target_modules=["c_attn"]))
    lora.save_pretrained(folder / "lora")
    settings("lora/adapter_config.json", base_model_name_or_path="gpt2")(folder)
    for name in ("gpt2", "narrow", "wide", "lora"):
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(model_path("builtin:tiny-arithmetic") / file, folder / name)
    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    bert = BertForMaskedLM(BertConfig(vocab_size=100, intermediate_size=8, **tiny))
    bert.save_pretrained(folder / "bert")
    shutil.move(folder / "bert" / "config.json", folder / "bert.json")
    shutil.rmtree(folder / "bert")
    files = {"good.jsonl": ROWS, "chat.jsonl": CHAT, "scorable.jsonl": SCORED, "my.py": REWARDS}
    files |= {"syntax.py": "def f(:\n", "exits.py": "import sys\nsys.exit(3)\n"}
    for name, content in files.items():
        write(name, content)(folder)
    rows = [json.loads(line) for line in ROWS.splitlines()]
    datasets.Dataset.from_list(rows).to_parquet(folder / "good.parquet")
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert answer(TRAIN.replace("--output_dir out", "--output_dir run")) == 0
    finally:
        os.chdir(before)
    shutil.rmtree(folder / "run" / "model")
    return folder


def answer(words: str | list[str]) -> int:
    """Run a command line in this process."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            return main(words.split(" ") if isinstance(words, str) else words)
    finally:
        signal.signal(signal.SIGTERM, handler)


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    found = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {path: path.read_bytes() if path.is_file() else None for path in found}


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the original to spoil."""
    work = tmp_path / "work"
    shutil.copytree(original, work)
    monkeypatch.chdir(work)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return work


@pytest.fixture
def raised(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """The errors that the command line turns into words."""
    from rl4lm import cli

    seen: list[BaseException] = []

    def noting(action: Callable[[], object]) -> int:
        def noted() -> object:
            try:
                return action()
            except BaseException as error:
                seen.append(error)
                raise

        return run(noted)

    monkeypatch.setattr(cli, "run", noting)
    return seen


@pytest.mark.parametrize(
    "case", [c if not isinstance(c, Case) else pytest.param(c, id=c.name) for c in CASES]
)
def test_bad_input_is_answered_in_words_and_changes_nothing(case, folder, raised, capsys):
    if case.change is not None:
        case.change(folder)
    before = snapshot(folder)
    code = answer(case.words)
    said = capsys.readouterr().err
    assert code == 2, said
    assert said.startswith("rl4lm: error: "), said
    assert said.count("rl4lm: error: ") == 1
    assert "Traceback" not in said
    for pattern in (case.given, case.expected, case.to_do):
        assert re.search(pattern, said, re.DOTALL), (pattern, said)
    assert [isinstance(error, case.error) for error in raised] == [True]
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    "words",
    [
        TRAIN,
        TRAIN + " --config my.yaml",
        TRAIN + " --dataset_name good.parquet",
        TRAIN + " --model_name_or_path lora",
        TRAIN + " --reward_funcs my.py:constant",
        RESUME,
        f"{SCORE} scorable.jsonl",
        "replay run --step 2",
        "sample --prompt 1+1= --model_name_or_path gpt2 --max_completion_length 2",
        "eval --dataset_name good.jsonl --dataset_test_split train --max_completion_length 2",
        "doctor run",
    ],
)
def test_the_same_without_the_flaw_passes(words, folder, capsys):
    write("my.yaml", "seed: 1\n")(folder)
    assert answer(words) == 0, capsys.readouterr().err


def test_chat_messages_pass_where_the_tokenizer_has_a_template(folder, capsys):
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    settings("gpt2/tokenizer_config.json", chat_template=template)(folder)
    assert answer(f"{TRAIN} --dataset_name chat.jsonl") == 0, capsys.readouterr().err


def test_a_model_without_an_end_token_trains_and_says_what_that_means(folder, capsys):
    config = folder / "gpt2" / "config.json"  # a missing entry would mean GPT-2's own end token
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": None}))
    settings("gpt2/generation_config.json", eos_token_id=None)(folder)
    settings("gpt2/tokenizer_config.json", eos_token=None)(folder)
    assert answer(TRAIN) == 0
    assert "every completion runs to max_completion_length" in capsys.readouterr().out
    shutil.rmtree(folder / "out")
    assert answer(f"{TRAIN} --stop_token_ids 2") == 0
    assert "every completion runs to max_completion_length" not in capsys.readouterr().out


def test_the_table_is_long_and_no_case_is_there_twice():
    names = [case.name if isinstance(case, Case) else case.id for case in CASES]
    assert len(set(names)) >= 120
    assert sorted({case.error.__name__ for case in CASES if isinstance(case, Case)}) == [
        "ConfigError",
        "DataError",
        "ModelError",
        "OutputError",
        "RewardError",
    ]


def test_prompts_that_the_processes_do_not_divide_are_refused_with_the_numbers_that_do():
    world = World()
    world.size = 2
    with pytest.raises(ConfigError, match=r"=3 cannot be dealt to 2 processes; make it .* 2 or 4"):
        world.check_divides(3, "prompts_per_step")
    world.check_divides(4, "prompts_per_step")
