"""Does this machine confine a program? Found out by trying, before the first reward.

`require` refuses unless every mandatory layer is on and has stopped the probes it is there for.
`python -m rewards.sandbox --self-test` prints the same, layer by layer and probe by probe.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from rewards.sandbox import boot
from rewards.sandbox.errors import Ended, RunLost, SandboxFailed, SandboxUnavailable
from rewards.sandbox.limits import Limits
from rewards.sandbox.session import Session, Start
from rewards.sandbox.syscalls import this_architecture
from rewards.sandbox.worker import Worker

# What a run is never without; "files" is Landlock, a mount namespace, or nothing to open.
_MANDATORY = {
    "sandbox": ("seccomp", "files", "rlimits", "capabilities", "process"),
    "container": ("rlimits", "capabilities", "process"),
}
_PROBE_SECONDS = 10.0
_CONTAINER_REMEDY = (
    "if this whole process is in a throw-away container or VM already, "
    "Sandbox(isolation='container') accepts that"
)
_REMEDIES = {
    "seccomp": "run on a kernel with CONFIG_SECCOMP_FILTER and, in a container, under a profile "
    "that allows seccomp(2) (Docker's and Podman's defaults do); " + _CONTAINER_REMEDY,
    "files": "use a kernel with Landlock (Linux 5.13 and lsm=landlock) or one that allows user "
    "namespaces; " + _CONTAINER_REMEDY,
    "rlimits": "raise the hard limits of this shell or service above the sandbox's "
    "(ulimit -Ha), or lower Limits",
    "capabilities": "start the training as an ordinary user",
    "process": "report this as a bug of rewards.sandbox",
}


@dataclass(frozen=True)
class Finding:
    """One probe: the layer that must stop it, and what did (None: nothing)."""

    probe: str
    layer: str
    stopped_by: str | None


def check_platform() -> None:
    """Refuse systems that the sandbox has no layers for.

    Raises:
        SandboxUnavailable: Not Linux, or neither x86_64 nor aarch64.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailable(
            f"programs can only be confined on Linux, and this is {sys.platform}. On macOS train "
            "in a Linux container or VM (Docker, Colima or Lima); on Windows in WSL2"
        )
    if this_architecture() is None:
        raise SandboxUnavailable(
            f"the sandbox knows the system calls of x86_64 and aarch64, and this machine is "
            f"{platform.machine()}. Run it in a container or VM of one of those, such as Docker"
        )


def run_probes(worker: Worker, limits: Limits) -> list[Finding]:
    """Try every probe in one confined child of `worker`.

    Raises:
        SandboxUnavailable: The child did not answer.
    """
    # Imported here: the probes need ctypes, which the parent otherwise does without.
    from rewards.sandbox.probes import PROBES

    with tempfile.NamedTemporaryFile() as canary:
        facts = {
            "canary": canary.name,
            "parent": os.getpid(),
            "memory_bytes": limits.memory_bytes,
            "open_files": limits.open_files,
            "environment": list(boot.environment()),
        }
        job = json.dumps(facts).encode()
        try:
            start = Start(job, b"", _PROBE_SECONDS, entry="probes")
            with Session(worker, limits, start) as session:
                answers = json.loads(session.ask(b""))
        except (Ended, RunLost, SandboxFailed) as failure:
            raise SandboxUnavailable(
                f"the self-test's child did not answer: {failure}"
            ) from failure
    return [Finding(name, layer, answers[name]) for name, (layer, _) in PROBES.items()]


def problems(
    layers: Mapping[str, str], findings: list[Finding], isolation: str = "sandbox"
) -> list[str]:
    """Return what stands against running programs here, each with its remedy; [] if nothing."""
    mandatory = _MANDATORY[isolation]
    found = [
        f"{layer} is {state}: {_REMEDIES[layer]}"
        for layer, state in layers.items()
        if layer in mandatory and not state.startswith("on")
    ]
    found += [
        f"{finding.layer} did not stop a program that tries to {finding.probe}: "
        f"{_REMEDIES[finding.layer]}"
        for finding in findings
        if finding.layer in mandatory and finding.stopped_by is None
    ]
    return found


def require(worker: Worker, limits: Limits, layers: Mapping[str, str], isolation: str) -> None:
    """Refuse to go on unless programs are confined.

    Raises:
        SandboxUnavailable: A mandatory layer is off or did not stop its probes.
    """
    found = problems(layers, run_probes(worker, limits), isolation)
    if found:
        raise SandboxUnavailable("programs cannot be confined here. " + ". ".join(found))
