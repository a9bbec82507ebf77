"""Put what the benchmarks wrote together into one page, benchmarks/RESULTS.md.

    python benchmarks/results.py [--results FOLDER] [--out FILE]

Every `FOLDER/NAME-….json` is handed to `render(payload)` of the benchmark NAME.py, which answers
with a Markdown section; files of benchmarks that render nothing are named at the end. The sections
stand in the order of the benchmarks below, files of one benchmark by name. Seconds.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from measuring import RESULTS

# Benchmark -> heading of its sections, in the order of the page.
HEADINGS = {
    "vs_trl": "Against TRL, step by step",
    "time_to_accuracy": "Against TRL, to the same accuracy",
    "limits": "Against the machine",
    "scaling": "Growth",
    "processes": "Several processes",
    "sandbox_speed": "Programs in the sandbox",
}
OPENING = """# Measurements

Made by `python benchmarks/results.py` from the files in `benchmarks/results`; the benchmarks say in
their first lines what they measure and how to run them again.
"""


def assemble(folder: Path) -> str:
    """The page of all result files in a folder."""
    parts, silent = [OPENING], []
    files = sorted(folder.glob("*.json"))
    for name in [*HEADINGS, *sorted({_benchmark(f) for f in files} - set(HEADINGS))]:
        mine = [file for file in files if _benchmark(file) == name]
        render = _renderer(name) if mine else None
        if render is None:
            silent += mine
            continue
        parts.append(f"## {HEADINGS.get(name, name)}\n")
        parts += [render(json.loads(file.read_text(encoding="utf-8"))) for file in mine]
    for size in ("G", "L"):
        if not any(file.stem.startswith(f"vs_trl-{size}-") for file in files):
            parts.append(
                f"Size {size} of `vs_trl.py` needs a CUDA device and **has not been run**: nothing "
                "here says how fast a GPU is.\n"
            )
    if silent:
        names = ", ".join(f"`{file.name}`" for file in silent)
        parts.append(f"## Further files\n\nWithout a table here: {names}.\n")
    return "\n".join(parts)


def _benchmark(file: Path) -> str:
    return file.stem.split("-")[0]


def _renderer(name: str) -> Callable[[Mapping[str, Any]], str] | None:
    """`render` of a benchmark; None where it has none, or is no longer there.

    The source is looked at first, so that nothing is imported that will not be used.
    """
    source = Path(__file__).parent / f"{name}.py"
    if not source.is_file() or "\ndef render(" not in source.read_text(encoding="utf-8"):
        return None
    render: Callable[[Mapping[str, Any]], str] = importlib.import_module(name).render
    return render


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=RESULTS.parent / "RESULTS.md")
    arguments = parser.parse_args()
    arguments.out.write_text(assemble(arguments.results), encoding="utf-8")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
