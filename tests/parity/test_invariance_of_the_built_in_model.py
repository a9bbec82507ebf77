"""The gradient of a real model on real samples does not depend on how the work is laid out."""

from __future__ import annotations

import pytest
import torch
from launching import TWO_PROCESSES, finished
from torch import Tensor

from rl4lm import ReinforceConfig, ReinforceTrainer, Rollout
from rl4lm.model import teacher_forcing
from rl4lm.processes.dealing import deal
from rl4lm.screen.console import Screen

LIMITS = {"float32": 1e-5, "float64": 1e-10}
P, G = 12, 6


def build(dtype, use_peft=False, budget=10**6):
    config = ReinforceConfig(
        dtype=dtype,
        use_peft=use_peft,
        prompts_per_step=P,
        num_generations=G,
        max_completion_length=8,
        temperature=0.9,
        eval_samples=0,
        max_tokens_per_micro_batch=budget,
        torch_threads=1,
    )
    trainer = ReinforceTrainer(args=config, screen=Screen(quiet=True))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in trainer.policy.trainable().items():
            if "lora_B" in name:  # 0 at the start, which would leave A without a gradient
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.05 * noise)
    return trainer


def exact_build(tiny, dtype, use_peft, budget=10**6):
    """`build`, with norm layers that compute in float64 where the rest does."""
    trainer = build(dtype, use_peft, budget)
    if dtype == "float64":
        tiny.exact_norms(trainer.policy.module.model)
    return trainer


@pytest.fixture(scope="module", params=[("float32", False), ("float64", False), ("float64", True)])
def subject(request, tiny):
    """A trainer, a rollout of its own, advantages with zeros among them, and the gradient."""
    dtype, use_peft = request.param
    trainer = exact_build(tiny, dtype, use_peft)
    gatherer = trainer.learner.gatherer
    rollout = gatherer.sample(gatherer.examples(0), 0, range(P))
    advantages = torch.randn(P * G, generator=torch.Generator().manual_seed(1)).double()
    advantages[::5] = 0.0
    expected = trainer.gradient(rollout, advantages)
    return dtype, use_peft, rollout, advantages, expected


def close(tiny, subject, actual):
    return max(tiny.gap(actual, subject[-1])) < LIMITS[subject[0]]


@pytest.mark.parametrize("budget", [1, pytest.param(37, marks=pytest.mark.slow), 200])
def test_the_budget_of_a_micro_batch_changes_nothing(budget, subject, tiny):
    dtype, use_peft, rollout, advantages, _ = subject
    assert close(
        tiny, subject, exact_build(tiny, dtype, use_peft, budget).gradient(rollout, advantages)
    )


def test_the_order_of_the_prompts_and_padding_change_nothing(subject, tiny):
    dtype, use_peft, rollout, advantages, _ = subject
    trainer = exact_build(tiny, dtype, use_peft, 100)
    order = torch.randperm(P, generator=torch.Generator().manual_seed(2))
    rows = (order[:, None] * G + torch.arange(G)).flatten()
    shuffled = Rollout(
        **{
            name: value[order if name.startswith("prompt") else rows]
            for name, value in vars(rollout).items()
        }
    )
    assert close(tiny, subject, trainer.gradient(shuffled, advantages[rows]))
    assert not close(tiny, subject, trainer.gradient(shuffled, advantages))
    assert close(tiny, subject, trainer.gradient(tiny.pad_more(rollout, 9, 5), advantages))


def test_running_samples_without_advantage_too_changes_nothing(subject, tiny, monkeypatch):
    dtype, use_peft, rollout, advantages, _ = subject
    trainer = exact_build(tiny, dtype, use_peft, 100)
    cut, run = teacher_forcing.micro_batches, []

    def every_row(rollout, rows, *rest):
        run.extend(rows)
        return cut(rollout, range(P * G), *rest)

    monkeypatch.setattr(teacher_forcing, "micro_batches", every_row)
    # Of equal completions only the first one carries their weights.
    assert close(tiny, subject, trainer.gradient(rollout, advantages))
    assert 0 < len(run) < P * G


