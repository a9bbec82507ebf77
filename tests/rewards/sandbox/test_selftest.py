"""The start-up self-test: what it accepts, what it refuses and in which words."""

import json
import logging
import os
import subprocess
import sys

import pytest

from rewards.sandbox import Limits, Sandbox, SandboxFailed, SandboxUnavailable, selftest
from rewards.sandbox.__main__ import as_text
from rewards.sandbox.probes import PROBES
from rewards.sandbox.selftest import Finding, problems, run_probes
from rewards.sandbox.worker import Setup, Worker

ON = dict.fromkeys(["seccomp", "landlock", "rlimits", "capabilities", "namespaces"], "on")
LAYERS = {**ON, "files": "on: Landlock"}
STOPPED = [Finding(name, layer, "EPERM") for name, (layer, _) in PROBES.items()]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")


def findings_without(*layers):
    worker = Worker(Setup(Limits(), without=frozenset(layers)))
    try:
        worker.layers()
        return {finding.probe: finding for finding in run_probes(worker, Limits())}
    finally:
        worker.close()


@linux_only
def test_every_probe_is_stopped_with_all_layers_on():
    found = findings_without()
    assert {finding.layer for finding in found.values()} >= {"seccomp", "rlimits", "files"}
    assert all(finding.stopped_by for finding in found.values())


@linux_only
@pytest.mark.parametrize(
    ("without", "layer"),
    [
        (["seccomp", "namespaces", "landlock"], "seccomp"),
        (["rlimits"], "rlimits"),
        (["landlock", "namespaces", "files"], "files"),
    ],
    ids=["seccomp", "rlimits", "files"],
)
def test_every_probe_of_a_layer_gets_through_where_the_layer_is_off(without, layer):
    of_layer = [each for each in findings_without(*without).values() if each.layer == layer]
    # Without the privileges, these two fail with or without a filter.
    telling = [each for each in of_layer if each.probe not in ("bpf", "io_uring")]
    assert telling
    assert [each for each in telling if each.stopped_by is not None] == []


def test_nothing_stands_against_a_machine_with_every_layer():
    assert problems(LAYERS, STOPPED) == []


@pytest.mark.parametrize("layer", ["seccomp", "files", "rlimits", "capabilities"])
def test_a_mandatory_layer_that_is_off_is_named_with_why_and_a_remedy(layer):
    (problem,) = problems({**LAYERS, layer: "off: Function not implemented"}, STOPPED)
    assert problem.startswith(f"{layer} is off: Function not implemented: ")
    assert len(problem) > 80


@pytest.mark.parametrize("layer", ["landlock", "namespaces"])
def test_a_layer_that_others_replace_may_be_off(layer):
    assert problems({**LAYERS, layer: "off: not permitted"}, STOPPED) == []


@pytest.mark.parametrize("name", sorted(PROBES))
def test_one_probe_that_gets_through_is_enough_to_refuse(name):
    layer = PROBES[name][0]
    findings = [f if f.probe != name else Finding(name, layer, None) for f in STOPPED]
    (problem,) = problems(LAYERS, findings)
    assert name in problem
    assert problem.startswith(layer)


def test_a_container_needs_no_filter_but_still_its_limits():
    off = {**LAYERS, "seccomp": "off: x", "files": "off: x"}
    assert problems(off, STOPPED, "container") == []
    assert problems({**off, "rlimits": "off: x"}, STOPPED, "container") != []


@linux_only
@pytest.mark.parametrize(
    ("isolation", "refused"),
    [("sandbox", True), ("container", False)],
    ids=["sandbox", "container"],
)
def test_a_machine_without_seccomp_is_refused_unless_it_is_a_container(
    monkeypatch, caplog, isolation, refused
):
    real = Worker.layers
    monkeypatch.setattr(
        Worker, "layers", lambda self: {**real(self), "seccomp": "off: Function not implemented"}
    )
    if refused:
        with pytest.raises(SandboxUnavailable, match=r"seccomp is off.*isolation='container'"):
            Sandbox(1, isolation=isolation)
        return
    with caplog.at_level(logging.WARNING), Sandbox(1, isolation=isolation):
        pass
    (warning,) = caplog.messages
    assert "Only the container" in warning


