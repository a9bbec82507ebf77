"""`rl4lm score` with TRL's own reward functions, beside direct calls of them."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("trl")
pytest.importorskip("math_verify")

MADE = """
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

overlong = get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=10)
repetition = get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0)
"""
NAMES = ["trl.rewards:accuracy_reward", "trl.rewards:think_format_reward"]
NAMES += ["made.py:overlong", "made.py:repetition"]
# Solution, completion, tokens; the last gold cannot be parsed, which is None to TRL.
TEXTS = [
    (r"$\frac{1}{3}$", r"<think>So.</think>It is \boxed{\frac{1}{3}}", [1, 2, 3]),
    (r"$\frac{1}{3}$", r"<think>So.</think>It is \boxed{\frac{2}{6}}", list(range(15))),
    (r"$\frac{1}{3}$", r"<think><think></think>It is \boxed{\frac{1}{2}}", [4, 4, 4, 4]),
    ("$x^2+1$", r"It is \boxed{1+x^2}", [7] * 25),
    ("$6$", "It is 6", []),
    ("", r"\boxed{6}", list(range(20))),
]


def rows_of(chat):
    """The rows as standard data have them, or as messages."""
    for solution, text, ids in TEXTS:
        prompt = [{"role": "user", "content": "?"}] if chat else "?"
        completion = [{"role": "assistant", "content": text}] if chat else text
        row = {"prompt": prompt, "completion": completion}
        yield {**row, "solution": solution, "completion_ids": ids}


def called_directly():
    """What each function says; of standard data too it reads messages."""
    from trl import rewards

    messages = [[{"role": "assistant", "content": text}] for _, text, _ in TEXTS]
    ids = [ids for *_, ids in TEXTS]
    made: dict = {}
    exec(MADE, made)
    return {
        "accuracy_reward": rewards.accuracy_reward(messages, [gold for gold, *_ in TEXTS]),
        "think_format_reward": rewards.think_format_reward(messages),
        "overlong": made["overlong"](ids),
        "repetition": made["repetition"](ids),
    }


@pytest.mark.parametrize("chat", [pytest.param(False, marks=pytest.mark.slow), True])
def test_functions_of_trl_score_as_they_do_when_called(chat, verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made.py").write_text(MADE)
    lines = "".join(json.dumps(row) + "\n" for row in rows_of(chat))
    (tmp_path / "rows.jsonl").write_text(lines)
    words = ["--data", "rows.jsonl", "--out", "scored.jsonl", "--json"]
    summary = json.loads(verb("score", "--reward", *NAMES, *words).out)
    assert summary["deterministic"] is True
    assert summary["rewards"]["accuracy_reward"]["none"] == 1
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    expected = called_directly()
    assert expected["accuracy_reward"] == [1.0, 1.0, 0.0, 1.0, 0.0, None]
    assert {n: [row["rewards"][n] for row in scored] for n in expected} == expected
    for row in scored:
        assert row["reward"] == pytest.approx(sum(v for v in row["rewards"].values() if v))
