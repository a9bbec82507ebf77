"""A reward of one's own on data of one's own: teach a model that adds to give round numbers.

    accelerate launch recipes/custom_reward.py [--key value ...]

`python recipes/custom_reward.py` does the same in one process. The prompts are those of
recipes/data/sums: a file per split, a JSON object per line, and whatever is not the prompt (here
`exact`) is handed to the reward.
One CPU core, no download, a quarter of a minute. Expect a mean reward of about 0.99 on held-out
prompts, from 0.48 (60 steps in 6 s).
"""

from __future__ import annotations

import sys
from pathlib import Path

import rl4lm
from rewards import Graded, per_sample
from rewards.arithmetic import read_number
from rl4lm.cli import run
from rl4lm.commandline.commands import quiet_libraries, settings_for
from rl4lm.options import parse_options

DATA = Path(__file__).parent / "data" / "sums"
CLOSE = 10  # less than this off the exact sum is close


@per_sample
def round_number(completion: str, exact: int) -> Graded:
    """Half for a multiple of ten, half for a number close to the exact sum."""
    number = read_number(completion)
    if number is None:
        return Graded(0.0, "not a number")
    is_round, distance = number % 10 == 0, abs(number - exact)
    score = 0.5 * is_round + 0.5 * (distance < CLOSE)
    return Graded(score, f"{'round' if is_round else 'not round'}, {distance} from {exact}")


def main() -> None:
    """Read the options, hand the function over, train."""
    config = parse_options(
        sys.argv[1:],
        prog="recipes/custom_reward.py",
        description="Teach a model that adds to give round numbers.",
        base={
            "dataset_name": str(DATA),
            "output_dir": "runs/custom_reward",
            "prompts_per_step": 32,
            "num_generations": 8,
            "max_steps": 60,
            "warmup_steps": 10,
        },
        base_for=settings_for,
    )
    quiet_libraries()
    trainer = rl4lm.ReinforceTrainer(reward_funcs=round_number, args=config)
    trainer.train()
    trainer.world.close()


if __name__ == "__main__":
    sys.exit(run(main))