@linux_only
def test_a_sandbox_that_is_refused_leaves_no_server(monkeypatch):
    made = []
    real = Worker.__init__
    monkeypatch.setattr(
        Worker, "__init__", lambda self, setup: (made.append(self), real(self, setup))[1]
    )
    monkeypatch.setattr(selftest, "problems", lambda *given: ["the reason"])
    monkeypatch.setattr("rewards.sandbox.pool._tested", set())
    with pytest.raises(SandboxUnavailable, match="the reason"):
        Sandbox(2)
    assert len(made) == 2
    assert all(worker.process.returncode is not None for worker in made)


@linux_only
def test_the_self_test_runs_once_per_process(monkeypatch):
    runs = []
    real = selftest.run_probes
    monkeypatch.setattr("rewards.sandbox.pool._tested", set())
    monkeypatch.setattr(selftest, "run_probes", lambda *given: (runs.append(1), real(*given))[1])
    for _ in range(3):
        Sandbox(1).close()
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("platform", "remedy"), [("darwin", "Colima"), ("win32", "WSL2"), ("freebsd14", "Linux")]
)
def test_other_systems_are_refused_with_the_way_out(monkeypatch, platform, remedy):
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(SandboxUnavailable, match=f"{platform}.*{remedy}"):
        Sandbox(1)


def test_other_architectures_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(SandboxUnavailable, match="riscv64"):
        Sandbox(1)


@linux_only
def test_a_server_that_cannot_start_is_unavailable_with_its_last_words(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('no such luck')")
    with pytest.raises(SandboxUnavailable, match="no such luck"):
        Sandbox(1, _runner=str(broken))


@linux_only
@pytest.mark.parametrize("interpreter", ["", "/nonexistent/python"])
def test_an_interpreter_that_cannot_be_started_is_named(monkeypatch, interpreter):
    monkeypatch.setattr(sys, "executable", interpreter)
    with pytest.raises(SandboxUnavailable, match=interpreter or "sys.executable is empty"):
        Sandbox(1)


@linux_only
def test_a_run_that_cannot_be_confined_is_a_failure_and_never_a_score(tmp_path, monkeypatch):
    monkeypatch.setattr("rewards.sandbox.pool._tested", set())
    runner = tmp_path / "sabotage.py"
    runner.write_text(
        "from rewards.sandbox.confinement import Confinement\n"
        "def apply(self, cpu_seconds):\n    raise OSError(1, 'not this time')\n"
        "Confinement.apply = apply\n"
        "def main(rpc):\n    open(rpc, 'wb').write(b'1\\n')\n    return 0\n"
    )

    def judge(runner, item):
        with runner.start(b"") as session:
            return session.ask(b"1")

    with (
        Sandbox(1, _runner=str(runner), _without=frozenset({"namespaces"})) as sandbox,
        pytest.raises(SandboxFailed, match="not this time"),
    ):
        sandbox.map(judge, [None])
    with pytest.raises(SandboxUnavailable, match="not this time"):
        Sandbox(1, _runner=str(runner))


@linux_only
@pytest.mark.parametrize("arguments", [["--json"], []], ids=["json", "text"])
def test_the_command_prints_layers_and_probes_and_says_whether_it_is_usable(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "rewards.sandbox", "--self-test", *arguments],
        capture_output=True,
        text=True,
        cwd=os.getcwd(),
    )
    assert done.returncode == 0, done.stderr
    if arguments:
        report = json.loads(done.stdout)
        assert report["usable"] is True
        assert set(report["layers"]) == set(LAYERS)
        assert {probe["probe"] for probe in report["probes"]} == set(PROBES)
    else:
        assert done.stdout.count("stopped: ") == len(PROBES)
        assert done.stdout.endswith("programs can be confined here\n")


def test_the_text_of_a_refusal_shows_what_got_through():
    finding = {"probe": "fork", "layer": "seccomp", "stopped_by": None}
    text = as_text({"usable": False, "layers": ON, "probes": [finding], "problems": ["why"]})
    assert "NOT STOPPED" in text
    assert text.endswith("problem  why\nREFUSED")
