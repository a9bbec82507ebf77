"""The programs of `tests/attacks`: none harms the machine, and none gets what it did not earn.

`attack_range.py` runs them, in a process of its own, and says what each did. With a layer off it
has to say that the programs of this layer got through, or it sees nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ATTACKS = HERE.parents[1] / "attacks"
NAMES = sorted(
    f"{path.parent.name}/{path.stem}"
    for path in ATTACKS.glob("*/*.*")
    if path.suffix in (".py", ".md") and path.stem != "prelude"
)
NEEDS_NAMESPACES = "host/look_at_host_files"  # run only where there are any
NOBODY = 65534
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")


def let_loose(*options: str, python: str = sys.executable, **settings) -> dict[str, list[str]]:
    """What each program did, by its name: [] if it did nothing."""
    done = subprocess.run(
        [python, str(HERE / "attack_range.py"), *options],
        capture_output=True,
        text=True,
        cwd="/",
        timeout=280,
        **settings,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, *reports = map(json.loads, done.stdout.splitlines())
    assert first["uid"] == settings.get("user", os.getuid())
    return {report["name"]: report["faults"] for report in reports}


@pytest.fixture(scope="module")
def deeds():
    return let_loose()


@pytest.mark.parametrize("name", NAMES)
def test_a_program_gets_what_it_earned_and_harms_nothing(deeds, name):
    if name == NEEDS_NAMESPACES and name not in deeds:
        pytest.skip("no namespaces can be made here")
    assert deeds[name] == []


def python_for(user: int) -> str:
    """An interpreter that another user may start; the tests' own may be in somebody's home."""
    asked = "import sys; sys.exit(sys.version_info < (3, 10))"
    for python in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        if python is not None:
            try:
                command = [python, "-c", asked]
                subprocess.run(command, user=user, group=user, extra_groups=[], check=True, cwd="/")
            except (OSError, subprocess.SubprocessError):
                continue
            return python
    pytest.skip("no interpreter that an ordinary user may start")


def as_nobody(*options: str) -> dict[str, list[str]]:
    if os.getuid() != 0:
        pytest.skip("only root may become somebody else; the other tests have run as this user")
    settings = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    return let_loose(*options, python=python_for(NOBODY), **settings)


def harmful(deeds: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: faults for name, faults in deeds.items() if faults}


def test_an_ordinary_user_is_as_safe_as_root():
    deeds = as_nobody("--folder", "host", "--folder", "honest")
    assert harmful(deeds) == {}
    ours = {name for name in NAMES if name.startswith(("host/", "honest/"))}
    assert ours - {NEEDS_NAMESPACES} <= set(deeds) <= ours


# Layer -> layers that would stop some of the same programs and are left out too, in both halves.
COMPANIONS = {
    "seccomp": ["namespaces", "landlock", "rlimits"],
    "files": ["namespaces", "landlock"],
    "rlimits": [],
    "capabilities": ["seccomp", "namespaces", "landlock"],
    "namespaces": [],
}


@pytest.mark.parametrize("layer", COMPANIONS)
def test_with_a_layer_off_its_programs_are_noticed_and_with_it_on_they_are_not(layer):
    if layer == "capabilities" and os.getuid() != 0:
        pytest.skip("an ordinary user has no capabilities to drop")
    companions = COMPANIONS[layer]
    options = ("--folder", "host", "--only", layer, "--without")
    on = let_loose(*options, ",".join(companions))
    if layer == "namespaces" and not on:
        pytest.skip("no namespaces can be made here")
    assert harmful(on) == {}
    off = let_loose(*options, ",".join([*companions, layer]))
    assert on.keys() == off.keys()
    assert off
    assert set(off) - set(harmful(off)) == set()


def test_a_time_limit_that_does_not_hold_is_noticed():
    name = "host/asleep_for_ever"
    (faults,) = let_loose("--only", name, "--seconds", "1.8").values()
    assert any(fault.startswith("took ") for fault in faults)


def test_output_without_a_limit_is_noticed():
    off = let_loose("--folder", "host", "--only", "output", "--output-bytes", str(1 << 27))
    assert set(harmful(off)) == {"host/flood_stdout", "host/flood_stderr"}


@pytest.fixture(scope="module")
def usual_grader():
    from rewards.sandbox import Ended, Sandbox

    def judge(runner, item):
        with runner.start(json.dumps(item).encode(), seconds=1.0) as session:
            try:
                return session.wait().status == 0
            except Ended:
                return False

    with Sandbox(1, _runner=str(HERE / "usual_grader.py")) as sandbox:
        yield lambda item: sandbox.map(judge, [item])[0]


BEATS_THE_USUAL = """
    always_equal always_equal_in_asserts reflected_operators nan true_for_one float_for_int
    exit_zero exit_zero_in_a_call exit_classes stop_iteration objects_for_the_expected
"""


@pytest.mark.parametrize("name", BEATS_THE_USUAL.split())
def test_the_programs_do_beat_a_grader_in_their_own_process(usual_grader, deeds, name):
    tasks = json.loads((ATTACKS / "tasks.json").read_text())
    text = (ATTACKS / "verdict" / f"{name}.py").read_text()
    task = tasks[text.partition("# task: ")[2].partition("\n")[0]]
    assert usual_grader({"program": text, "task": task})
    assert deeds[f"verdict/{name}"] == []


def test_the_usual_grader_refuses_a_wrong_answer_and_accepts_a_right_one(usual_grader):
    task = json.loads((ATTACKS / "tasks.json").read_text())["add"]
    assert usual_grader({"program": "def add(a, b): return a + b", "task": task})
    assert not usual_grader({"program": "def add(a, b): return a - b", "task": task})


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--without", "landlock"),
        ("--without", "namespaces"),
        ("--without", "landlock,namespaces"),
    ],
    ids=["mount namespace", "Landlock", "nothing can be opened"],
)
def test_no_way_of_confining_lets_anything_through(options):
    deeds = let_loose(*options)
    # What `stat` shows of the host's files is hidden by namespaces alone.
    deeds.pop(NEEDS_NAMESPACES, None)
    assert harmful(deeds) == {}


@pytest.mark.slow
def test_no_program_passes_all_tests_where_the_share_is_the_reward():
    deeds = let_loose("--share", "--folder", "verdict", "--folder", "completions")
    told = [fault for faults in deeds.values() for fault in faults]
    assert all(fault.startswith("reward 0.") for fault in told)


@pytest.mark.slow
def test_an_ordinary_user_gets_nothing_for_nothing_either():
    assert harmful(as_nobody("--folder", "verdict", "--folder", "completions")) == {}
