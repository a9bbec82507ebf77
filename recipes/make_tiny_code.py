"""Make `builtin:tiny-code`, the small model of programs that ships with the package.

    python recipes/make_tiny_code.py [--output_dir DIR] [--seed S]

Architecture and tokenizer are those of `builtin:tiny-arithmetic`. It learns by imitation from
functions of the train split of `builtin:code` whose bodies are right, mistaken, unfinished or end
the whole program, in the shares that `SHARES` states: as code found anywhere is. So it writes
Python that mostly runs and often does something else than asked, and reinforcement learning has
something to teach.

One CPU core, no download, some 12 minutes on a busy machine. Expect about a third of the held-out
tasks solved, and 97 % of the samples to be Python. The same seed on the same machine gives the same
weights; the figures go into the README that it writes. Linux, as the sandbox that judges it is.
"""

from __future__ import annotations

import argparse
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from make_tiny_arithmetic import from_nothing, learn, save, table, write_card
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rewards.programs import unit_tests
from rl4lm.builtin.code import CodeTask, code_tasks

BATCH_SIZE = 64
LEARNING_RATE = 2e-3
WARMUP_STEPS = 50
STEPS = 1200
PRINT_STEPS = 100
EVALUATED = 500
SAMPLES = 4
MAX_NEW_TOKENS = 48

# What a body is, and how often. Half of the mistakes are the first that is listed for the kind.
SHARES = {"right": 0.42, "wrong": 0.52, "unfinished": 0.03, "ends the program": 0.03}
UNFINISHED = ("pass", "raise NotImplementedError", "return None", "...")
ENDS_THE_PROGRAM = ("raise SystemExit", "exit()", "raise SystemExit(0)", "quit()")
ENDING = re.compile(r"SystemExit|\bexit\(|\bquit\(")

HERE = Path(__file__).parent
DEFAULT_OUTPUT = HERE.parent / "rl4lm" / "builtin" / "tiny-code"

Row = dict[str, Any]
Bodies = dict[str, dict[str, list[str]]]


def read_bodies() -> Bodies:
    """Kind -> "right" and "wrong" -> bodies, as templates."""
    text = (HERE / "data" / "code_bodies.yaml").read_text(encoding="utf-8")
    bodies: Bodies = yaml.safe_load(text)
    return bodies


def body(task: CodeTask, template: str) -> str:
    """The body of a function: the template's statements on lines of their own, indented."""
    return "".join(f"    {line}\n" for line in task.filled(template).split(";"))


def supervised_batches(batches: int, seed: int) -> Iterator[list[Row]]:
    """Batches of tasks of the train split only, each with a body drawn as `SHARES` says."""
    tasks, bodies = code_tasks("train"), read_bodies()
    rng = np.random.Generator(np.random.Philox(seed))
    for _ in range(batches):
        drawn = [tasks[i] for i in rng.integers(len(tasks), size=BATCH_SIZE)]
        sorts = rng.choice(list(SHARES), size=BATCH_SIZE, p=list(SHARES.values()))
        yield [
            {"prompt": task.prompt, "answer": body(task, _template(sort, bodies[task.kind], rng))}
            for task, sort in zip(drawn, sorts, strict=True)
        ]