TWO = """
import sys, torch
from pathlib import Path
from rl4lm import ReinforceConfig, ReinforceTrainer, Rollout
from rl4lm.screen.console import Screen

folder = Path(sys.argv[1])
given = torch.load(folder / "given.pt", weights_only=True)
for dtype in ("float32", "float64"):
    config = ReinforceConfig(
        dtype=dtype, prompts_per_step=12, num_generations=6, eval_samples=0, temperature=0.9,
        max_completion_length=8, torch_threads=1,
    )
    trainer = ReinforceTrainer(args=config, screen=Screen(quiet=True))
    # An uneven deal: four prompts here, eight there.
    prompts, rows = ((slice(0, 4), slice(0, 24)), (slice(4, 12), slice(24, 72)))[trainer.world.rank]
    part = Rollout(**{
        name: value[prompts if name.startswith("prompt") else rows]
        for name, value in given["rollout"].items()
    })
    gradient = trainer.gradient(part, given["advantages"][rows])
    torch.save(gradient, folder / f"{dtype}-{trainer.world.rank}.pt")
trainer.world.close()
"""


@pytest.mark.slow  # tests/e2e/test_world_sizes.py has such shares too
@pytest.mark.timeout(150)
def test_two_processes_with_uneven_shares_find_the_gradient_of_one(tiny, tmp_path):
    trainer = build("float64")
    gatherer = trainer.learner.gatherer
    rollout = gatherer.sample(gatherer.examples(0), 0, range(P))
    advantages = torch.randn(P * G, generator=torch.Generator().manual_seed(1)).double()
    advantages[:24] *= torch.arange(24) % 2  # a process with fewer live rows than the other
    torch.save({"rollout": dict(vars(rollout)), "advantages": advantages}, tmp_path / "given.pt")
    (tmp_path / "two.py").write_text(TWO)
    finished([*TWO_PROCESSES, "two.py", tmp_path], tmp_path, seconds=140)
    for dtype, limit in LIMITS.items():
        expected = build(dtype).gradient(rollout, advantages)
        first, second = (torch.load(tmp_path / f"{dtype}-{rank}.pt") for rank in (0, 1))
        assert max(tiny.gap(first, expected)) < limit
        assert all(torch.equal(first[name], second[name]) for name in first)


def random_rows(generator) -> list[tuple[list[int], list[int], bool]]:
    """Prompts of 2 to 230 tokens, completions of 1 to 24, some ended and some cut off."""

    def draw(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    lengths = [(2, 1), (230, 24), (2, 24), (230, 1)]
    lengths += [(draw(2, 230), draw(1, 24)) for _ in range(12)]
    rows = []
    for prompt, completion in lengths:
        ids = [[draw(0, 96) for _ in range(n)] for n in (prompt, completion)]
        rows.append((ids[0], ids[1], bool(draw(0, 1))))
    return rows


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_rollout_of_very_uneven_lengths_is_that_of_one_sequence_at_a_time(architecture, tiny):
    """Against the model in float64, one unpadded sequence at a time."""
    rows = random_rows(torch.Generator().manual_seed(3))
    prompts, completions, ended = (list(column) for column in zip(*rows, strict=True))
    rollout = Rollout.from_lists(prompts, completions, ended=ended)
    assert rollout.ended.tolist() == ended
    long = {"n_positions": 256} if architecture == "gpt2" else {"max_position_embeddings": 256}
    reference = tiny.build_model(architecture, **long).double().eval()
    trainer = tiny.build_trainer(
        tiny.build_model(architecture, **long), max_tokens_per_micro_batch=700
    )
    table = tiny.naive_table(reference, rollout)
    assert float((trainer.policy.completion_logprobs(rollout) - table).abs().max()) < 1e-4
    advantages = torch.randn(len(rows), generator=torch.Generator().manual_seed(4)).double()
    actual = trainer.gradient(rollout, advantages)
    expected = tiny.naive_gradient(reference, rollout, advantages)
    one, two = (flat(each) for each in (actual, expected))
    assert float(torch.cosine_similarity(one, two, dim=0)) > 0.99999
    assert abs(float(one.norm() / two.norm()) - 1) < 1e-4


def flat(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.double().flatten() for part in gradient.values()])


def test_the_same_tokens_are_drawn_by_one_process_and_by_four_in_float64():
    """Each process draws its share of the prompts in a batch of its own."""
    trainer = build("float64")
    gatherer = trainer.learner.gatherer
    examples = gatherer.examples(3)
    whole = gatherer.sample(examples, 3, range(P)).completion_lists()
    dealt = [[]] * P
    for hand in deal([float(k % 3) for k in range(P)], 4):
        lists = gatherer.sample([examples[k] for k in hand], 3, hand).completion_lists()
        for k, place in enumerate(hand):
            dealt[place] = lists[k * G : (k + 1) * G]
    assert [ids for each in dealt for ids in each] == whole
    # A process that forgets where its prompts stand:
    repeated = gatherer.sample(examples[P // 4 : P // 2], 3, range(P // 4)).completion_lists()
    assert repeated != whole[P // 4 * G : P // 2 * G]
