"""Let the programs of `tests/attacks` loose, and print what became of each as a line of JSON.

    python attack_range.py [--without seccomp,landlock] [--only files] [--folder honest] ...

A process of its own, so that the damage of a program that nothing stops ends with it. Needs the
standard library and `rewards` only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[2]
ATTACKS = PROJECT / "tests" / "attacks"
sys.path[:0] = [str(PROJECT), str(HERE)]
sys.dont_write_bytecode = True

from attack_world import World  # noqa: E402, by the path above

# By the path above.
from rewards.grading.extraction import readings  # noqa: E402
from rewards.grading.judging import Submission, Verdict, judge  # noqa: E402
from rewards.grading.row_tasks import unit_tests_row  # noqa: E402
from rewards.sandbox import Ended, Limits, Runner, Sandbox, SandboxFailed, worker  # noqa: E402

_GRACE = 1.0  # seconds beyond a program's limit
_PARENT_CPU = 1.0  # seconds
_SETTLING = 0.02  # seconds that a dead child needs to be gone


@dataclass(frozen=True)
class Attack:
    """A program, and what is to become of it."""

    name: str
    task: dict[str, Any]
    reward: str  # "0", "1" or "any"
    layer: str  # what stops it, "" if the verdict does
    seconds: float | None
    source: str


def read_attacks(folders: Sequence[str], names: dict[str, str]) -> Iterator[Attack]:
    """All programs of some folders, with the places of a world in them."""
    tasks = json.loads((ATTACKS / "tasks.json").read_text())
    prelude = (ATTACKS / "host" / "prelude.py").read_text()
    for path in sorted(path for folder in folders for path in (ATTACKS / folder).glob("*.*")):
        if path.name != "prelude.py":
            header, source = _parted(path.read_text(encoding="utf-8"))
            source = prelude + source if path.parent.name == "host" else source
            for mark, text in names.items():
                source = source.replace(mark, text)
            yield Attack(
                f"{path.parent.name}/{path.stem}",
                tasks[header["task"]],
                header["reward"],
                header.get("layer", ""),
                float(header["seconds"]) if "seconds" in header else None,
                source,
            )


def _parted(text: str) -> tuple[dict[str, str], str]:
    header: dict[str, str] = {}
    lines = text.split("\n")
    while lines and lines[0].startswith("# "):
        key, _, value = lines.pop(0)[2:].partition(": ")
        header.setdefault(key, value)
    return header, "\n".join(lines[1:])


class Watched:
    """A runner whose sessions keep what the program wrote; and the limits of this program."""

    def __init__(self, runner: Runner, seconds: float | None) -> None:
        self._runner, self._seconds = runner, seconds
        self._sessions: list[Any] = []

    def start(self, job: bytes, stdin: bytes = b"") -> Any:
        session = self._runner.start(job, stdin, self._seconds)
        self._sessions.append(session)
        close = session.close

        def close_after_reading() -> None:
            if not session._closed:
                with contextlib.suppress(Ended):
                    session._pipes.drain()
            close()

        session.close = close_after_reading
        return session

    def written(self) -> list[bytes]:
        return [session._pipes.stdout + session._pipes.stderr for session in self._sessions]


class Range:
    """A world, a sandbox with one worker, and the judge."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.world = World()
        self._options = options
        self._without = frozenset(filter(None, options.without.split(",")))
        self._limits = Limits(output_bytes=options.output_bytes)
        self._box = Sandbox(1, self._limits, _without=self._without)
        self._peaks: list[int] = []
        self._logged: list[str] = []
        self._watch_memory_and_logs()
        names = self.world.names(PROJECT)
        self.attacks = list(read_attacks(options.folder, names))
        (self._honest,) = (a for a in read_attacks(["honest"], names) if a.name == "honest/plain")
        self._run(self._honest)
        self.world.settle()
        self.world.damage()

    def _watch_memory_and_logs(self) -> None:
        ask = worker.Worker.request

        def request(self: Any, message: Any, descriptors: Any = ()) -> Any:
            answer = ask(self, message, descriptors)
            peaks.append(answer[0].get("memory", 0))
            return answer

        peaks = self._peaks
        worker.Worker.request = request
        handler = logging.Handler()
        handler.emit = lambda record: self._logged.append(record.getMessage())
        logging.getLogger().addHandler(handler)
        warnings.showwarning = lambda message, *rest: self._logged.append(str(message))

    @property
    def layers(self) -> dict[str, str]:
        """What confines the programs."""
        return dict(self._box.layers)

    def can_stop(self, attack: Attack) -> bool:
        """Whether this machine has what stops an attack, or had it before it was left out."""
        has_it = self.layers.get(attack.layer, "on") in ("on", "off: left out")
        return attack.layer != "namespaces" or has_it

    def report(self, attack: Attack) -> dict[str, Any]:
        """Run an attack, then an honest program; what was wrong with it all."""
        self._peaks.clear()
        self._logged.clear()
        began, began_cpu = time.monotonic(), time.process_time()
        verdict, written = self._run(attack)
        took, cpu = time.monotonic() - began, time.process_time() - began_cpu
        faults = [*self._about(attack, verdict, written), *self._logged]
        limit = (attack.seconds or self._limits.seconds) * len(written) + _GRACE
        if took > limit:
            faults.append(f"took {took:.1f} s")
        if cpu > _PARENT_CPU:
            faults.append(f"{cpu:.1f} s of the judge's time")
        time.sleep(_SETTLING if self._strayed(faults) else 0)
        faults += self.world.damage()
        honest, _ = self._run(self._honest)
        if honest is None or honest.reward != 1:
            faults.append(f"the next honest program: {honest}")
        told = "lost" if verdict is None else verdict.reason
        return {"name": attack.name, "layer": attack.layer, "faults": faults, "reason": told}

    def _strayed(self, faults: list[str]) -> bool:
        return bool(faults) or bool(self._without)

    def _about(
        self, attack: Attack, verdict: Verdict | None, written: list[bytes]
    ) -> Iterator[str]:
        if verdict is None:
            yield "the sandbox failed"
        elif attack.reward != "any" and verdict.reward != float(attack.reward):
            yield f"reward {verdict.reward}: {verdict.reason}"
        for output in written:
            if b"REACHED" in output:
                yield output[output.index(b"REACHED") :][:80].decode("utf-8", "replace")
            if len(output) > 3 * Limits().output_bytes:
                yield f"{len(output)} bytes of output were kept"
        if max(self._peaks, default=0) > self._limits.memory_bytes:
            yield f"{max(self._peaks) >> 20} MiB"

    def _run(self, attack: Attack) -> tuple[Verdict | None, list[bytes]]:
        """The verdict (None: the sandbox failed), and what each process of the program wrote."""
        task = unit_tests_row({"tests": attack.task})
        seconds = self._options.seconds or attack.seconds
        submission = Submission(
            readings(attack.source, task.opening), task.task, share=self._options.share
        )
        watched: list[Watched] = []

        def judged(runner: Runner, item: Submission) -> Verdict:
            watched.append(Watched(runner, seconds))
            return judge(watched[-1], item)

        verdict = None
        try:
            (verdict,) = self._box.map(judged, [submission])
        except SandboxFailed as failed:
            self._logged.append(str(failed))
        return verdict, [output for one in watched for output in one.written()]

    def close(self) -> None:
        """End the sandbox and remove the world."""
        self._box.close()
        self.world.close()


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without", default="", help="layers to leave out")
    parser.add_argument("--only", default="", help="one program, or those that a layer stops")
    parser.add_argument("--folder", action="append", help="host, verdict, completions or honest")
    parser.add_argument("--share", action="store_true", help="the share of the tests that pass")
    parser.add_argument("--seconds", type=float, default=None, help="of every program")
    parser.add_argument("--output-bytes", type=int, default=Limits().output_bytes)
    options = parser.parse_args()
    options.folder = options.folder or ["host", "verdict", "completions", "honest"]
    field = Range(options)
    try:
        print(json.dumps({"layers": field.layers, "uid": os.getuid()}), flush=True)
        for attack in field.attacks:
            asked = not options.only or options.only in (attack.layer, attack.name)
            if asked and field.can_stop(attack):
                print(json.dumps(field.report(attack)), flush=True)
    finally:
        field.close()


if __name__ == "__main__":
    main()
