"""`python -m rewards.sandbox --self-test [--json]`: what confines a program on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from rewards.sandbox import selftest
from rewards.sandbox.errors import SandboxUnavailable
from rewards.sandbox.limits import Limits
from rewards.sandbox.worker import Setup, Worker


def examine() -> dict[str, object]:
    """Return the layers, the probes and the problems of this machine."""
    limits = Limits()
    try:
        selftest.check_platform()
        worker = Worker(Setup(limits))
        try:
            layers = worker.layers()
            findings = selftest.run_probes(worker, limits)
        finally:
            worker.close()
    except SandboxUnavailable as refusal:
        return {"usable": False, "layers": {}, "probes": [], "problems": [str(refusal)]}
    found = selftest.problems(layers, findings)
    probes = [asdict(finding) for finding in findings]
    return {"usable": not found, "layers": layers, "probes": probes, "problems": found}


def as_text(report: dict[str, object]) -> str:
    """Return the report as lines for a terminal."""
    layers, probes, problems = report["layers"], report["probes"], report["problems"]
    lines = []
    if isinstance(layers, dict):
        lines += [f"layer  {name:<13} {state}" for name, state in sorted(layers.items())]
    if isinstance(probes, list):
        for probe in probes:
            outcome = f"stopped: {probe['stopped_by']}" if probe["stopped_by"] else "NOT STOPPED"
            lines.append(f"probe  {probe['layer']:<10} {probe['probe']:<32} {outcome}")
    if isinstance(problems, list):
        lines += [f"problem  {problem}" for problem in problems]
    lines.append("programs can be confined here" if report["usable"] else "REFUSED")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the self-test; the exit code is 0 if programs can be confined here, else 1."""
    parser = argparse.ArgumentParser(prog="python -m rewards.sandbox", description=__doc__)
    parser.add_argument("--self-test", action="store_true", required=True, help="run and print it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    report = examine()
    sys.stdout.write((json.dumps(report) if options.json else as_text(report)) + "\n")
    return 0 if report["usable"] else 1


if __name__ == "__main__":
    sys.exit(main())
