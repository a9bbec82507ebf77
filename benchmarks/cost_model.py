"""What limits 8, 64 and 1024 GPUs, by a model; and the model beside two processes on a CPU.

    python benchmarks/cost_model.py [--gpus 8 64 1024] [--prompts_per_gpu 16] [--prompts 1024]

`costs.py` has the formulas. **No figure of a GPU here was measured**: the rates are the vendor's
nominal ones of an H100 SXM in nodes of eight with a 400 Gbit/s card each, times the shares that are
assumed to be reached (below). Models are Qwen2.5's of 0.5B, 1.5B and 7B. A step has 8 completions a
prompt, prompts of 256 tokens, completions of 500 tokens in the mean and 2,048 at most.

Printed: a table where every GPU has as many prompts however many there are, one where the step
stays as it is, and what an engine for sampling can gain beside the cost of sending it the weights.
Then, from the measured seconds of one process in `results/limits-TSV-1.json`, what two processes
on two cores should do, beside what they did where `results/processes-S.json` is there. Ten seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clusters import HALF, MASTER, MODES, Device, Work, dealt_lengths, weights
from costs import Cost, least_sampling_seconds, sampling_seconds, step_cost, sum_seconds
from flops import decode_bytes
from measuring import RESULTS
from shapes import SHAPES, Shape, as_text, prompt_ids

from rl4lm.processes.dealing import deal

SEVEN = Shape("7B", 3584, 28, 28, 4, 18_944, 152_064, 2048, tied=False, architecture="qwen2")
MODELS = {"0.5B": SHAPES["G"], "1.5B": SHAPES["L"], "7B": SEVEN}
# Nominal rate times the share that is assumed to be reached.
H100 = Device(
    flops=989e12 * 0.4,  # dense bfloat16
    memory_rate=3.35e12 * 0.6,
    memory=80e9,
    link=450e9 * 0.7,
    node_link=8 * 50e9 * 0.7,
    per_node=8,
    hop=5e-6,
    token_s=1e-3,  # a replayed graph, the draw of a token, and its share of asking what has ended
)
STEP = Work(prompts=0, samples=8, prompt_tokens=256, mean=500, longest=2048, spread=0.7)
GLOO = 1e9  # bytes/s through the loopback device; an assumption


def with_prompts(prompts: int) -> Work:
    """The step with so many prompts."""
    return Work(**{**vars(STEP), "prompts": prompts})


def table(gpus: Sequence[int], prompts: Mapping[int, int]) -> str:
    """A row for each model, mode and number of GPUs."""
    lines = [
        "| model | mode | GPUs | completions each | step s | sampling | gradient | waiting | "
        "telling | update | efficiency | GB each | limit |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, shape in MODELS.items():
        for mode in MODES:
            first = None
            for count in gpus:
                work = with_prompts(prompts[count])
                cost = step_cost(shape, mode, work, H100, count)
                rate = work.completions / cost.seconds / count
                first = first or rate
                each = work.completions // count
                lines.append(_row(name, mode.name, count, each, cost, rate / first))
    return "\n".join(lines)


def _row(model: str, mode: str, gpus: int, each: int, cost: Cost, efficiency: float) -> str:
    terms = (cost.sampling, cost.gradient, cost.waiting, cost.telling, cost.update)
    fits = cost.memory <= H100.memory
    cells = [
        model,
        mode,
        f"{gpus:,}",
        f"{each:,}",
        f"{cost.seconds:.3g}",
        *(f"{100 * term / cost.seconds:.1f} %" for term in terms),
        f"{efficiency:.2f}",
        f"{cost.memory / 1e9:.0f}",
        cost.limit if fits else f"memory; then {cost.limit}",
    ]
    return "| " + " | ".join(cells) + " |"


def engines(gpus: int, prompts: int) -> str:
    """What an engine could gain over our sampling, and what sending it the weights costs."""
    lines = [
        "| model | sampling s | at best s | times as fast at best | sending GB | sending s | "
        "worth it from, times as fast | of a step saved at best |",
        "|---|---|---|---|---|---|---|---|",
    ]
    work, mode = with_prompts(prompts), MODES[0]
    rows = dealt_lengths(work, gpus).flatten(1)
    for name, shape in MODELS.items():
        cost = step_cost(shape, mode, work, H100, gpus)
        ours = float(sampling_seconds(shape, mode, work, H100, rows).max())
        least = float(least_sampling_seconds(shape, mode, work, H100, rows).max())
        size = HALF * weights(shape)
        send = size / H100.rate(gpus)
        cells = [
            name,
            f"{ours:.3g}",
            f"{least:.3g}",
            f"{ours / least:.1f}",
            f"{size / 1e9:.1f}",
            f"{send:.3f}",
            f"{ours / (ours - send):.3f}",
            f"{100 * (ours - least - send) / cost.seconds:.0f} %",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def two_on_a_cpu(limits: Mapping[str, Any], size: str) -> dict[str, float]:
    """What two processes should do, from the measured seconds of one.

    A process reads all weights for every token, however few rows it has; the rest of sampling and
    the gradient follow its share of the tokens. Both cores are taken to read memory as one does
    alone.
    """
    shape, found = SHAPES[size], limits["results"][size]["median"]
    prompts = prompt_ids(shape)
    alone = {half: found[half]["seconds"] for half in ("sampling", "training", "step")}
    read = decode_bytes(shape, [], shape.new_tokens, MASTER) / limits["bandwidth"]
    share = _largest_share(shape, prompts)
    sampling = read + (alone["sampling"] - read) * share
    gradient = alone["training"] * share
    processors = Device(1, limits["bandwidth"], 0, GLOO, GLOO, 2, 50e-6, 0)
    size_of_all = MASTER * weights(shape)
    copies = 4 * size_of_all / limits["bandwidth"]  # into buckets and out of them again
    telling = sum_seconds(size_of_all, processors, 2) + copies
    rest = alone["step"] - alone["sampling"] - alone["training"]
    step = sampling + gradient + telling + rest
    follows = alone["sampling"] - read + alone["training"]  # the share of the tokens
    return {
        "ratio": alone["step"] / step,
        "waiting": follows * (share - 0.5) / step,
        "telling": telling / step,
        "sampling": (read + (alone["sampling"] - read) / 2) / step,
        "gradient": alone["training"] / 2 / step,
    }


def _largest_share(shape: Shape, prompts: Sequence[Sequence[int]]) -> float:
    """Of the tokens of a step, those of the process that has more, dealt as the trainer deals."""
    drawn = shape.samples * shape.new_tokens
    hands = deal([len(as_text(ids)) / 4 + drawn for ids in prompts], 2)
    tokens = [sum(len(prompts[place]) + drawn for place in hand) for hand in hands]
    return max(tokens) / sum(tokens)


def beside(predicted: Mapping[str, float], measured: Mapping[str, Any] | None) -> str:
    """The model's figures of two replicated processes beside those that were measured."""
    lines = ["| two replicated processes, size S | model | measured |", "|---|---|---|"]
    for name, value in predicted.items():
        found = "not yet"
        if measured is not None:
            result = measured["results"]["two, replicated"]
            seen = result["ratio"]["median"] if name == "ratio" else result["shares"][name]
            found = _figure(name, seen)
        lines.append(f"| {name} | {_figure(name, value)} | {found} |")
    return "\n".join(lines)


