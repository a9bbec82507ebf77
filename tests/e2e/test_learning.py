"""The whole loop learns what is rewarded, and nothing where rewards say nothing.

A rising curve proves no gradient right (the parity tests do); these find a loop whose parts are
right and are joined wrongly.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.scoring import RewardContext
from rl4lm.screen.console import Screen

WANTED = 3  # the token that pays
Reward = Callable[..., list[float]]


def share_of_the_wanted_token(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [ids.count(WANTED) / len(ids) for ids in completion_ids]


def the_same_rewards_shuffled(
    completion_ids: list[list[int]], trainer_state: RewardContext, **columns: Any
) -> list[float]:
    rewards = share_of_the_wanted_token(completion_ids)
    random.Random(trainer_state.global_step).shuffle(rewards)
    return rewards


@pytest.fixture
def rewards_while_learning(tiny):
    def run(reward: Reward, **options: Any) -> list[float]:
        """The mean share of the wanted token at each of 60 steps, whatever is paid."""
        seen: list[float] = []

        class Listener:
            def on_step_end(self, state: Any, stats: Any) -> None:
                ids = [row["completion_ids"] for row in stats.completions]
                shares = share_of_the_wanted_token(ids)
                seen.append(sum(shares) / len(shares))

        model = tiny.build_model("llama", vocabulary=12, std=0.1)
        settings = {
            "prompts_per_step": 4,
            "num_generations": 8,
            "max_completion_length": 8,
            "learning_rate": 1e-2,
            "max_steps": 60,
            "eval_samples": 0,
            "accuracy_func": "none",
            **options,
        }
        ReinforceTrainer(
            model=model,
            reward_funcs=reward,
            args=ReinforceConfig(**settings),
            train_dataset=[{"prompt": "t1 t2"}, {"prompt": "t4"}, {"prompt": "t5 t6 t7"}],
            processing_class=tiny.build_tokenizer(12),
            callbacks=[Listener()],
            screen=Screen(quiet=True),
        ).train()
        return seen

    return run


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"baseline": "none"},
        {"baseline": "batch_mean"},
        {"baseline": "batch_leave_one_out", "num_generations": 1, "prompts_per_step": 32},
    ],
    ids=["prompt_leave_one_out", "none", "batch_mean", "one_sample_per_prompt"],
)
def test_what_is_rewarded_becomes_the_rule(rewards_while_learning, options):
    shares = rewards_while_learning(share_of_the_wanted_token, **options)
    assert shares[0] < 0.2
    assert sum(shares[-5:]) / 5 > 0.8


def test_shuffled_rewards_teach_nothing(rewards_while_learning):
    """The negative control: the same rewards, paid to other completions of the step."""
    shares = rewards_while_learning(the_same_rewards_shuffled)
    assert sum(shares[-5:]) / 5 < 0.35
