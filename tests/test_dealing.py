"""Prompts dealt to processes: as many to each, and about as many tokens."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl4lm.processes.dealing import Deal, Lengths, deal
from rl4lm.types import Example

COSTS = st.lists(st.floats(0, 1e6), min_size=1, max_size=12)


@given(COSTS, st.integers(1, 5))
@settings(max_examples=200)
def test_everything_is_dealt_once_and_as_much_to_each(costs, processes):
    hands = deal(costs * processes, processes)
    assert sorted(k for hand in hands for k in hand) == list(range(len(costs) * processes))
    assert {len(hand) for hand in hands} == {len(costs)}
    assert all(hand == sorted(hand) for hand in hands)


def test_one_process_has_everything_in_order():
    assert deal([3.0, 9.0, 1.0], 1) == [[0, 1, 2]]


def busiest(hands, costs) -> float:
    """Of the hands the dearest, over what each would have if all had the same."""
    return max(sum(costs[k] for k in hand) for hand in hands) / (sum(costs) / len(hands))


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_the_busiest_process_has_little_more_than_its_share(processes):
    generator = random.Random(0)
    costs = sorted(generator.uniform(1, 100) for _ in range(64))
    size = len(costs) // processes
    in_order = [range(k * size, (k + 1) * size) for k in range(processes)]
    assert busiest(deal(costs, processes), costs) < 1.05
    assert busiest(in_order, costs) > 1.1, "dealt in order it has much more"


def test_rows_gathered_process_by_process_are_put_in_the_order_of_the_step():
    dealt = Deal([[1, 3], [0, 2]], rank=1)
    assert dealt.mine == [0, 2]
    gathered = torch.tensor([[1.0], [3.0], [0.0], [2.0]])
    assert dealt.in_order(gathered).flatten().tolist() == [0.0, 1.0, 2.0, 3.0]


EXAMPLES = [Example(str(k), "q" * 8, {}) for k in range(3)]


def test_a_prompt_costs_what_its_completions_were_long_the_last_time():
    lengths = Lengths()
    assert lengths.costs([5, 6, 7], EXAMPLES, 2) == [2.0] * 3  # its text alone
    lengths.note([5, 6], torch.tensor([[10, 20], [1, 3]]))
    assert lengths.costs([5, 6, 7], EXAMPLES, 2) == [32.0, 6.0, 2 + 2 * 8.5]  # 7 is as the others
    lengths.note([5], torch.tensor([[1, 1]]))
    assert lengths.costs([5], EXAMPLES[:1], 2) == [4.0]


def test_the_text_of_chat_messages_counts():
    chat = Example("0", [{"role": "user", "content": "abcd"}] * 3, {})
    assert Lengths().costs([0], [chat], 4) == [3.0]


def test_what_was_learned_of_lengths_is_there_after_a_pause():
    lengths, again = Lengths(), Lengths()
    lengths.note([5, 6], torch.tensor([[10, 20], [1, 3]]))
    again.load_state_dict(lengths.state_dict())
    assert again.costs([5, 6, 7], EXAMPLES, 2) == lengths.costs([5, 6, 7], EXAMPLES, 2)