def _template(sort: str, known: dict[str, list[str]], rng: np.random.Generator) -> str:
    choices = {"unfinished": UNFINISHED, "ends the program": ENDS_THE_PROGRAM, **known}[sort]
    if sort == "wrong" and rng.random() < 0.5:
        return choices[0]
    return choices[rng.integers(len(choices))]


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Supervised learning on bodies and their end token; the rate rises, then falls to 0."""
    started, batches = time.perf_counter(), supervised_batches(STEPS, seed)
    losses = learn(model, tokenizer, batches, LEARNING_RATE, rise_and_fall)
    for step, loss in enumerate(losses, start=1):
        if step % PRINT_STEPS == 0:
            seconds = time.perf_counter() - started
            print(f"step {step:5d}  loss {loss:.3f}  {seconds:.0f} s", flush=True)


def rise_and_fall(step: int) -> float:
    """The share of the learning rate in a step, counted from 0."""
    return min((step + 1) / WARMUP_STEPS, 1 - step / STEPS)


@torch.no_grad()
def complete(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    sample: bool,
) -> list[str]:
    """One completion per prompt, up to and with `<eos>`; without it where none came in time."""
    # generate() would else keep the 50 likeliest tokens only.
    how = {"do_sample": True, "top_k": 0, "temperature": 1.0} if sample else {"do_sample": False}
    encoded = tokenizer(list(prompts), return_tensors="pt", padding=True)
    length = encoded["input_ids"].shape[1]
    ids = model.generate(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        max_new_tokens=MAX_NEW_TOKENS,
        **how,
    )  # int64 [., L]
    return [text.replace("<pad>", "") for text in tokenizer.batch_decode(ids[:, length:])]


def is_python(prompt: str, completion: str) -> bool:
    """Whether a completion came to its end and is the body of a function; nothing is run."""
    text, end, _ = completion.partition("<eos>")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            compile(prompt + text, "completion", "exec")
    except SyntaxError:
        return False
    return bool(end)


def solved(tasks: Sequence[CodeTask], completions: Sequence[str]) -> list[float]:
    """1 for each completion that passes the tests of its task, else 0."""
    scores = unit_tests(
        prompts=[task.prompt for task in tasks],
        completions=[text.removesuffix("<eos>") for text in completions],
        tests=[task.tests() for task in tasks],
    )
    return [float(score or 0.0) for score in scores]


def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tasks: Sequence[CodeTask]
) -> dict[str, np.ndarray]:
    """Greedily solved; and of samples: solved, Python, ends the program: float [n, 4] a group.

    The groups are all tasks, and each family.
    """
    prompts = [task.prompt for task in tasks]
    greedy = solved(tasks, complete(model, tokenizer, prompts, sample=False))
    columns: list[list[list[float]]] = []  # [SAMPLES][3][n]
    for _ in range(SAMPLES):
        texts = complete(model, tokenizer, prompts, sample=True)
        parsed = [float(is_python(*pair)) for pair in zip(prompts, texts, strict=True)]
        ending = [float(ENDING.search(text) is not None) for text in texts]
        columns.append([solved(tasks, texts), parsed, ending])
    lines = np.column_stack([greedy, np.mean(columns, axis=0).T])
    families = np.array([task.family for task in tasks])
    groups = {family: lines[families == family] for family in sorted(set(families))}
    return {**groups, "all": lines}


def listed(bodies: Sequence[str]) -> str:
    """Bodies for the card, as code."""
    return ", ".join(f"`{text}`" for text in bodies)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Train, measure, write the checkpoint and its card."""
    arguments = parse_arguments()
    started = time.perf_counter()
    model, tokenizer = from_nothing(arguments.seed)
    train(model, tokenizer, arguments.seed)
    seconds = time.perf_counter() - started

    save(model, tokenizer, arguments.output_dir)
    groups = measure(model, tokenizer, code_tasks("test", EVALUATED))
    groups["all, train"] = measure(model, tokenizer, code_tasks("train", EVALUATED))["all"]
    facts = {"table": table(groups), "seconds": seconds, "parameters": model.num_parameters()}
    facts |= {"rows": len(code_tasks("train")), "kinds": len(read_bodies()), "seed": arguments.seed}
    facts |= {"unfinished_bodies": listed(UNFINISHED), "ending_bodies": listed(ENDS_THE_PROGRAM)}
    facts |= {"steps": STEPS, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE}
    facts |= {"evaluated": EVALUATED, "samples": SAMPLES, "most_characters": MAX_NEW_TOKENS - 1}
    write_card("tiny_code", arguments.output_dir, {**facts, **SHARES})


if __name__ == "__main__":
    main()
