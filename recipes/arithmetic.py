"""Teach a small language model arithmetic by REINFORCE: the main job, through the Python API.

    accelerate launch recipes/arithmetic.py [--use_peft] [--key value ...]

`python recipes/arithmetic.py` does the same in one process. Every option of `rl4lm train` is taken
and has the same default; the run goes to runs/arithmetic unless --output_dir says otherwise.

One CPU core, no download, some two minutes of training. Expect the greedy accuracy on 500
held-out problems to go from 51 % to 96 to 98 %; with --use_peft to about 93 %.
"""

from __future__ import annotations

import sys

import rl4lm
from rl4lm.cli import run
from rl4lm.commandline.commands import quiet_libraries, settings_for
from rl4lm.options import parse_options


def main() -> None:
    """Read the options, train, and leave the other processes in good order."""
    config = parse_options(
        sys.argv[1:],
        prog="recipes/arithmetic.py",
        description="Teach a small language model arithmetic by REINFORCE.",
        base={"output_dir": "runs/arithmetic"},
        base_for=settings_for,
    )
    quiet_libraries()
    trainer = rl4lm.ReinforceTrainer(args=config)
    trainer.train()
    trainer.world.close()


if __name__ == "__main__":
    sys.exit(run(main))
