"""Kill runs at random, let them go on, and compare what they come to with an undisturbed run.

    python tests/e2e/kill_runs.py [--kills 200] [--cold 30] [--pairs 40] [--seed 0]

A short run is started with ``resume_from_checkpoint=true`` and killed by SIGKILL: at a moment drawn
at random, or as soon as a checkpoint is seen being written. It is started and killed a few times
more, then left alone. It must end, with the very weights, log and completions of a run that nothing
happened to. Most runs are forked from this process, which has imported everything; --cold of the
kills hit a command line that was started afresh, --pairs of them one or both of two processes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPTIONS: dict[str, Any] = {
    "prompts_per_step": 4,
    "num_generations": 4,
    "max_completion_length": 5,
    "max_steps": 8,
    "save_steps": 1,
    "save_total_limit": 2,
    "eval_steps": 4,
    "eval_samples": 4,
    "learning_rate": 1e-3,
    "torch_threads": 1,
    "resume_from_checkpoint": "true",
}
PATIENCE_S = 120.0
Start = Callable[[Path], list[int]]  # starts a run in a folder; ids of its processes


def train(folder: Path) -> None:
    """The run, in this process."""
    from rl4lm import ReinforceConfig, ReinforceTrainer
    from rl4lm.screen.console import Screen

    config = ReinforceConfig(output_dir=str(folder), **OPTIONS)
    trainer = ReinforceTrainer(args=config, screen=Screen(quiet=True))
    trainer.train()
    trainer.world.close()


def forked(folder: Path, **environment: str) -> int:
    """`train` in a child that has everything imported already; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        os.environ |= environment
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        train(folder)
        code = 0
    finally:
        os._exit(code)


def alone(folder: Path) -> list[int]:
    """One process."""
    return [forked(folder)]


def pair(folder: Path) -> list[int]:
    """Two processes that reduce their gradients over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    return [forked(folder, RANK=r, LOCAL_RANK=r, **common) for r in ("0", "1")]


def cold(folder: Path) -> list[int]:
    """The command line, started afresh."""
    options = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "rl4lm", "train", "--output_dir", str(folder), *options]
    with folder.with_suffix(".log").open("ab") as log:
        return [subprocess.Popen(command, stdout=log, stderr=log, process_group=0).pid]


def ended(process: int) -> int | None:
    """The exit code of a child that has ended, negative after a signal; None while it runs."""
    done, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def wait(processes: list[int]) -> list[int]:
    """Exit codes, when all have ended; those that take too long are killed."""
    codes: dict[int, int] = {}
    until = time.monotonic() + PATIENCE_S
    while len(codes) < len(processes):
        for process in set(processes) - codes.keys():
            code = ended(process)
            if code is not None:
                codes[process] = code
            elif time.monotonic() > until:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.002)
    return [codes[process] for process in processes]


def being_written(folder: Path) -> bool:
    """Whether a checkpoint, or the weights at the end, are half written now."""
    return any(folder.glob("*.partial"))


def kill(processes: list[int], folder: Path, rng: random.Random, typical_s: float) -> str | None:
    """Kill a run at a moment drawn at random; says in what state, None if it ended before."""
    at_a_write = rng.random() < 0.4
    due = time.monotonic() + rng.uniform(0, typical_s)
    while True:
        if at_a_write and time.monotonic() > due - typical_s / 2 and being_written(folder):
            time.sleep(rng.uniform(0, 0.004))
            break
        if not at_a_write and time.monotonic() > due:
            break
        # Not reaped here: a process id that is free again must not be killed.
        if all(os.waitid(os.P_PID, p, os.WEXITED | os.WNOHANG | os.WNOWAIT) for p in processes):
            wait(processes)
            return None
        time.sleep(0.0005)
    for process in processes if rng.random() < 0.7 else processes[-1:]:
        os.kill(process, signal.SIGKILL)
    wait(processes)
    return "in the middle of a write" if being_written(folder) else "elsewhere"


def outcome(folder: Path) -> dict[str, str]:
    """What a run came to, but for times and memory."""
    found = {"weights": _hash((folder / "model" / "model.safetensors").read_bytes())}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [
        {k: v for k, v in r.items() if k[:5] != "time/" and k != "tokens_per_second"} for r in rows
    ]
    found["metrics"] = _hash(json.dumps(timeless).encode())
    found["evaluations"] = _hash((folder / "eval.jsonl").read_bytes())
    pages = sorted((folder / "completions").iterdir())
    found["completions"] = _hash(b"".join(page.read_bytes() for page in pages))
    return found


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


class Campaign:
    """Kills of one kind of run."""

    def __init__(self, name: str, start: Start, place: Path, rng: random.Random) -> None:
        """Make the undisturbed run."""
        self.name, self._start, self._place, self._rng = name, start, place, rng
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        began = time.monotonic()
        codes = wait(start(place / f"{name}-whole"))
        self._typical_s = time.monotonic() - began
        if any(codes):
            raise AssertionError((place / f"{name}-whole.log").read_text()[-2000:])
        self._expected = outcome(place / f"{name}-whole")

    def run(self, kills: int) -> None:
        """Kill runs until so many kills have hit one."""
        trial = 0
        while self.counts["kills"] < kills:
            self._one(self._place / f"{self.name}-{trial}", self._rng.randint(1, 4))
            trial += 1

    def _one(self, folder: Path, kills: int) -> None:
        for _ in range(kills):
            state = kill(self._start(folder), folder, self._rng, self._typical_s)
            if state is None:
                break
            self.counts["kills"] += 1
            self.counts[state] += 1
        codes = wait(self._start(folder))
        self.counts["runs"] += 1
        log = folder.with_suffix(".log")
        if any(codes):
            self.faults.append(f"{folder.name} ended with {codes}: {log.read_text()[-1500:]}")
        elif outcome(folder) != self._expected:
            self.faults.append(f"{folder.name} came to {outcome(folder)}, not {self._expected}")
        else:
            self.counts["identical"] += 1
            shutil.rmtree(folder)
            log.unlink()


def left_over() -> list[str]:
    """Workers of rewards whose run is gone."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if "rl4lm.rewarding.worker" in command and parent == 1:
            found.append(f"{entry.name}: {command}")
    return found


def main() -> int:
    """Kill, compare, print; 1 where any run came to something else."""
    parser = argparse.ArgumentParser(description="Kill runs at random and let them go on.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--cold", type=int, default=30, help="of them at a fresh command line")
    parser.add_argument("--pairs", type=int, default=40, help="of them at two processes")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    import rl4lm.trainer  # noqa: F401 -- before the forks; nothing is computed here
    from rl4lm.commandline.commands import quiet_libraries

    quiet_libraries()
    rng = random.Random(arguments.seed)
    rest = arguments.kills - arguments.cold - arguments.pairs
    plans = (
        ("alone", alone, rest),
        ("pair", pair, arguments.pairs),
        ("cold", cold, arguments.cold),
    )
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="rl4lm-kills-") as place:
        for name, start, kills in plans:
            if kills <= 0:
                continue
            campaign = Campaign(name, start, Path(place), rng)
            campaign.run(kills)
            print(f"{name}: {dict(campaign.counts)}", flush=True)
            faults += campaign.faults
    time.sleep(2)
    faults += [f"left over: {process}" for process in left_over()]
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
