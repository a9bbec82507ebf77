"""Two rewards with weights: the form is learned first, and then the answer within the form.

    accelerate launch recipes/format_then_answer.py [--reward_weights 1 1] [--key value ...]

`python recipes/format_then_answer.py` does the same in one process. The built-in model is to write
its sums as a display of three digits does, `046` and `007`. `display` below pays for that form
alone, whatever the digits; `rewards.arithmetic:exact_answer` pays for the number, whatever the
zeros. A chat model is asked for `rewards.formats:think_answer`, or what `tagged` makes, in the same
way.

One CPU core, no download, the steps of recipes/arithmetic.py: three minutes. Expect of 500 held-out
answers 63 % in form and 51 % right to become 100 % and 98.6 % (one seed). On the way a form is the
quicker one to learn: 30 steps, in which the share of right samples falls from 0.40 to 0.30, since a
third digit that makes 46 a wrong 461 pays as well as a zero in front; it is back after 100 steps.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rewards import Graded, per_sample
from rl4lm.cli import run
from rl4lm.commandline.commands import run_training, settings_for
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
    """Read the options, and train."""
    config = parse_options(
        sys.argv[1:],
        prog="recipes/format_then_answer.py",
        description="Two rewards with weights: the form of an answer, and the answer.",
        base=DEFAULTS,
        base_for=settings_for,
    )
    run_training(config)


if __name__ == "__main__":
    sys.exit(run(main))