def _figure(name: str, value: float) -> str:
    return f"{value:.2f}" if name == "ratio" else f"{100 * value:.1f} %"


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 1024])
    parser.add_argument("--prompts_per_gpu", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=1024, help="of a step that stays as it is")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    gpus, each, all_of_it = arguments.gpus, arguments.prompts_per_gpu, arguments.prompts
    if any(all_of_it % count for count in gpus):
        parser.error(f"--prompts {all_of_it} must be a multiple of each of --gpus")
    mean = float(dealt_lengths(with_prompts(all_of_it), 1).mean())
    print(f"Nothing here was measured on a GPU. Mean length {mean:.0f} tokens.\n")
    print(f"### {each} prompts a GPU\n\n{table(gpus, {n: each * n for n in gpus})}\n")
    print(f"### {all_of_it} prompts in all\n\n{table(gpus, dict.fromkeys(gpus, all_of_it))}\n")
    first = gpus[0]
    print(f"### An engine for sampling, {first} GPUs\n\n{engines(first, each * first)}\n")
    limits = json.loads((arguments.results / "limits-TSV-1.json").read_text(encoding="utf-8"))
    file = arguments.results / "processes-S.json"
    measured = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    print(f"### Two processes on a CPU\n\n{beside(two_on_a_cpu(limits, 'S'), measured)}")


if __name__ == "__main__":
    main()
