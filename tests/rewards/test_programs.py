from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import rewards
from rewards import programs
from rewards.grading import program_batches, shared_sandbox
from rewards.grading.judging import Submission, Verdict
from rewards.programs import (
    humaneval,
    humaneval_share,
    mbpp,
    mbpp_share,
    unit_tests,
    unit_tests_share,
)
from rewards.sandbox import SandboxFailed, SandboxUnavailable

ALL = [unit_tests, unit_tests_share, humaneval, humaneval_share, mbpp, mbpp_share]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")

TESTS = {
    "kind": "call",
    "entry": "add",
    "tests": [{"args": [1, 2], "expected": 3}, {"args": [0, 0], "expected": 0}],
}
RIGHT = "def add(a, b):\n    return a + b\n"
HALF = "def add(a, b):\n    return 0\n"
PROMPT = "def helper(x):\n    return x\n\ndef add(a, b):\n    '''The sum.'''\n"
CHECK = (
    "def check(candidate):\n"
    "    assert candidate(1, 2) == helper(3)\n"
    "    assert candidate(0, 0) == 0\n"
)


@linux_only
def test_right_programs_get_one_and_others_nothing_with_the_reasons() -> None:
    logged: dict[str, list[Any]] = {}
    scores = unit_tests(
        prompts=["p"] * 3,
        completions=[RIGHT, HALF, "I do not know."],
        completion_ids=[[1]] * 3,
        tests=[TESTS, json.dumps(TESTS), TESTS],
        trainer_state=None,
        family=["sum"] * 3,
        log_extra=logged.__setitem__,
    )
    assert scores == [1.0, 0.0, 0.0]
    details = logged["detail"]
    assert details[:2] == ["passed all 2 tests", "test 1 of 2: returned 0, expected 3"]
    assert "SyntaxError" in details[2]


@linux_only
def test_the_share_of_the_tests_is_gained_by_a_constant() -> None:
    assert unit_tests_share(completions=[RIGHT, HALF], tests=[TESTS] * 2) == [1.0, 0.5]


@linux_only
def test_messages_are_scored_like_texts() -> None:
    scores = unit_tests(
        prompts=[[{"role": "user", "content": PROMPT}]],
        completions=[[{"role": "assistant", "content": f"Here:\n```python\n{RIGHT}```"}]],
        tests=[TESTS],
    )
    assert scores == [1.0]


@linux_only
@pytest.mark.parametrize("prompt", ["# the sum\ndef add(a, b):\n", PROMPT])
def test_a_body_goes_on_from_the_prompt(prompt: str) -> None:
    scores = unit_tests(
        prompts=[prompt] * 3,
        completions=["    return a + b\n", "    return a - b\n", "return a + b\n"],
        tests=[json.dumps(TESTS)] * 3,
    )
    assert scores == [1.0, 0.0, 0.0]


@linux_only
def test_humaneval_takes_bodies_and_whole_functions() -> None:
    logged: dict[str, list[Any]] = {}
    bodies = ["    return a + b\n", f"```\n{RIGHT}```", "    return a\n", RIGHT, ""]
    columns = {"test": [CHECK] * 5, "entry_point": ["add"] * 5, "prompts": [PROMPT] * 5}
    scores = humaneval(completions=bodies, log_extra=logged.__setitem__, **columns)
    assert scores == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert logged["detail"][2] == "failed: AssertionError (line 2)"
    assert humaneval_share(completions=bodies, **columns) == [1.0, 1.0, 0.5, 1.0, 0.0]


@linux_only
def test_mbpp_finds_the_function_by_its_tests() -> None:
    columns: dict[str, Any] = {
        "prompts": ["Write a function to add."] * 2,
        "test_list": [["assert add(1, 2) == three", "assert add(0, 0) == math.floor(0.5)"]] * 2,
        "test_setup_code": ["three = 3"] * 2,
        "challenge_test_list": [["assert False"]] * 2,
    }
    assert mbpp(completions=[RIGHT, HALF], **columns) == [1.0, 0.0]
    assert mbpp_share(completions=[RIGHT, HALF], **columns) == [1.0, 0.5]


def test_every_reward_says_that_rows_are_scored_alone() -> None:
    assert all(reward.per_sample is True for reward in ALL)
    assert [getattr(programs, reward.__name__) for reward in ALL] == ALL


def test_unfit_rows_are_named_before_anything_runs() -> None:
    broken = {**TESTS, "tests": []}
    reasons = unit_tests.unfit(
        {"tests": [TESTS, broken, "{", json.dumps(TESTS)], "prompt": ["p"] * 4}
    )
    assert reasons[0] is None
    assert reasons[3] is None
    assert reasons[1] == "no tests"
    assert "malformed JSON" in (reasons[2] or "")


