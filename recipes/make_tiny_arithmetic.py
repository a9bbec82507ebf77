"""Make `builtin:tiny-arithmetic`, the checkpoint that ships with the package.

    python recipes/make_tiny_arithmetic.py [--output_dir DIR] [--stop_at SHARE] [--seed S]

A Llama-architecture model with 0.8 million parameters and a character-level tokenizer, trained by
supervised learning on the train split of `builtin:arithmetic` and stopped early, so that it is
weak at arithmetic and sound in form: reinforcement learning has something left to teach.

One CPU core, no download, about 3 minutes. Expect about 50 % greedy exact match on the first 500
held-out problems, and more than 99 % of the sampled completions well formed and ended. The same
seed on the same machine gives the same weights; the figures go into the README that it writes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rl4lm.builtin.arithmetic import arithmetic_rows

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
BATCH_SIZE = 128
LEARNING_RATE = 1e-3
# The harder family is shown three times as often, so that it is half learned too at the stop.
SHARES = {"addition": 0.2, "subtraction": 0.2, "three_digit": 0.6}
WARMUP_STEPS = 50
MAX_STEPS = 3000
PROBE_STEPS = 5  # between looks at the accuracy
FIRST_PROBE = 400
PROBED = 300
EVALUATED = 500
SAMPLES = 4
MAX_NEW_TOKENS = 8
IGNORED = -100  # a label that the cross-entropy leaves out

DEFAULT_OUTPUT = Path(__file__).parents[1] / "rl4lm" / "builtin" / "tiny-arithmetic"

Row = dict[str, Any]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, printable ASCII and newline; nothing is added around a text."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()  # without it the characters come back with spaces between
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        padding_side="left",
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A small Llama with random weights from the current seed of torch."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def from_nothing(seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A model that has learned nothing, and its tokenizer."""
    torch.set_num_threads(1)  # more threads make a model this small slower, and sums differ
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    return build_model(tokenizer), tokenizer


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a checkpoint; the model is evaluated from here on."""
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def supervised_batches(batches: int, seed: int) -> Iterator[list[Row]]:
    """Batches of rows of the train split only, each row's family drawn with its share."""
    families: dict[str, list[Row]] = {family: [] for family in SHARES}
    for row in arithmetic_rows("train"):
        families[row["family"]].append(row)
    rng = np.random.Generator(np.random.Philox(seed))
    for _ in range(batches):
        drawn = rng.choice(list(SHARES), size=BATCH_SIZE, p=list(SHARES.values()))
        yield [families[name][rng.integers(len(families[name]))] for name in drawn]


def encode_batch(tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> tuple[Tensor, Tensor]:
    """`prompt + answer + <eos>` of every row, padded on the right, and what is to be learned.

    Returns:
        ids [B, L], and labels [B, L] which are the ids on the answer and its <eos>, else `IGNORED`.
    """
    length = max(len(row["prompt"]) + len(row["answer"]) + 1 for row in rows)
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)  # int64 [B, L]
    labels = torch.full_like(ids, IGNORED)  # int64 [B, L]
    for i, row in enumerate(rows):
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [*tokenizer(row["answer"])["input_ids"], tokenizer.eos_token_id]
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : end] = torch.tensor(answer)
    return ids, labels


