"""Recipes as their users launch them, and as modules to look at closely."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
ONE_PROCESS = ["--config_file", str(RECIPES / "accelerate" / "gpu1.yaml")]
SECONDS = 100


def launch(name, *options, folder, through=(*LAUNCH, *ONE_PROCESS), seconds=SECONDS):
    """Run a recipe to its end, from a folder that is not the repository's."""
    process = subprocess.Popen(
        [*through, str(RECIPES / name), *options],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.terminate()
        process.wait(timeout=20)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


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
