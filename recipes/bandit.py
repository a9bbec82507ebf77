"""The two-armed bandit of every text on REINFORCE, played by a language model with two tokens.

    accelerate launch recipes/bandit.py [--episodes 300] [--seeds 5]

`python recipes/bandit.py` does the same. Arm L pays 1 in 30 % of the episodes, arm R in 70 %. An
answer is one token, L or R; both end it, and the prompt is such a token too: ends are looked for
in answers only. The head starts at zero, so π(R) is exactly one half, and the head alone learns, by
plain SGD with the trainer that trains everything else. Three players, the same number of episodes:
one answer a step as in the textbook; four a step; four a step, each compared with the other three.

One CPU core, no download, a quarter of a minute (4 ms a step). Expect π(R) to go from 0.500 to
about 0.91 (0.88 to 0.95 over five seeds) for each player, along a curve that loses 0.19 on its way
without a baseline, and half of that, 0.09, where answers are compared.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rl4lm import ReinforceConfig, ReinforceTrainer, Rollout
from rl4lm.cli import run
from rl4lm.errors import ConfigError
from rl4lm.options import OptionParser
from rl4lm.scoring import RewardContext
from rl4lm.screen.console import Screen
from rl4lm.types import StepStats, TrainState

L, R = 0, 1  # token ids
CHANCES = {"L": 0.3, "R": 0.7}
LEARNING_RATE = 0.016  # per episode; the head sees a hidden state of squared length 4
PLAYERS = (
    ("1 a step, no baseline", 1, "none"),
    ("4 a step, no baseline", 4, "none"),
    ("4 a step, leave one out", 4, "prompt_leave_one_out"),
)
POINT = 4  # episodes from one point of a curve to the next, whatever the steps of the player
BARS = "▁▂▃▄▅▆▇█"

Pay = Callable[..., list[float]]


def pull(completions: Sequence[str], trainer_state: RewardContext) -> list[float]:
    """1 or 0 for each answer, drawn from nothing but the seed, the step and the place."""
    coin = random.Random(f"arms of seed {trainer_state.seed} at step {trainer_state.global_step}")
    return [float(coin.random() < CHANCES[arm]) for arm in completions]


def two_token_model() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A Llama whose vocabulary is L and R, both of them ends, with a head of zeros."""
    config = LlamaConfig(
        vocab_size=2,
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=16,
        bos_token_id=None,
        eos_token_id=[L, R],
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).double().requires_grad_(False)
    model.lm_head.weight.zero_().requires_grad_(True)
    words = Tokenizer(models.WordLevel({"L": L, "R": R}))
    return model, PreTrainedTokenizerFast(tokenizer_object=words)


class Curve:
    """Collects π(R), the probability of the better arm, at the time of each step."""

    def __init__(self) -> None:
        """Begin without a point."""
        self.points: list[float] = []

    def on_step_end(self, state: TrainState, stats: StepStats) -> None:
        """Read π(R) from the first answer's probability, as it was when the answer was drawn."""
        answer = stats.completions[0]
        probability = math.exp(answer["sampling_logprob"])
        self.points.append(probability if answer["completion"] == "R" else 1 - probability)


def play(seed: int, episodes: int, group: int, baseline: str, pay: Pay = pull) -> list[float]:
    """π(R) before each step of `group` episodes, and after the last."""
    model, tokenizer = two_token_model()
    curve = Curve()
    trainer = ReinforceTrainer(
        model,
        pay,
        ReinforceConfig(
            dtype="float64",
            prompts_per_step=1,
            num_generations=group,
            max_completion_length=1,
            baseline=baseline,
            optim="sgd",
            learning_rate=LEARNING_RATE * group,  # a step's gradient is a mean over the group
            max_grad_norm=0,
            max_steps=episodes // group,
            eval_samples=0,
            sample_table_steps=0,
            seed=seed,
            torch_threads=1,
        ),
        train_dataset=[{"prompt": "L"}],
        processing_class=tokenizer,
        callbacks=[curve],
        screen=Screen(quiet=True),  # most steps change nothing, and the screen would say so
    )
    trainer.train()
    right = Rollout.from_lists([[L]], [[R]])
    return [*curve.points, float(trainer.policy.completion_logprobs(right).exp())]


def drawn(points: Sequence[float]) -> str:
    """A curve as bars, the lowest for one half or less and the highest for 1."""
    heights = (int((point - 0.5) * 2 * len(BARS)) for point in points)
    return "".join(BARS[min(max(height, 0), len(BARS) - 1)] for height in heights)


def roughness(points: Sequence[float]) -> float:
    """Mean |Δπ(R)| between neighbours."""
    return statistics.fmean(abs(after - before) for before, after in pairwise(points))


def lost(points: Sequence[float]) -> float:
    """What π(R) lost on its way up: the sum of its falls, 0 for a curve that only climbs."""
    return sum(max(before - after, 0.0) for before, after in pairwise(points))


def options(argv: Sequence[str]) -> tuple[int, int]:
    """Episodes and seeds from the command line."""
    parser = OptionParser(
        prog="recipes/bandit.py",
        description="The two-armed bandit, played by a language model with two tokens.",
        usage="%(prog)s [--episodes N] [--seeds N]",
    )
    parser.add_argument("--episodes", type=int, default=300, help="episodes of a game")
    parser.add_argument("--seeds", type=int, default=5, help="games of each player")
    given = parser.parse_args(argv)
    if given.episodes < POINT or given.episodes % POINT or given.seeds < 1:
        raise ConfigError(
            f"episodes={given.episodes} must be a multiple of {POINT}, and seeds={given.seeds} "
            "at least 1"
        )
    return given.episodes, given.seeds


def main() -> None:
    """Let every player play every seed, and print a curve and the figures of each."""
    episodes, seeds = options(sys.argv[1:])
    print(
        f"π(R), the probability of the arm that pays more often, over {episodes} episodes.\n"
        f"The curve is that of seed 0, a bar for {POINT} episodes, from 0.5 to 1. Roughness is\n"
        "the mean |Δπ| from bar to bar; what is lost on the way is the sum of the falls.\n"
    )
    for name, group, baseline in PLAYERS:
        started = time.perf_counter()
        games = [play(seed, episodes, group, baseline) for seed in range(seeds)]
        steps = seeds * (episodes // group)
        milliseconds = 1e3 * (time.perf_counter() - started) / steps
        curves = [game[:: POINT // group] for game in games]
        ends = [game[-1] for game in games]
        print(
            f"{name:25}{drawn(curves[0])}\n"
            f"{'':25}π {games[0][0]:.3f} -> {statistics.fmean(ends):.3f} on average, "
            f"{min(ends):.3f} to {max(ends):.3f} over {seeds} seeds\n"
            f"{'':25}roughness {statistics.fmean(map(roughness, curves)):.4f}, "
            f"lost on the way {statistics.fmean(map(lost, curves)):.3f}, "
            f"{milliseconds:.1f} ms a step",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(run(main))
