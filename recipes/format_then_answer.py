"""Two rewards with weights, one for the form of an answer and one for the answer itself.

    accelerate launch recipes/format_then_answer.py [--reward_weights 0.2 1] [--key value ...]

`python recipes/format_then_answer.py` does the same in one process. The built-in model is to write
its sums as a display of three digits does, `046` and `007`. `display` below pays for that form alone,
whatever the digits; `rewards.arithmetic:exact_answer` pays for the number, whatever the zeros. The
form is cheap to learn and says nothing, so it weighs a fifth of the answer. A chat model is asked for
`rewards.formats:think_answer` in the same way.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import rl4lm
from rewards import Graded, per_sample
from rl4lm.cli import run
from rl4lm.commands import quiet_libraries, settings_for
from rl4lm.options import parse_options

FORM = re.compile("[0-9]{3}|[1-9][0-9]{3}")  # a sum above 999 needs a fourth digit
DEFAULTS = {
    "reward_funcs": [f"{Path(__file__).resolve()}:display", "rewards.arithmetic:exact_answer"],
    "reward_weights": [1.0, 1.0],
    "output_dir": "runs/format_then_answer",
}


@per_sample
def display(completion: str) -> Graded:
    """1 for three digits, zeros in front of a smaller number; else 0."""
    kept = FORM.fullmatch(completion) is not None
    return Graded(float(kept), "three digits" if kept else "not three digits")


def main() -> None:
    """Read the options, train, and leave the other processes in good order."""
    config = parse_options(
        sys.argv[1:],
        prog="recipes/format_then_answer.py",
        description="Two rewards with weights: the form of an answer, and the answer.",
        base=DEFAULTS,
        base_for=settings_for,
    )
    quiet_libraries()
    trainer = rl4lm.ReinforceTrainer(args=config)
    trainer.train()
    trainer.world.close()


if __name__ == "__main__":
    sys.exit(run(main))
