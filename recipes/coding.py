"""Teach a small language model to write Python functions, by running what it writes.

    accelerate launch recipes/coding.py [--key value ...]

`python recipes/coding.py` does the same in one process. A prompt is a comment and a signature, the
answer is a body, and the reward is 1 where the function passes every test of its row in the
sandbox, else 0: nobody shows the model a program. Every option of `rl4lm train` is taken, and the
run goes to runs/coding unless --output_dir says otherwise.

Linux, as the sandbox needs it; two CPU cores, no download, about five processor minutes. Expect the
share of 500 held-out tasks that are solved greedily, the evaluation's `reward`, to go from 35 % to
94 % in 90 steps.
"""

from __future__ import annotations

import sys

from rl4lm.cli import run
from rl4lm.commandline.commands import run_training, settings_for
from rl4lm.options import parse_options


def main() -> None:
    """Read the options, and train."""
    config = parse_options(
        sys.argv[1:],
        prog="recipes/coding.py",
        description="Teach a small language model to write Python functions, by running them.",
        base={"model_name_or_path": "builtin:tiny-code", "output_dir": "runs/coding"},
        base_for=settings_for,
    )
    run_training(config)


if __name__ == "__main__":
    sys.exit(run(main))