def test_unfit_reads_the_columns_of_each_data_set() -> None:
    rows = {"test": [CHECK, CHECK], "entry_point": ["add", "add"]}
    reasons = humaneval.unfit({**rows, "prompt": [PROMPT, "Write add."]})
    assert reasons == [None, "the tests use helper, which they do not define"]
    reasons = mbpp.unfit({"test_list": [["assert f(1) == 2"], ["assert f(Node(1)) == 2"], []]})
    assert reasons == [None, "the tests use Node, which they do not define", "no tests"]


def test_unfit_needs_the_columns_of_the_reward() -> None:
    with pytest.raises(TypeError, match=r"humaneval needs the column 'test'.*'prompt', 'tests'"):
        humaneval.unfit({"prompt": [], "tests": []})


def test_an_unfit_row_is_an_error_that_names_the_row_and_the_reason() -> None:
    with pytest.raises(ValueError, match="unit_tests: row 1 cannot be judged: no tests"):
        unit_tests(completions=[RIGHT, RIGHT], tests=[TESTS, {**TESTS, "tests": []}])


@linux_only
def test_a_row_whose_tests_turn_out_to_be_broken_is_named_too() -> None:
    broken = {"kind": "assert", "entry": "add", "tests": "if False:\n    assert add(1, 2)"}
    with pytest.raises(ValueError, match="unit_tests: row 1 cannot be judged: the tests never"):
        unit_tests(completions=[RIGHT, RIGHT], tests=[TESTS, broken])


def test_columns_of_another_length_and_completions_that_are_no_text_are_refused() -> None:
    with pytest.raises(ValueError, match="'tests' has 2 values for 1 completions"):
        unit_tests(completions=[RIGHT], tests=[TESTS] * 2)
    with pytest.raises(TypeError, match="unit_tests: column 'tests' is a str"):
        unit_tests(completions=[RIGHT], tests="{")  # as long as the batch, by chance
    with pytest.raises(TypeError, match="completion 0 is 7"):
        unit_tests(completions=[7], tests=[TESTS])


def test_an_empty_batch_needs_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        program_batches, "shared_sandbox", lambda: pytest.fail("a sandbox was made")
    )
    assert unit_tests(completions=[], tests=[]) == []


class Recorder:
    """Takes the place of the sandbox: notes what it is to run, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.seen: list[Submission] = []

    def map(self, judge: Any, items: Sequence[Submission]) -> list[Any]:
        if self.error:
            raise self.error
        self.seen += items
        return [Verdict(float(len(self.seen)), 0, 1, "") for _ in items]


def test_equal_programs_on_equal_tests_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(program_batches, "shared_sandbox", lambda: recorder)
    other = {**TESTS, "compare": "python"}
    scores = unit_tests(
        completions=[RIGHT, HALF, RIGHT, RIGHT], tests=[TESTS, TESTS, json.dumps(TESTS), other]
    )
    assert len(recorder.seen) == 3
    assert scores == [3.0] * 4


@pytest.mark.parametrize("error", [SandboxUnavailable("no seccomp"), SandboxFailed("twice")])
def test_a_sandbox_that_does_not_work_is_never_a_score(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(program_batches, "shared_sandbox", lambda: Recorder(error))
    with pytest.raises(type(error)):
        unit_tests(completions=[RIGHT], tests=[TESTS])


@linux_only
def test_a_process_has_one_sandbox_and_a_forked_child_its_own() -> None:
    ours = shared_sandbox.shared_sandbox()
    assert shared_sandbox.shared_sandbox() is ours
    child = os.fork()
    if child == 0:
        other = shared_sandbox.shared_sandbox()
        right = unit_tests(completions=[RIGHT], tests=[TESTS]) == [1.0]
        other.close()
        os._exit(0 if right and other is not ours else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert unit_tests(completions=[RIGHT], tests=[TESTS]) == [1.0]  # ours still works


@linux_only
def test_the_sandbox_ends_with_the_process() -> None:
    code = (
        "from rewards.programs import unit_tests\n"
        "from rewards.grading.shared_sandbox import shared_sandbox\n"
        f"assert unit_tests(completions=[{RIGHT!r}], tests=[{TESTS!r}]) == [1.0]\n"
        "print([worker.process.pid for worker in shared_sandbox()._workers])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(rewards.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    servers = json.loads(done.stdout)
    assert servers
    assert not any(Path(f"/proc/{server}").exists() for server in servers)


def test_importing_the_rewards_starts_nothing_and_needs_no_other_package() -> None:
    code = (
        "import sys, threading\nimport rewards.programs\n"
        "heavy = {'torch', 'numpy', 'rl4lm', 'multiprocessing', 'asyncio'} & set(sys.modules)\n"
        "assert not heavy, heavy\nassert threading.active_count() == 1\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(rewards.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