def learn(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    batches: Iterable[list[Row]],
    learning_rate: float,
    rate: Callable[[int], float],
) -> Iterator[float]:
    """Learn `answer` after `prompt`, batch by batch; the loss of each, from before its step.

    `rate` is what the learning rate of AdamW is multiplied by in a step, counted from 0.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for rows in batches:
        ids, labels = encode_batch(tokenizer, rows)
        # Padding is on the right, where a causal model cannot see it: no attention mask is needed.
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, stop_at: float, seed: int
) -> int:
    """Supervised learning until a share `stop_at` of some train problems is right, greedily.

    After a plateau the accuracy rises within a hundred steps, by a tenth in ten of them at times,
    and rounding decides when: a stop by accuracy, looked at often, gives the same strength on
    another machine, a stop by step number does not. The rate is constant after a short warm-up, so
    to stop early is to stop, nothing more.

    Returns:
        The number of steps taken.
    """
    probe = arithmetic_rows("train", PROBED)
    started = time.perf_counter()
    batches = supervised_batches(MAX_STEPS, seed)
    losses = learn(model, tokenizer, batches, LEARNING_RATE, warmup)
    for step, loss in enumerate(losses, start=1):
        if step % PROBE_STEPS == 0 and step >= FIRST_PROBE:
            right = accuracy(probe, complete(model, tokenizer, probe, sample=False))
            seconds = time.perf_counter() - started
            print(f"step {step:5d}  loss {loss:.3f}  right {right:.3f}  {seconds:.0f} s")
            if right >= stop_at:
                return step
    raise RuntimeError(f"not {stop_at:.0%} right after {MAX_STEPS} steps; try another --seed")


def warmup(step: int) -> float:
    """The share of the learning rate in a step, counted from 0: from a fiftieth to the whole."""
    return 0.02 + 0.98 * min(step / WARMUP_STEPS, 1.0)


def accuracy(rows: list[Row], completions: list[str]) -> float:
    """The share of completions that are the answer and its end, exactly."""
    right = [text == row["answer"] + "<eos>" for row, text in zip(rows, completions, strict=True)]
    return sum(right) / len(right)


@torch.no_grad()
def complete(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row], *, sample: bool
) -> list[str]:
    """One completion per row, up to and with `<eos>`; without it where none came in time."""
    # generate() would else keep the 50 likeliest tokens only.
    how = {"do_sample": True, "top_k": 0, "temperature": 1.0} if sample else {"do_sample": False}
    completions = [""] * len(rows)
    for length in {len(row["prompt"]) for row in rows}:  # equal lengths need no padding
        indices = [i for i, row in enumerate(rows) if len(row["prompt"]) == length]
        prompts = tokenizer([rows[i]["prompt"] for i in indices], return_tensors="pt")
        ids = model.generate(**prompts, max_new_tokens=MAX_NEW_TOKENS, **how)  # int64 [., L]
        for i, text in zip(indices, tokenizer.batch_decode(ids[:, length:]), strict=True):
            completions[i] = text.replace("<pad>", "")
    return completions


def is_well_formed(completion: str) -> bool:
    """Digits, then the end, and nothing after it."""
    body, end, rest = completion.partition("<eos>")
    return bool(end) and not rest and body.isascii() and body.isdigit()


def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row]
) -> dict[str, np.ndarray]:
    """Shares greedily right, right when sampled, and well formed when sampled: float [n, 3] each.

    The keys are the groups of rows: all of them, each family, and its parts by carry.
    """
    greedy = complete(model, tokenizer, rows, sample=False)
    sampled = [complete(model, tokenizer, rows, sample=True) for _ in range(SAMPLES)]
    groups: dict[str, list[list[float]]] = {"all": []}
    for row, text, *samples in zip(rows, greedy, *sampled, strict=True):
        line = [
            float(text == row["answer"] + "<eos>"),
            sum(sample == row["answer"] + "<eos>" for sample in samples) / SAMPLES,
            sum(map(is_well_formed, samples)) / SAMPLES,
        ]
        kind = "with carry or borrow" if row["carry"] else "without"
        for name in ("all", row["family"], f"{row['family']}, {kind}"):
            groups.setdefault(name, []).append(line)
    return {name: np.array(groups[name]) for name in sorted(groups)}


def table_line(name: str, lines: np.ndarray) -> str:
    """One line of a card's table: lines [n, k] -> their number and k means."""
    shares = " | ".join(f"{100 * share:.1f} %" for share in lines.mean(axis=0))
    return f"| {name} | {len(lines)} | {shares} |"


def table(groups: Mapping[str, np.ndarray]) -> str:
    """The card's table, a line for each group; shown on the screen too."""
    lines = "\n".join(table_line(name, lines) for name, lines in groups.items())
    print(lines)
    return lines


def write_card(name: str, folder: Path, facts: Mapping[str, Any]) -> None:
    """The page that goes with a checkpoint: that of recipes/data, filled in."""
    page = Path(__file__).parent / "data" / f"{name}_card.md"
    text = page.read_text(encoding="utf-8").format(**facts)
    (folder / "README.md").write_text(text, encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--stop_at", type=float, default=0.5, help="accuracy to stop at, of 1")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Train, measure, write the checkpoint and its card."""
    arguments = parse_arguments()
    started = time.perf_counter()
    model, tokenizer = from_nothing(arguments.seed)
    steps = train(model, tokenizer, arguments.stop_at, arguments.seed)
    seconds = time.perf_counter() - started

    save(model, tokenizer, arguments.output_dir)
    groups = measure(model, tokenizer, arithmetic_rows("test", EVALUATED))
    groups["all, train"] = measure(model, tokenizer, arithmetic_rows("train", EVALUATED))["all"]
    facts = {**vars(arguments), "table": table(groups), "steps": steps, "seconds": seconds}
    facts |= {"parameters": model.num_parameters(), "rows": len(arithmetic_rows("train"))}
    facts |= {"probe_steps": PROBE_STEPS, "probed": PROBED, "batch_size": BATCH_SIZE}
    facts |= {"learning_rate": LEARNING_RATE, "evaluated": EVALUATED, "samples": SAMPLES}
    facts |= {"max_new_tokens": MAX_NEW_TOKENS}
    write_card("tiny_arithmetic", arguments.output_dir, facts)


if __name__ == "__main__":
    main()
