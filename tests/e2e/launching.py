"""Programs as their users start them, alone and in two processes; recipes as modules."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"
RL4LM = [sys.executable, "-m", "rl4lm"]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
TWO_PROCESSES = [*LAUNCH, "--config_file", str(RECIPES / "accelerate" / "cpu2.yaml")]
ONE_PROCESS = ["--config_file", str(RECIPES / "accelerate" / "gpu1.yaml")]
SECONDS = 100


def finished(words, folder=None, *, code=0, seconds=280, before=None, **environment):
    """A program that has run to its end, on one thread and without a GPU, and what it said.

    Args:
        words: the command.
        folder: where it runs; this one by default.
        code: the exit code that it must have; None for any.
        seconds: after which it is stopped; a launcher then stops its processes.
        before: called in the new process before the program.
        environment: further variables.
    """
    process = subprocess.Popen(
        [str(word) for word in words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        preexec_fn=before,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.terminate()
        process.wait(timeout=20)
    assert code in (None, process.returncode), out + err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def launch(name, *options, folder, through=(*LAUNCH, *ONE_PROCESS), seconds=SECONDS):
    """Run a recipe to its end, from a folder that is not the repository's."""
    return finished([*through, RECIPES / name, *options], folder, code=None, seconds=seconds)


@functools.cache
def recipe(name):
    """A recipe as a module, without running it."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(path):
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
