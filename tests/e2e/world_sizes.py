"""The same steps by one, two and four processes, replicated and sharded: how far apart they end.

    python tests/e2e/world_sizes.py [--layouts replicated-2 sharded-2 replicated-4 sharded-4]

Every case is a run of ten SGD steps on a small random model, with uneven completions that any of
ten tokens ends. In float64 each layout draws its own completions, which must be those of one
process, token for token. In float32, where a token in 10^5 may differ, it is given those of one
process. Then the weights are compared: ‖w - w_1‖ / ‖w_1‖ over all parameters. Printed is a table
with the largest difference of each group of cases; two minutes a layout on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from rl4lm.estimator.names import BaselineName

ROOT = Path(__file__).parents[2]
BASELINES = get_args(BaselineName)
COMMON: dict[str, Any] = {
    "prompts_per_step": 8,
    "num_generations": 4,
    "max_completion_length": 12,
    "max_steps": 10,
    "eval_samples": 0,
    "accuracy_func": "none",
    "stop_token_ids": list(range(1, 10)),
    "optim": "sgd",
    "learning_rate": 0.01,
    "max_grad_norm": 0.0,  # to scale to a norm would hide a factor
    "max_tokens_per_micro_batch": 100,  # several, and not as many on each process
    "sample_table_steps": 0,
    "torch_threads": 1,
}
SPECIAL: dict[str, dict[str, Any]] = {
    # Of eight prompts one has completions that differ in reward, so that one process at most works.
    "all skipped on some": {"reward": "one prompt"},
    "no reward applies on some": {"reward": "none for most"},
    "all end at once on some": {"rollouts": "short"},
    "KL in the loss": {"beta": 0.1, "kl_in": "loss"},
    "KL in the reward": {"beta": 0.1, "kl_in": "reward"},
    "several updates": {"num_iterations": 2, "baseline": "batch_mean"},
    "entropy": {"entropy_coef": 0.05, "entropy_in": "loss"},
    "clipped": {"max_grad_norm": 0.05},
    "checkpointing": {"activation_checkpointing": True},
    "AdamW": {"optim": "adamw", "learning_rate": 1e-3},
    "as TRL has it": {
        "loss_type": "dapo",
        "scale_rewards": "group",
        "mask_truncated_completions": True,
        "beta": 0.1,
        "kl_in": "grpo_k3",
    },
    "head and body apart": {"tied": False},
}


NOT_OPTIONS = ("reward", "rollouts", "tied", "broken")


def cases(dtypes: Sequence[str] = ("float64", "float32")) -> dict[str, dict[str, Any]]:
    """All cases by name: every baseline full and with adapters, and the special ones."""
    kinds = [(f"full, {name}", {"baseline": name}) for name in BASELINES]
    kinds += [(f"adapters, {name}", {"baseline": name, "use_peft": True}) for name in BASELINES]
    kinds += [(f"special, {name}", options) for name, options in SPECIAL.items()]
    kinds.append(("special, adapters and KL", {"use_peft": True, "beta": 0.1, "kl_in": "reward"}))
    return {
        f"{dtype}: {name}": {**options, "dtype": dtype}
        for dtype in dtypes
        for name, options in kinds
    }


# What a process of a layout does.


def work(folder: Path, layout: str, chosen: dict[str, dict[str, Any]]) -> None:
    """Make the runs of some cases, and write down weights and completions."""
    import torch

    from rl4lm.processes.sharding import whole
    from rl4lm.processes.world import World

    sum_gradients = World.sum_gradients
    for name, case in chosen.items():
        alone = None if layout == "alone" else torch.load(folder / f"alone, {name}.pt")
        trainer = build(case)
        begun = [whole(p.detach()).clone() for p in trainer.policy.trainable().values()]
        given = alone if alone is not None and case["dtype"] == "float32" else None
        if case.get("broken"):
            World.sum_gradients = lambda world, parameters: None
        with drawn_or_given(trainer, given, case.get("rollouts")) as drawn:
            trainer.train()
        World.sum_gradients = sum_gradients
        weights = [whole(p.detach()).clone() for p in trainer.policy.trainable().values()]
        everybody = trainer.world.gather_lists([drawn])
        if trainer.world.is_main:
            together = {k: row for of_rank in everybody for k, row in of_rank.items()}
            found = {"weights": weights, "drawn": together, "begun": begun}
            torch.save(found, folder / f"{layout}, {name}.pt")
    trainer.world.close()


def build(case: dict[str, Any]) -> Any:
    """A trainer on a small random model."""
    sys.path.insert(0, str(ROOT / "tests"))
    import conftest as tiny
    import torch

    from rl4lm import ReinforceConfig, ReinforceTrainer
    from rl4lm.screen.console import Screen

    options = {k: v for k, v in case.items() if k not in NOT_OPTIONS}
    dtype = getattr(torch, options["dtype"])
    prompts = [" ".join(f"t{(7 * k + j) % 80 + 12}" for j in range(1 + k % 5)) for k in range(20)]
    return ReinforceTrainer(
        model=tiny.build_model("llama", dtype=dtype, tied=case.get("tied", True)),
        reward_funcs=REWARDS[case.get("reward", "all")],
        args=ReinforceConfig(**{**COMMON, **options}),
        train_dataset=[{"prompt": prompt, "row": k} for k, prompt in enumerate(prompts)],
        processing_class=tiny.build_tokenizer(),
        screen=Screen(quiet=True),
    )


def reward_all(completion_ids: Any, **_: Any) -> list[float]:
    """Something that differs from completion to completion."""
    return [sum(ids) % 7 / 6 for ids in completion_ids]


def reward_of_one_prompt(completion_ids: Any, row: Any, **_: Any) -> list[float]:
    """The same for all completions, except for every eighth prompt."""
    return [
        sum(ids) % 7 / 6 if k % 8 == 3 else 0.5 for ids, k in zip(completion_ids, row, strict=True)
    ]


def reward_none_for_most(completion_ids: Any, row: Any, **_: Any) -> list[float | None]:
    """No number, except for every eighth prompt."""
    return [
        sum(ids) % 7 / 6 if k % 8 == 3 else None for ids, k in zip(completion_ids, row, strict=True)
    ]


REWARDS = {
    "all": reward_all,
    "one prompt": reward_of_one_prompt,
    "none for most": reward_none_for_most,
}


@contextmanager
def drawn_or_given(trainer: Any, given: Any, kind: str | None) -> Iterator[dict[str, Any]]:
    """Note the completions of every prompt and step; draw them, or take those of another run.

    With rollouts of a kind "short" the completions of every other prompt are cut after one token.
    """
    from rl4lm.experience import Gatherer

    sample, notes = Gatherer.sample, {}

    def draw(gatherer: Any, examples: Any, step: int, places: Any, finished: Any = None) -> Any:
        rollout = sample(gatherer, examples, step, places, finished)
        if given is not None:
            rollout = of_rows([given["drawn"][f"{step}/{place}"] for place in places])
        elif kind == "short":
            rollout = cut(rollout, [place % 2 == 0 for place in places])
        group = rollout.num_generations
        for k, place in enumerate(places):
            notes[f"{step}/{place}"] = note_of(rollout, k, slice(k * group, (k + 1) * group))
        return rollout

    Gatherer.sample = draw
    try:
        yield notes
    finally:
        Gatherer.sample = sample


def note_of(rollout: Any, prompt: int, rows: slice) -> dict[str, Any]:
    """The completions of one prompt as plain lists."""
    lengths = rollout.lengths[rows].tolist()
    logprobs = rollout.sampling_logprobs[rows].tolist()
    return {
        "prompt": rollout.prompt_lists()[prompt],
        "ids": rollout.completion_lists()[rows],
        "logprobs": [row[:n] for row, n in zip(logprobs, lengths, strict=True)],
        "ended": rollout.ended[rows].tolist(),
    }


def of_rows(notes: Sequence[dict[str, Any]]) -> Any:
    """A rollout of noted prompts."""
    from dataclasses import replace

    import torch

    from rl4lm import Rollout

    rollout = Rollout.from_lists(
        [note["prompt"] for note in notes for _ in note["ids"]],
        [ids for note in notes for ids in note["ids"]],
        num_generations=len(notes[0]["ids"]),
        ended=[ended for note in notes for ended in note["ended"]],
    )
    rows = [torch.tensor(row) for note in notes for row in note["logprobs"]]
    return replace(
        rollout, sampling_logprobs=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    )


def cut(rollout: Any, chosen: Sequence[bool]) -> Any:
    """A rollout in which the completions of some prompts end after one token."""
    from dataclasses import replace

    import torch

    group, mask = rollout.num_generations, rollout.completion_mask.clone()
    mask[torch.tensor(chosen).repeat_interleave(group), 1:] = False
    width = int(mask.sum(dim=1).max())
    return replace(
        rollout,
        completion_ids=rollout.completion_ids[:, :width],
        completion_mask=mask[:, :width],
        sampling_logprobs=rollout.sampling_logprobs.where(mask, 0.0)[:, :width],
    )


# Start layouts, and compare what they wrote.


def start(folder: Path, layout: str, chosen: dict[str, dict[str, Any]]) -> None:
    """Run some cases in a layout: "alone", or replicated or sharded over some processes."""
    words = [str(Path(__file__)), "work", str(folder), layout, json.dumps(chosen)]
    launch = [sys.executable]
    if layout != "alone":
        kind, size = layout.split("-")
        file = {"replicated": "cpu2.yaml", "sharded": "fsdp2.yaml"}[kind]
        launch += ["-m", "accelerate.commands.launch", "--config_file"]
        launch += [str(ROOT / "recipes" / "accelerate" / file), "--num_processes", size]
        launch += ["--gpu_ids=" + ",".join(["-1"] * int(size))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*launch, *words], env=environment, capture_output=True, text=True, timeout=1500
    )
    if done.returncode:
        raise RuntimeError(f"{layout} ended with {done.returncode}:\n{done.stderr[-6000:]}")


def difference(folder: Path, layout: str, name: str) -> tuple[float, float, bool]:
    """How far weights are from those of one process: relative to them, and to the way they went.

    And whether all completions are the same.
    """
    import torch

    alone, found = (torch.load(folder / f"{each}, {name}.pt") for each in ("alone", layout))
    w, v, s = (
        torch.cat([t.double().flatten() for t in each])
        for each in (alone["weights"], found["weights"], alone["begun"])
    )
    same = all(
        found["drawn"][place]["ids"] == note["ids"] for place, note in alone["drawn"].items()
    )
    gap = float((v - w).norm())
    return gap / float(w.norm()), gap / float((w - s).norm()), same


def main() -> None:
    """All cases in all layouts, and a table."""
    layouts = ["replicated-2", "sharded-2", "replicated-4", "sharded-4"]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--layouts", nargs="*", default=layouts)
    arguments = parser.parse_args()
    chosen = cases()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        start(folder, "alone", chosen)
        print("| layout | dtype | cases | same tokens | ‖w - w₁‖ / ‖w₁‖ | of the way |")
        print("|---|---|---|---|---|---|")
        for layout in arguments.layouts:
            start(folder, layout, chosen)
            for group in ("full", "adapters", "special"):
                for dtype in ("float64", "float32"):
                    names = [name for name in chosen if name.startswith(f"{dtype}: {group}")]
                    found = [difference(folder, layout, name) for name in names]
                    same = "all" if all(each[2] for each in found) else "NOT ALL"
                    drawn = same if dtype == "float64" else "given"
                    worst, of_way = max(each[0] for each in found), max(each[1] for each in found)
                    print(
                        f"| {layout} | {dtype} | {group} ({len(names)}) | {drawn} | {worst:.1e} | "
                        f"{of_way:.1e} |",
                        flush=True,
                    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))
    else:
        main()
