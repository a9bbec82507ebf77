"""Lines that a hostile program may send."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import rewards
from rewards.grading.frames import BadReply, checked, read_frame
from rewards.sandbox.values import MAX_DEPTH, encode

DEEP = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from rewards.grading.frames import BadReply, read_frame
sys.setrecursionlimit(10**6)

def read():
    try:
        read_frame(b'{"n": 0, "ok": ' + b"[" * 10**6)
    except BadReply as refused:
        print(refused)

thread = threading.Thread(target=read)
thread.start()
thread.join()
"""


def test_a_deep_frame_is_refused_however_high_the_recursion_limit_of_the_training() -> None:
    # In a process of its own: what goes wrong is a crash.
    root = str(Path(rewards.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", DEEP, root], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "a reply that is nested too deep\n")


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_the_deepest_value_that_may_be_sent_is_read_beside_many_others(kind: type) -> None:
    value: object = 0
    for _ in range(MAX_DEPTH - 1):
        value = {"key": value} if kind is dict else kind([value])
    wire = encode([value, [[]] * 1000])
    assert checked(read_frame(json.dumps({"ok": wire}).encode())["ok"]) == wire


def test_brackets_inside_texts_are_not_nested() -> None:
    text = '[{"\\' * 5000
    assert read_frame(json.dumps({"ok": text}).encode()) == {"ok": text}


@pytest.mark.parametrize("line", [b'"' * 10**6, b'"[' + b"\\" * 10**6, b'[\\"' * 3 * 10**5])
def test_quotes_and_backslashes_without_end_take_no_time(line: bytes) -> None:
    with pytest.raises(BadReply):
        read_frame(line)
