"""How many answers a second the sandbox judges, and what one costs.

    python benchmarks/sandbox_speed.py [--answers 800] [--repeats 3] [--cores 1 2] [--out FILE]

An answer is a right program with eight tests: eight calls in one process (`call`), eight asserts
that run in a second process (`assert`), or eight runs with their own standard input (`stdio`).
All programs differ, so none is judged twice. Processor time is that of this process, of the servers
and of all their children, from /proc; unlike the answers per second it does not depend much on what
else the machine is doing. Linux only.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from measuring import RESULTS, machine, machine_line, summary, write_results

from rewards.grading.judging import Submission, judge
from rewards.grading.task_forms import Task, read_task
from rewards.sandbox import Sandbox

TESTS = 8
ASKED = 200  # answers of the kind `call` per second of one free core
FUNCTION = "def add(a, b):\n    return a + b\n"
SCRIPT = "a, b = map(int, input().split())\nprint(a + b)\n"


def kinds() -> dict[str, tuple[str, Task]]:
    """Name -> a right program and its task of eight tests."""
    calls = [{"args": [n, 2], "expected": n + 2} for n in range(TESTS)]
    runs = [{"stdin": f"{n} 2\n", "stdout": f"{n + 2}\n"} for n in range(TESTS)]
    # Not of the form `f(...) == literal`: such asserts are judged as calls.
    asserts = "".join(f"assert add({n}, 2) in [{n + 2}]\n" for n in range(TESTS))
    return {
        "call": (FUNCTION, read_task({"kind": "call", "entry": "add", "tests": calls})),
        "assert": (FUNCTION, read_task({"kind": "assert", "entry": "add", "tests": asserts})),
        "stdio": (SCRIPT, read_task({"kind": "stdio", "tests": runs})),
    }


def measure(sandbox: Sandbox, program: str, task: Task, answers: int) -> dict[str, float]:
    """Answers per second and processor milliseconds of one, over so many answers."""
    items = [Submission(f"{program}# {number}\n", task) for number in range(answers)]
    warm = sandbox.map(judge, items[:10])
    cpu, wall = _cpu_seconds(), time.perf_counter()
    verdicts = sandbox.map(judge, items)
    wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
    if any(verdict.reward != 1.0 for verdict in [*warm, *verdicts]):
        raise RuntimeError("a right program was not given 1")
    return {"answers_per_s": answers / wall, "cpu_ms": 1000 * cpu / answers}


def _cpu_seconds() -> float:
    """Processor time of this process and its descendants, with those that have ended."""
    ticks = os.sysconf("SC_CLK_TCK")
    # Fields 14 to 17 of stat: user and system time, own and of children that were waited for.
    fields = [_stat(process) for process in _descendants(os.getpid())]
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)  # servers are replaced now and then
    here = time.process_time() + ended.ru_utime + ended.ru_stime
    return here + sum(sum(map(int, field[11:15])) for field in fields) / ticks


def _descendants(root: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (field := _stat(int(name))):
            children.setdefault(int(field[1]), []).append(int(name))
    unseen = [root]
    while unseen:
        found = children.get(unseen.pop(), [])
        unseen += found
        yield from found


def _stat(process: int) -> list[str]:
    """The fields of /proc/PID/stat from the third one on; none if the process is gone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def run(cores: int, answers: int, repeats: int) -> dict[str, Any]:
    """Measure every kind on so many cores; medians, smallest and largest of the repeats."""
    usable = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, usable[:cores])  # the servers inherit it
    try:
        with Sandbox(cores) as sandbox:
            found = {
                name: [
                    measure(sandbox, *kind, answers // (TESTS if name == "stdio" else 1))
                    for _ in range(repeats)
                ]
                for name, kind in kinds().items()
            }
            layers = dict(sandbox.layers)
    finally:
        os.sched_setaffinity(0, usable)
    return {
        "cores": cores,
        "layers": layers,
        "kinds": {
            name: {key: summary([each[key] for each in runs]) for key in runs[0]}
            for name, runs in found.items()
        },
    }


def render(payload: Mapping[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        machine_line(payload["machine"]) + f"; load {payload['load']:.1f} before the start",
        "",
        "| answer of 8 tests | cores | answers/s | CPU-ms each | answers/s of a free core |",
        "|---|---|---|---|---|",
    ]
    for found in payload["runs"]:
        for name, figures in found["kinds"].items():
            speed, cost = figures["answers_per_s"], figures["cpu_ms"]
            lines.append(
                f"| {name} | {found['cores']} | {speed['median']:.0f} "
                f"({speed['low']:.0f} to {speed['high']:.0f}) | {cost['median']:.1f} "
                f"({cost['low']:.1f} to {cost['high']:.1f}) | {1000 / cost['median']:.0f} |"
            )
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, print the table and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--answers", type=int, default=800)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "sandbox_speed.json")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    runs = [run(cores, arguments.answers, arguments.repeats) for cores in arguments.cores]
    payload = {"machine": machine(), "load": load, "asked_per_s": ASKED, "runs": runs}
    print(render(payload))
    call = statistics.median(found["kinds"]["call"]["cpu_ms"]["median"] for found in runs)
    print(f"asked: {ASKED} answers of the kind call per second of one free core: {1000 / call:.0f}")
    write_results(arguments.out, payload)


if __name__ == "__main__":
    main()
