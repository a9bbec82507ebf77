"""One optimizer step of rl4lm, TRL and a hand-written loop, in turns, on the same work.

    taskset -c 0 python benchmarks/vs_trl.py --size T [--variant fixed] [--threads 1] [--rounds 5]
        [--side_rounds 2] [--contenders ours trl_grpo …] [--micro_trl N]
        [--tokens_per_micro_batch N] [--out FILE]

Each contender lives in a process of its own, builds the same model (see `shapes.py`) and makes one
step whenever it is its turn, so that whatever else the machine does hits all alike. The first step
of each is not counted. `ours` and `trl_grpo` have --rounds turns, the others --side_rounds; every
other round goes in reverse order. All use AdamW (at 1e-7, so that lengths stay as they are), norm
clipped to 1, one gradient step per sampling, no KL, temperature 1, the whole vocabulary, and a
reward that costs nothing. TRL has its fast settings (fp32 on a CPU, no activation checkpointing)
and the fastest micro-batch of those tried; `trl_grpo_frugal` and `ours_frugal` show the memory of
both at smaller ones.

Printed and written: per contender the wall and processor seconds (median, range) and their parts,
peak memory, the ratio of each to ours per round with its median, range and bootstrap interval. On
CUDA also how much of the memory bandwidth sampling reaches, and of the matrix roof training.
Lengths differ by chance where they vary; the table has their means, and nothing is corrected.
Minutes on one core: T one, S 25, V 35. Needs `pip install 'rl4lm[bench]'` for TRL.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contenders import CLOCKS, MICRO, MICRO_HAND_ROLLED, NAMES, TOKENS, Job
from measuring import RESULTS, bootstrap_interval, machine, machine_line, summary, write_results
from racing import Contender
from shapes import VARIANTS, prompt_ids, shape_of

MAIN = ("ours", "trl_grpo")
SIZES = tuple(MICRO)


def jobs(arguments: argparse.Namespace, device: str) -> list[Job]:
    """What each contender is asked to be."""
    fast, frugal = MICRO[arguments.size]
    quick, lean = TOKENS[arguments.size]
    loop = arguments.micro_hand_rolled or MICRO_HAND_ROLLED[arguments.size]
    micro = {"hand_rolled": loop, "trl_grpo_frugal": frugal}
    return [
        Job(
            contender=name,
            shape=shape_of(arguments.size, arguments.variant),
            variant=arguments.variant,
            threads=arguments.threads,
            micro=micro.get(name, arguments.micro_trl or fast),
            tokens_per_micro_batch=lean
            if name == "ours_frugal"
            else arguments.tokens_per_micro_batch or quick,
            device=device,
            max_steps=arguments.rounds + 1,
        )
        for name in arguments.contenders
    ]


def race(contenders: Sequence[Contender], rounds: int, side_rounds: int) -> None:
    """Let all make steps in turns; the first is not counted."""
    for contender in contenders:
        contender.step()
    for k in range(rounds):
        turns = [c for c in contenders if c.job.contender in MAIN or k < side_rounds]
        for contender in turns if k % 2 == 0 else reversed(turns):
            taken = contender.step()
            contender.steps.append(taken)
            print(
                f"round {k + 1}/{rounds}  {contender.job.contender:16}"
                f"{taken['wall_s']:9.3f} s wall {taken['cpu_s']:9.3f} s processor",
                flush=True,
            )


def ratios(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How many times the seconds of ours each other one took, round by round; memory likewise."""
    ours = results["ours"]
    found: dict[str, dict[str, Any]] = {}
    for name, other in results.items():
        if name == "ours":
            continue
        found[name] = {"peak_memory": _peak(other) / _peak(ours)}
        pairs = list(zip(ours["steps"], other["steps"], strict=False))
        for clock in CLOCKS:
            found[name][clock] = _ratio([b[clock] / a[clock] for a, b in pairs])
            parts = f"phases_{clock}"
            for phase in ("sampling", "gradient"):
                per_round = [b[parts][phase] / a[parts][phase] for a, b in pairs]
                found[name][f"{phase}_{clock}"] = _ratio(per_round)
    return found


def _ratio(per_round: Sequence[float]) -> dict[str, Any]:
    interval = bootstrap_interval(per_round)
    return {**summary(per_round), "bootstrap_95": interval, "per_round": per_round}


def _peak(result: Mapping[str, Any]) -> float:
    return result["memory"]["peak_bytes"]


def device_shares(arguments: argparse.Namespace, results: Mapping[str, Any]) -> dict[str, Any]:
    """On CUDA: the share of bandwidth that sampling reaches, and of the roof that training does."""
    from flops import decode_bytes, step_work
    from rates import bandwidth, product_rate

    shape = shape_of(arguments.size, arguments.variant)
    lengths = [len(ids) for ids in prompt_ids(shape)]
    roof = product_rate(8192, 8192, 8192, device="cuda", half=True)
    speed = bandwidth("cuda")
    found: dict[str, Any] = {"roof_flops": roof, "bandwidth_bytes_per_s": speed}
    for name, result in results.items():
        mean, seconds = result["mean_length"], result["phases_wall_s"]
        training = step_work(shape, lengths, mean, arguments.variant == "lora").training.flops
        found[name] = {
            "bandwidth_share_of_sampling": decode_bytes(shape, lengths, mean, 2)
            / (seconds["sampling"] * speed),
            "roof_share_of_training": training / (seconds["gradient"] * roof),
        }
    return found


