"""Kill one of two processes at random, look how the run ends, let it go on, and compare.

    python tests/e2e/kill_ranks.py [--kills 50] [--seed 0]

A short run is started as a user starts it, by ``accelerate launch``, and one of its two processes
is killed by SIGKILL at a moment drawn at random: while it starts, anywhere, or as soon as a
checkpoint is seen being written. All processes of the run (launcher, processes, workers of rewards)
must be gone within 30 s, with the cause on the screen. Then the same command is given again, and
must end with the weights, log and completions of a run that nothing happened to.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from kill_runs import OPTIONS, being_written, outcome

RECIPES = Path(__file__).parents[2] / "recipes"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
LAUNCH += [str(RECIPES / "accelerate" / "cpu2.yaml"), str(RECIPES / "arithmetic.py")]
PATIENCE_S = 300.0
LIMIT_S = 30.0


class Run:
    """A command that starts several processes; all bear a mark in their environment."""

    def __init__(self, folder: Path, command: list[str], place: Path | None = None) -> None:
        """Start it, in a place; what it says goes to a file beside its folder."""
        self.folder, self.log = folder, folder.with_suffix(".log")
        self.mark = uuid.uuid4().hex
        quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        with self.log.open("ab") as log:
            self.launcher = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, **quiet, "RL4LM_TEST_RUN": self.mark},
                cwd=place,
                start_new_session=True,
            )

    def processes(self) -> dict[int, dict[str, str]]:
        """Every living process of it, with its environment."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            environment = dict(word.partition("=")[::2] for word in words)
            if environment.get("RL4LM_TEST_RUN") == self.mark:
                found[int(entry.name)] = environment
        return found

    def pid(self, rank: int) -> int | None:
        """The process of a rank: the child of the launcher, not what that has started."""
        for pid, environment in self.processes().items():
            if environment.get("RANK") == str(rank) and _parent(pid) == self.launcher.pid:
                return pid
        return None

    def is_over(self) -> bool:
        """Whether nothing of it is left."""
        return self.launcher.poll() is not None and not self.processes()

    def wait(self, limit_s: float = PATIENCE_S) -> float:
        """Seconds until nothing of it is left; infinite where that takes too long."""
        began = time.monotonic()
        while not self.is_over():
            if time.monotonic() - began > limit_s:
                self.end()
                return float("inf")
            time.sleep(0.05)
        return time.monotonic() - began

    def end(self) -> None:
        """Kill all of it, the launcher first, so that it starts nothing more."""
        for pid in sorted(self.processes(), key=lambda pid: pid != self.launcher.pid):
            os.kill(pid, signal.SIGKILL)
        self.launcher.wait()


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def start(folder: Path) -> Run:
    """The run, which goes on from where an earlier one of that folder was cut off."""
    options = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    return Run(folder, [*LAUNCH, "--output_dir", str(folder), *options])


def moments(typical_s: float, rng: random.Random) -> dict[str, Callable[[Run, float], bool]]:
    """When to kill: each says, of a run and its age in seconds, whether it is time."""
    early, anywhere = rng.uniform(0, 0.6 * typical_s), rng.uniform(0, typical_s)
    return {
        "while starting": lambda run, age: age > early,
        "anywhere": lambda run, age: age > anywhere,
        "at a write": lambda run, age: being_written(run.folder),
        "after the first step": lambda run, age: (run.folder / "metrics.jsonl").exists(),
    }


def kill(run: Run, rank: int, due: Callable[[Run, float], bool]) -> int | None:
    """Kill a process of a run when that is due; its id, or None where the run has ended."""
    began = time.monotonic()
    while run.launcher.poll() is None:
        if due(run, time.monotonic() - began) and (pid := run.pid(rank)) is not None:
            os.kill(pid, signal.SIGKILL)
            return pid
        time.sleep(0.001)
    run.wait()
    return None


def who_named(log: str, rank: int, pid: int) -> str:
    """Who has said on the screen which process was lost: the run itself, its launcher, nobody."""
    if re.search(rf"process {rank} (\(pid {pid} on .*\) )?(is|was) gone", log):
        return "named by the run"
    if f"Signal 9 (SIGKILL) received by PID {pid}" in log:
        return "named by the launcher alone"
    return "not named"


class Campaign:
    """Kills of one process of two."""

    def __init__(self, place: Path, rng: random.Random) -> None:
        """Make the undisturbed run."""
        self._place, self._rng = place, rng
        self.counts: Counter[str] = Counter()
        self.seconds: list[float] = []  # from a kill until nothing of the run was left
        self.faults: list[str] = []
        began = time.monotonic()
        whole = start(place / "whole")
        whole.wait()
        self._typical_s = time.monotonic() - began
        if whole.launcher.returncode:
            raise AssertionError(whole.log.read_text()[-3000:])
        self._expected = outcome(whole.folder)

    def run(self, kills: int) -> None:
        """Kill so many runs, both ranks and all kinds of moments in turn."""
        trial = 0
        while len(self.seconds) < kills:
            kinds = moments(self._typical_s, self._rng)
            self._one(self._place / f"run-{trial}", trial % 2, *list(kinds.items())[trial // 2 % 4])
            trial += 1

    def _one(self, folder: Path, rank: int, kind: str, due: Callable[[Run, float], bool]) -> None:
        run = start(folder)
        pid = kill(run, rank, due)
        if pid is None:
            return
        seconds = run.wait()
        self.seconds.append(seconds)
        log = run.log.read_text(errors="replace")
        named = who_named(log, rank, pid)
        self.counts.update([f"rank {rank}", kind, named])
        name = f"{folder.name} (rank {rank} killed {kind}, {seconds:.1f} s)"
        print(name, named, flush=True)
        if seconds > LIMIT_S or named == "not named" or "pair.cc" in log:
            self.faults.append(f"{name}: {named}\n{log[-3000:]}")
        self._go_on(folder, name)

    def _go_on(self, folder: Path, name: str) -> None:
        again = start(folder)
        again.wait()
        if again.launcher.returncode:
            self.faults.append(f"{name} does not go on: {again.log.read_text()[-3000:]}")
        elif outcome(folder) != self._expected:
            self.faults.append(f"{name} came to {outcome(folder)}, not {self._expected}")
        else:
            self.counts["identical"] += 1
            shutil.rmtree(folder)


def main() -> int:
    """Kill, compare, print; 1 where anything was not as it should be."""
    parser = argparse.ArgumentParser(description="Kill one of two processes at random.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rl4lm-ranks-") as place:
        campaign = Campaign(Path(place), random.Random(arguments.seed))
        campaign.run(arguments.kills)
    seconds = sorted(campaign.seconds)
    print(dict(campaign.counts))
    print(f"{len(seconds)} kills; until all had ended: median {seconds[len(seconds) // 2]:.1f} s,")
    print(f"at most {seconds[-1]:.1f} s; {len(campaign.faults)} faults")
    for fault in campaign.faults:
        print(fault)
    return 1 if campaign.faults else 0


if __name__ == "__main__":
    sys.exit(main())
