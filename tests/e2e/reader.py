"""A reader who follows a page from top to bottom: writes its files, types its commands."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from documented import ROOT, Shown, shown, write_files
from documented_settings import (
    FORMS,
    HUB_MODEL,
    NOT_RUN,
    PYTHON_RUN_BY,
    REPLACED,
    ROW,
    ROWS,
    RUN_BY,
    RUNS,
    SERVER,
    SHORT,
    SMALL,
    SMALLER,
    WEAK,
)

from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.cli import main
from rl4lm.model.loading import load_model, open_model

SECONDS = 250  # of a program


def elsewhere(text: str) -> str | None:
    """The test that runs such a command, or why none does; None where the reader types it."""
    tables = {**RUN_BY, **NOT_RUN}
    return next((tables[begin] for begin in tables if text.startswith(begin)), None)


def typed(text: str) -> str:
    """A command as it is run: forms filled in, and parts replaced; the model is a reader's."""
    text = FORMS.get(text, text)
    for old, new in REPLACED.items():
        text = text.replace(old, new)
    return text


class Reader:
    """Has an empty folder to work in, which is the working directory."""

    def __init__(self, page: str, model: Path, fixture: Callable[[str], Any]) -> None:
        """Prepare what the page takes for granted.

        Args:
            page: to follow.
            model: a chat checkpoint in the place of the hub's.
            fixture: gives a fixture by name: the stand-ins for an engine and for the hub.
        """
        self.page, self.model, self.folder = page, model, Path.cwd()
        self.fixture = fixture
        self.namespace: dict[str, Any] = {"__name__": "program"}
        self.environment = {"PYTHONPATH": str(ROOT), "HOME": str(self.folder)}
        self._prepare()

    def follow(self) -> None:
        """Do all that the page shows, in order."""
        for each in shown(self.page):
            if each.kind == "command":
                if elsewhere(each.text) is None:
                    self.type(typed(each.text))
            elif each.file:
                (self.folder / each.file).write_text(each.text, encoding="utf-8")
                sys.modules.pop(each.file.removesuffix(".py"), None)
            elif self.page not in PYTHON_RUN_BY:
                self.execute(each)

    def execute(self, block: Shown) -> None:
        """Run a block of Python with small settings."""
        if "stats" in block.text and "stats" not in self.namespace:
            self.namespace.update(self._a_step())
        exec(self._with_model(smaller(self.page, block.text)), self.namespace)

    def type(self, text: str) -> None:
        """Run a command to its end, which must be a good one."""
        text = self._with_model(text)
        words = shlex.split(text)
        if words[0] == "export":
            self.environment |= dict(word.split("=") for word in words[1:])
        elif words[0] == "torchrun":
            self._two_machines(text)
        elif words[0] == "tensorboard":
            self._serves([*words, "--port", "0"])
        elif words[0] == "rl4lm" and not set(words) & {">", "<"}:
            with self._stand_ins(words) as complete:
                assert _exit_code([*complete[1:], *_small(words[1:])]) == 0, text
        else:
            self._shell(f"{text} {shlex.join(_small(words))}")

    def _with_model(self, text: str) -> str:
        return text.replace(f"{HUB_MODEL}-Instruct", str(self.model)).replace(
            HUB_MODEL, str(self.model)
        )

    @contextlib.contextmanager
    def _stand_ins(self, words: list[str]) -> Any:
        """The words with the addresses of the servers that they ask, while these run."""
        with contextlib.ExitStack() as servers:
            if SERVER in words:
                server = servers.enter_context(self._engine(words))
                words = [server.url if word == SERVER else word for word in words]
            if "--push_to_hub" in words:
                hub = servers.enter_context(self.fixture("hub_server").Hub())
                self.fixture("reach")(hub.url)
            yield words

    def _engine(self, words: list[str]) -> Any:
        named = dict(itertools.pairwise(words))
        model = named.get("--model_name_or_path", "builtin:tiny-arithmetic")
        weights = load_model(open_model(model), dtype="float32", device=torch.device("cpu"))
        return self.fixture("serving").Server(weights.eval(), named.get("--sampler_model", model))

    def _shell(self, line: str) -> None:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self._environment(),
            timeout=SECONDS,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"

    def _environment(self) -> dict[str, str]:
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        inherited = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": programs}
        return {**inherited, **self.environment}

    def _two_machines(self, text: str) -> None:
        """The same command by two launchers, as on two machines."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            line = text.replace(":29500", f":{free.getsockname()[1]}")
        line = f"exec {line} {shlex.join(SHORT)}"
        runs = [
            subprocess.Popen(["bash", "-c", line], cwd=self.folder, env=self._environment())
            for _ in range(2)
        ]
        try:
            assert [run.wait(SECONDS) for run in runs] == [0, 0]
        finally:
            for run in runs:
                run.terminate()

    def _serves(self, words: list[str]) -> None:
        """Start a program that serves until it is stopped, and wait until it says where."""
        with subprocess.Popen(
            words, env=self._environment(), stderr=subprocess.STDOUT, stdout=-1, text=True
        ) as program:
            assert any("http://" in line for line in program.stdout)
            program.terminate()

    def _a_step(self) -> dict[str, Any]:
        """The configuration of a run, and what a callback is given of its step."""
        seen: list[Any] = []
        options = {"max_steps": 1, "prompts_per_step": 2, "max_completion_length": 4}
        config = ReinforceConfig(**options, eval_samples=0, torch_threads=1)
        callback = type(
            "Callback", (), {"on_step_end": lambda self, state, stats: seen.append(stats)}
        )
        ReinforceTrainer(args=config, callbacks=[callback()]).train()
        return {"config": config, "stats": seen[0]}

    def _prepare(self) -> None:
        """The files and runs that the page tells its readers to have."""
        (self.folder / "recipes").symlink_to(ROOT / "recipes")
        (self.folder / ".config/fish/completions").mkdir(parents=True)
        (self.folder / "weak.py").write_text(WEAK, encoding="utf-8")
        write_files("README.md", self.folder)
        self._write_rows(ROWS.get(self.page, ROW))
        for name, options in RUNS.get(self.page, {}).items():
            assert _exit_code(["train", "--output_dir", f"runs/{name}", *options, *SHORT]) == 0

    def _write_rows(self, row: dict[str, Any]) -> None:
        (self.folder / "problems").mkdir()
        for name in ("prompts", "tasks", "problems/train", "problems/test"):
            rows = [json.dumps(row) + "\n"] * 6
            (self.folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
        answered = {"prompt": row.get("prompt", row.get("question")), **row, "completion": "46"}
        (self.folder / "rows.jsonl").write_text(json.dumps(answered) + "\n", encoding="utf-8")


def smaller(page: str, code: str) -> str:
    """A block of Python with small settings."""
    for old, new in SMALLER.get(page, {}).items():
        code = code.replace(old, new)
    return code


def _small(words: list[str]) -> list[str]:
    """The settings to append to a command."""
    if any(word.startswith("recipes/") and word.endswith(".py") for word in words):
        return [*SHORT, "--overwrite_output_dir"]
    small = next((SMALL[word] for word in words[:8] if word in SMALL), [])
    goes_on = "--resume_from_checkpoint" in words
    return [*small, "--overwrite_output_dir"] if small is SHORT and not goes_on else small


def _exit_code(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as end:  # argparse ends the program with its help
        return int(end.code or 0)