def render(payload: Mapping[str, Any]) -> str:
    """A Markdown section of what was measured."""
    asked, clock = payload["settings"], payload["ratio_clock"]
    threads = f"{asked['threads']} thread{'s' if asked['threads'] != 1 else ''}"
    lines = [
        f"### One step, size {asked['size']}, {asked['variant']}, {threads}",
        "",
        machine_line(payload["machine"]) + ".",
        "",
        "| program | wall s: median (range) | processor s: median (range) | sampling | scoring | "
        "gradient | rest | MB: imports, built, peak | mean length | time / ours (range; turns) | "
        "memory / ours |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_row(name, payload) for name in payload["results"]),
        "",
        f"Parts and ratios are of {CLOCKS[clock]} seconds, ratios round by round.",
    ]
    if asked["variant"] == "single" and "trl_grpo" in payload["results"]:
        lines.append("One sample has no advantage in GRPO; its arithmetic is done all the same.")
    if payload.get("device_shares"):
        lines += ["", *_shares(payload["device_shares"])]
    return "\n".join(lines) + "\n"


def _row(name: str, payload: Mapping[str, Any]) -> str:
    clock, result = payload["ratio_clock"], payload["results"][name]
    ratio = payload["ratios"].get(name)
    clocks = [result[each] for each in CLOCKS]
    spent = [f"{s['median']:.3g} ({s['low']:.3g} to {s['high']:.3g})" for s in clocks]
    parts = {phase: f"{seconds:.3g}" for phase, seconds in result[f"phases_{clock}"].items()}
    beside = ["1", "1"] if name == "ours" else ["", ""]
    if ratio is not None:
        for phase in ("sampling", "gradient"):
            parts[phase] += f" ({ratio[f'{phase}_{clock}']['median']:.1f}x)"
        time = ratio[clock]
        extent = f"{time['low']:.2f} to {time['high']:.2f}; {len(time['per_round'])}"
        beside = [f"{time['median']:.2f} ({extent})", f"{ratio['peak_memory']:.2f}"]
    memory = [result["memory"][f"{when}_bytes"] for when in ("imported", "built", "peak")]
    held = ", ".join(f"{size / 1e6:,.0f}" for size in memory)
    length = f"{result['mean_length']:.1f}"
    return "| " + " | ".join([name, *spent, *parts.values(), held, length, *beside]) + " |"


def _shares(shares: Mapping[str, Any]) -> list[str]:
    return [
        f"- {name}: sampling reaches {100 * found['bandwidth_share_of_sampling']:.0f} % of the "
        f"bandwidth, training {100 * found['roof_share_of_training']:.0f} % of the matrix roof"
        for name, found in shares.items()
        if isinstance(found, Mapping)
    ]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--size", choices=SIZES, default="T")
    parser.add_argument("--variant", choices=VARIANTS, default="fixed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="turns of ours and trl_grpo")
    parser.add_argument("--side_rounds", type=int, default=2, help="turns of the others")
    parser.add_argument("--contenders", nargs="+", choices=NAMES, help="default: all that apply")
    parser.add_argument("--micro_trl", type=int, help="completions of a micro-batch of TRL")
    parser.add_argument("--micro_hand_rolled", type=int, help="the same of the hand-written loop")
    parser.add_argument(
        "--tokens_per_micro_batch", type=int, help="of ours; default: what suits the size"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    fast, frugal = MICRO[arguments.size]
    if arguments.contenders is None:
        quick, lean = TOKENS[arguments.size]
        left_out = {"trl_grpo_frugal"} if fast == frugal or arguments.micro_trl else set()
        left_out |= {"ours_frugal"} if quick == lean else set()
        if arguments.variant == "single":
            left_out |= {"trl_rloo"}  # it divides by the samples less one
        arguments.contenders = [name for name in NAMES if name not in left_out]
    if "trl_rloo" in arguments.contenders and arguments.variant == "single":
        parser.error("trl_rloo divides by the samples of a prompt less one: leave it out of single")
    needs_trl = [name for name in arguments.contenders if name.startswith("trl")]
    if needs_trl and importlib.util.find_spec("trl") is None:
        parser.error(
            f"{', '.join(needs_trl)} need TRL, which is not installed: pip install "
            "'rl4lm[bench]', or run without: --contenders ours hand_rolled"
        )
    return arguments


def main() -> None:
    """Start the contenders, let them race, print and write."""
    arguments = parse()
    os.environ |= {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    import torch

    torch.set_num_threads(arguments.threads)
    large = arguments.size in ("G", "L")
    device = "cuda" if large else "cpu"
    if large and not torch.cuda.is_available():
        raise SystemExit("sizes G and L are for a CUDA device, and torch finds none here")
    contenders: list[Contender] = []
    try:
        for job in jobs(arguments, device):
            contenders.append(Contender(job))  # one by one, so that a failure ends them all
        race(contenders, arguments.rounds, arguments.side_rounds)
        results = {contender.job.contender: contender.result() for contender in contenders}
    finally:
        for contender in contenders:
            contender.stop()
    payload = {
        "benchmark": "vs_trl",
        "settings": {k: v for k, v in vars(arguments).items() if k != "out"} | {"device": device},
        "jobs": {c.job.contender: asdict(c.job) for c in contenders},
        "machine": machine(),
        "ratio_clock": "cpu_s" if device == "cpu" and arguments.threads == 1 else "wall_s",
        "results": results,
        "ratios": ratios(results) if "ours" in results else {},
        "device_shares": device_shares(arguments, results) if device == "cuda" else None,
    }
    print("\n" + render(payload))
    name = f"vs_trl-{arguments.size}-{arguments.variant}-{arguments.threads}.json"
    write_results(arguments.out or RESULTS / name, payload)


if __name__ == "__main__":
    main()
