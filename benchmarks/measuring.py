"""What the benchmarks share: the machine in words, clocks, peak memory, medians, and JSON files.

Benchmarks run as `python benchmarks/NAME.py`, so that they import this file as `measuring`.
"""

from __future__ import annotations

import json
import os
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
_TELLING = ("MALLOC_", "LD_PRELOAD", "OMP_", "MKL_", "KMP_")  # variables that change speed
PACKAGES = ("rl4lm", "torch", "transformers", "accelerate", "peft", "trl")


def machine() -> dict[str, Any]:
    """Processor, cores, threads of torch, versions and date: what a figure depends on."""
    import torch

    found: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "cores_usable": usable_cores(),
        "memory_gb": round(memory_bytes() / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "torch_threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **versions(PACKAGES)},
        "environment": {k: v for k, v in os.environ.items() if k.startswith(_TELLING)},
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def processor() -> str:
    """The processor's model as the system names it."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int | None:
    """Cores that this process may run on, which `taskset` can make fewer."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def memory_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_results(path: Path, payload: Mapping[str, Any]) -> None:
    """Write what a benchmark found as JSON; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(payload, indent=2, default=str) + "\n", encoding="utf-8")
    print(f"written to {path}")


def peak_rss_bytes() -> int:
    """The most memory of the machine that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rss_bytes() -> int:
    """The memory that this process holds now; its peak where the system does not say."""
    path = Path("/proc/self/statm")
    if not path.is_file():
        return peak_rss_bytes()
    return int(path.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Clock:
    """Wall and processor seconds since it was made; processor time is of all threads here."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Seconds so far."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {"wall_s": wall, "cpu_s": cpu}


class Parts:
    """Seconds by name; the time of a part that runs inside another is taken off the outer one."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._inner = [[0.0, 0.0]]

    def clear(self) -> None:
        """Forget all parts."""
        self.wall, self.cpu = {}, {}

    def wrap(self, owner: Any, method: str, name: str, sync: Any = None) -> None:
        """Book the time of `owner.method` under a name from now on."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.book(name, sync):
                return original(*args, **kwargs)

        setattr(owner, method, timed)

    def book(self, name: str, sync: Any = None) -> _Booking:
        """Book the time of a `with` block under a name; `sync` is called before clocks are read."""
        return _Booking(self, name, sync)

    def enter(self) -> None:
        """A part begins."""
        self._inner.append([0.0, 0.0])

    def leave(self, name: str, wall: float, cpu: float) -> None:
        """A part ends after so many seconds, those of the parts inside it included."""
        inner_wall, inner_cpu = self._inner.pop()
        self.wall[name] = self.wall.get(name, 0.0) + wall - inner_wall
        self.cpu[name] = self.cpu.get(name, 0.0) + cpu - inner_cpu
        self._inner[-1][0] += wall
        self._inner[-1][1] += cpu


class _Booking:
    """The `with` block of `Parts.book`."""

    def __init__(self, parts: Parts, name: str, sync: Any) -> None:
        self._parts, self._name, self._sync = parts, name, sync

    def __enter__(self) -> None:
        if self._sync is not None:
            self._sync()
        self._parts.enter()
        self._clock = Clock()

    def __exit__(self, *error: object) -> None:
        if self._sync is not None:
            self._sync()
        seconds = self._clock.read()
        self._parts.leave(self._name, seconds["wall_s"], seconds["cpu_s"])


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, draws: int = 4000
) -> tuple[float, float]:
    """An interval for the median by resampling (percentile bootstrap), with a fixed seed."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    edge = (1 - level) / 2
    return medians[int(edge * draws)], medians[min(draws - 1, int((1 - edge) * draws))]


def machine_line(found: Mapping[str, Any]) -> str:
    """The machine in one line of Markdown."""
    names = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    threads = found["torch_threads"]
    return (
        f"{found.get('gpu') or found['processor']}, {found['cores_usable']} of {found['cores']} "
        f"cores, {threads} thread{'s' if threads != 1 else ''}; {names}; {found['date']}"
    )
