"""Every rule finds the run that it is about, and leaves a healthy one alone.

Run directories are made here, file by file. `healthy_run` is what learning looks like; a case
changes the one thing that its rule is about, and the rule must be the only one that warns.
"""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from rl4lm.doctor import diagnose, show
from rl4lm.errors import DataError
from rl4lm.rules import update
from rl4lm.rules.diagnosis import _EXPLAINS, RULES, Watch, examine
from rl4lm.rules.findings import RunLog, Samples, Severity, digest, percent
from rl4lm.rundir.runlog import read_run

STEPS, PROMPTS, GROUP = 60, 2, 4


@dataclass
class Run:
    """The files of a run before they are written."""

    config: dict[str, Any]
    steps: list[dict[str, Any]]
    pages: dict[int, list[dict[str, Any]]]
    evaluations: list[dict[str, Any]]
    summary: dict[str, Any] | None = field(default_factory=dict)
    device: str = "cpu"
    tail: str = ""  # what metrics.jsonl ends with

    def every(self, first: int = 0, **values: Any) -> None:
        """Set metrics of all steps from one on; `_` stands for `/`, as in `time_score_s`."""
        for row in self.steps[first:]:
            row.update({_metric(name): value for name, value in values.items()})

    def say(self, completion: Callable[[int, int], str]) -> None:
        """Replace the completions: of a step and a row."""
        for step, rows in self.pages.items():
            for i, row in enumerate(rows):
                row["completion"] = completion(step, i)

    def write(self, folder: Path) -> Path:
        (folder / "completions").mkdir(parents=True)
        text = f"# processes: 1\n# device: {self.device}\n" + yaml.safe_dump(self.config)
        (folder / "config.yaml").write_text(text)
        (folder / "metrics.jsonl").write_text(_lines(self.steps) + self.tail)
        (folder / "eval.jsonl").write_text(_lines(self.evaluations))
        for step, rows in self.pages.items():
            (folder / "completions" / f"step-{step:06d}.jsonl").write_text(_lines(rows))
        if self.summary is not None:
            (folder / "summary.json").write_text(json.dumps(self.summary))
        return folder


def _metric(name: str) -> str:
    for part in ("completions", "time", "rewards_exact", "rewards_style"):
        if name.startswith(part + "_") and name != "rewards_not_applicable":
            return f"{part.replace('_', '/')}/{name[len(part) + 1 :]}"
    return name


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def healthy_run(steps: int = STEPS) -> Run:
    """A reward that rises from 0.3 to 0.6 with a noise of 0.03, and little else that changes."""
    draw = random.Random(0)
    logged = [
        {
            "step": n,
            "reward": 0.3 + 0.3 * n / steps + draw.gauss(0, 0.03),
            "reward_std": 0.45,
            "frac_reward_zero_std": 0.4,
            "rewards_not_applicable": 0.0,
            "completions/mean_length": 30 + draw.gauss(0, 1),
            "completions/clipped_ratio": 0.02,
            "entropy": 0.8 - 0.3 * n / steps,
            "rewards/exact/mean": 0.4,
            "rewards/style/mean": 0.4,
            "rewards/exact/timeouts": 0,
            "rewards/exact/crashes": 0,
            "effective_samples": 5.0,
            "effective_share": 0.6,
            "sampler_gap_mean": 3e-7,
            "sampler_gap_max": 2e-5,
            "gradient_snr": 0.5 if n % 20 == 1 else None,
            "gradient_noise_scale": 16.0 if n % 20 == 1 else None,
            "grad_norm": 0.8 + 0.1 * draw.random(),
            "grad_clipped": False,
            "updated": True,
            "learning_rate": 1e-5,
            "time/sample_s": 0.2,
            "time/score_s": 0.01,
            "time/gradient_s": 0.3,
        }
        for n in range(1, steps + 1)
    ]
    return Run(
        config={
            "dtype": "auto",
            "use_peft": False,
            "prompts_per_step": PROMPTS,
            "num_generations": GROUP,
            "max_completion_length": 64,
            "baseline": "auto",
            "learning_rate": 1e-5,
            "optim": "adamw",
            "max_grad_norm": 1.0,
            "warmup_steps": 0,
            "max_steps": steps,
        },
        steps=logged,
        pages={n: _page(n) for n in range(1, steps + 1)},
        evaluations=[
            {"step": n, "samples": 500.0, "accuracy": accuracy, "accuracy_stderr": 0.02}
            for n, accuracy in ((0, 0.3), (steps, 0.55))
        ],
    )


def _page(step: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": f"p{i // GROUP}",
            "sample": i % GROUP,
            "completion": f"answer {i % GROUP} of step {step}",
            "reward": float(i % 2),
        }
        for i in range(PROMPTS * GROUP)
    ]


# --- one change each


def cut_off(run: Run) -> None:
    run.every(completions_clipped_ratio=0.7)


def never_ending(run: Run) -> None:
    run.every(completions_clipped_ratio=1.0, effective_share=0.0)


def half_none(run: Run) -> None:
    run.every(rewards_not_applicable=5.0)


def all_none(run: Run) -> None:
    run.every(reward=None, reward_std=None, rewards_not_applicable=8.0, frac_reward_zero_std=1.0)
    run.every(rewards_exact_mean=None, rewards_style_mean=None, updated=False, effective_share=0.0)


def one_silent(run: Run) -> None:
    run.every(rewards_style_mean=None)


def constant(run: Run) -> None:
    run.every(30, reward=0.0, reward_std=0.0, frac_reward_zero_std=1.0, updated=False)
    for row in run.steps[:30]:
        row["reward"] = 0.001  # sparse from the start, so that nothing falls
    for rows in run.pages.values():
        for row in rows:
            row["reward"] = 0.0


def sparse(run: Run) -> None:
    run.every(frac_reward_zero_std=0.95)


def duplicates(run: Run) -> None:
    run.say(
        lambda step, i: (
            f"  The SAME\n answer {i // GROUP} " if i % 2 else f"the same answer {i // GROUP}"
        )
    )
    run.every(frac_reward_zero_std=1.0)


def hanging(run: Run) -> None:
    run.every(rewards_exact_timeouts=1, rewards_exact_crashes=1)


def without_gradient(run: Run) -> None:
    run.every(40, grad_norm=0.0)


def frozen(run: Run) -> None:
    run.every(40, learning_rate=0.0)


def long_warm_up(run: Run) -> None:
    run.config["warmup_steps"] = 50


def gap(run: Run) -> None:
    run.every(40, sampler_gap_mean=5e-4, sampler_gap_max=2e-3)


def too_fine(run: Run) -> None:
    run.config["dtype"] = "pure_bfloat16"


def not_finite(run: Run) -> None:
    run.steps[10].update(grad_norm=None, updated=False)


def skipping(run: Run) -> None:
    for row in run.steps[::3] + run.steps[1::3]:
        row["updated"] = False


def clipped_sgd(run: Run) -> None:
    run.config.update(optim="sgd", learning_rate=0.1)
    run.every(grad_norm=5.0, grad_clipped=True, learning_rate=0.1)


def flat(run: Run) -> None:
    draw = random.Random(1)
    for row in run.steps:
        row["reward"] = 0.4 + draw.gauss(0, 0.03)


def falling(run: Run) -> None:
    for row in run.steps[35:]:
        row["reward"] -= 0.35


def picking(run: Run) -> None:
    """Groups with an advantage earn about one half, whatever the policy earns."""
    draw = random.Random(1)
    for row in run.steps:
        row["dynamic_sampling/first_reward"] = row["reward"]
        row["reward"] = 0.5 + draw.gauss(0, 0.03)


def falling_unseen(run: Run) -> None:
    falling(run)
    picking(run)


def by_heart_unseen(run: Run) -> None:
    by_heart(run)
    picking(run)


def by_heart(run: Run) -> None:
    run.evaluations[1]["accuracy"] = 0.2


def collapsed(run: Run) -> None:
    run.every(30, entropy=0.01, effective_share=0.15)


def growing(run: Run) -> None:
    run.every(30, completions_mean_length=120.0)


def shrinking(run: Run) -> None:
    run.every(30, completions_mean_length=2.0)


def left_behind(run: Run) -> None:
    for row in run.steps[40:]:
        row["importance_ratio/effective_share"] = 0.3


def waiting(run: Run) -> None:
    run.every(time_score_s=4.0)


def empty(run: Run) -> None:
    run.steps, run.pages = [], {}


def killed(run: Run) -> None:
    run.summary = None


CASES = [
    (cut_off, "completions_cut_off", "warning"),
    (never_ending, "completions_cut_off", "error"),
    (half_none, "rewards_do_not_apply", "warning"),
    (all_none, "rewards_do_not_apply", "error"),
    (one_silent, "reward_function_silent", "warning"),
    (constant, "constant_reward", "error"),
    (sparse, "equal_rewards_within_prompts", "warning"),
    (duplicates, "duplicate_samples", "warning"),
    (hanging, "failing_reward", "warning"),
    (without_gradient, "no_gradient", "error"),
    (frozen, "learning_rate_is_zero", "warning"),
    (long_warm_up, "warm_up_too_long", "warning"),
    (gap, "sampler_gap", "warning"),
    (left_behind, "sampler_left_behind", "warning"),
    (too_fine, "updates_below_resolution", "error"),
    (not_finite, "gradient_not_finite", "warning"),
    (skipping, "skipped_updates", "warning"),
    (clipped_sgd, "gradient_always_clipped", "warning"),
    (flat, "reward_not_rising", "warning"),
    (falling, "reward_falls", "error"),
    (falling_unseen, "reward_falls", "error"),
    (by_heart, "held_out_falls", "warning"),
    (by_heart_unseen, "held_out_falls", "warning"),
    (collapsed, "entropy_collapse", "warning"),
    (growing, "length_explosion", "warning"),
    (shrinking, "length_collapse", "warning"),
    (waiting, "slow_rewards", "warning"),
    (empty, "nothing_logged", "error"),
    (killed, "unfinished_run", "warning"),
]


def found_in(run: Run, folder: Path) -> dict[str, str]:
    """Warnings and errors: name -> severity."""
    _, diagnosis = diagnose(run.write(folder))
    told = [finding.to_dict() for finding in diagnosis.findings]
    return {found["name"]: found["severity"] for found in told if found["severity"] != "note"}


@pytest.mark.parametrize(
    ("change", "name", "severity"), CASES, ids=lambda x: getattr(x, "__name__", "")
)
def test_a_run_with_one_thing_wrong_has_that_finding_and_no_other(tmp_path, change, name, severity):
    run = healthy_run()
    change(run)
    assert found_in(run, tmp_path) == {name: severity}


def test_where_groups_are_picked_the_reward_is_that_of_the_first_ones_drawn(tmp_path):
    run = healthy_run()
    picking(run)
    assert found_in(run, tmp_path / "run") == {}
    for row in run.steps[-20:]:  # those picked are half right still
        row["dynamic_sampling/first_reward"] = 0.96
    _, diagnosis = diagnose(run.write(tmp_path / "solved"))
    (finding,) = diagnosis.findings
    assert finding.name == "nothing_left_to_learn"
    assert "mean reward 0.96" in finding.seen
    for row in run.steps:  # the control: `reward` alone stays where it was
        del row["dynamic_sampling/first_reward"]
    assert found_in(run, tmp_path / "misread") == {"reward_not_rising": "warning"}


def test_a_healthy_run_has_no_finding_and_every_rule_was_applied(tmp_path):
    _, diagnosis = diagnose(healthy_run().write(tmp_path))
    assert diagnosis.findings == []
    assert diagnosis.unchecked == {}
    assert len(diagnosis.checked) == len(RULES)


def test_every_rule_has_a_run_that_it_finds():
    notes = {"nothing_left_to_learn", "damaged_files"}  # below
    assert {rule.name for rule in RULES} == {name for _, name, _ in CASES} | notes
    names = {rule.name for rule in RULES}
    assert names >= set(_EXPLAINS)
    assert names >= set().union(*_EXPLAINS.values())


def test_every_rule_is_on_the_page_about_the_doctor_and_no_other():
    page = (Path(__file__).parents[1] / "docs" / "doctor.md").read_text(encoding="utf-8")
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert {name for cell in cells for name in cell.split("`")[1::2]} == {r.name for r in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_is_found_is_told_with_figures_a_reason_and_remedies(rule, tmp_path):
    change = next((change for change, name, _ in CASES if name == rule.name), solve)
    run = healthy_run()
    change(run)
    run.tail = '{"step": 61, "rew'
    finding = rule.find(read_run(run.write(tmp_path)))
    assert finding.name == rule.name
    assert any(letter.isdigit() for letter in finding.seen) or rule.name == "nothing_logged"
    assert finding.why
    assert finding.remedies


# --- what looks alike and is none


def solve(run: Run) -> None:
    """The end of a run that went well: everything right, nothing left to compare."""
    run.every(30, reward=0.98, reward_std=0.1, frac_reward_zero_std=0.97, effective_share=0.03)
    run.every(30, entropy=0.001)
    run.say(lambda step, i: f"right {i // GROUP}")


def test_a_solved_task_is_a_note_and_neither_collapse_nor_sparse_rewards(tmp_path):
    run = healthy_run()
    solve(run)
    _, diagnosis = diagnose(run.write(tmp_path))
    assert [(f.name, f.severity) for f in diagnosis.findings] == [
        ("nothing_left_to_learn", Severity.NOTE)
    ]
    unsolved = healthy_run()
    solve(unsolved)
    unsolved.every(30, reward=0.5)
    assert set(found_in(unsolved, tmp_path / "unsolved")) == {
        "duplicate_samples",
        "entropy_collapse",
    }


def test_one_sample_per_prompt_is_not_taken_for_equal_rewards(tmp_path):
    run = healthy_run()
    run.every(frac_reward_zero_std=1.0)
    run.config.update(num_generations=1, prompts_per_step=8)
    for rows in run.pages.values():
        for i, row in enumerate(rows):
            row["prompt_id"] = f"p{i}"
    assert found_in(run, tmp_path) == {}


def test_a_baseline_over_the_batch_needs_no_difference_within_a_prompt(tmp_path):
    run = healthy_run()
    run.every(frac_reward_zero_std=0.95)
    run.config["baseline"] = "batch_leave_one_out"
    assert found_in(run, tmp_path) == {}


def test_a_learning_rate_of_zero_during_the_warm_up_is_meant(tmp_path):
    run = healthy_run(steps=4)
    run.config.update(warmup_steps=20, max_steps=100)
    run.every(learning_rate=0.0)
    assert found_in(run, tmp_path) == {}
    run.config["learning_rate"] = 0.0
    assert found_in(run, tmp_path / "off") == {"learning_rate_is_zero": "error"}


def test_a_gap_is_measured_against_the_precision_of_the_run(tmp_path):
    run = healthy_run()
    gap(run)
    run.device = "cuda:0"  # bfloat16 by autocast
    assert found_in(run, tmp_path) == {}
    run.config["dtype"] = "float32"
    assert found_in(run, tmp_path / "float32") == {"sampler_gap": "warning"}


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"learning_rate": 1e-3}, {}),
        ({"learning_rate": 3e-5}, {"updates_below_resolution": "warning"}),
        ({"optim": "sgd", "learning_rate": 1e-5}, {"updates_below_resolution": "error"}),
        ({"optim": "sgd", "learning_rate": 1.0}, {}),
        ({"use_peft": True}, {"updates_below_resolution": "warning"}),
    ],
)
def test_updates_are_lost_where_they_are_finer_than_the_weights(settings, found, tmp_path):
    run = healthy_run()
    run.config.update(dtype="pure_bfloat16", **settings)
    assert found_in(run, tmp_path) == found


def test_the_resolution_is_that_of_bfloat16():
    """The same by rounding: the rule's bound is the largest update that a weight may swallow."""
    torch = pytest.importorskip("torch")
    weight = torch.tensor(update._WEIGHT, dtype=torch.bfloat16)
    half_step = update._WEIGHT * update._BFLOAT16_STEP / 2
    assert weight + torch.tensor(half_step / 4, dtype=torch.bfloat16) == weight
    assert weight + torch.tensor(half_step * 4, dtype=torch.bfloat16) != weight


def test_constant_rewards_that_ended_are_no_finding(tmp_path):
    run = healthy_run()
    for row in run.steps[:10]:
        row.update(reward=0.0, reward_std=0.0, frac_reward_zero_std=1.0)
    assert found_in(run, tmp_path) == {}


def test_steps_in_which_all_is_right_at_last_are_not_taken_for_a_dead_reward(tmp_path):
    run = healthy_run()
    run.every(54, reward=1.0, reward_std=0.0, frac_reward_zero_std=1.0)
    assert found_in(run, tmp_path) == {}
    for rows in run.pages.values():  # unless nothing but that was ever paid
        for row in rows:
            row["reward"] = 1.0
    assert found_in(run, tmp_path / "always") == {"constant_reward": "error"}


def test_a_reward_that_died_of_a_hot_update_is_told_from_one_that_never_lived(tmp_path):
    dead, killed_by_updates = healthy_run(), healthy_run()
    killed_by_updates.every(8, reward=0.0, reward_std=0.0, frac_reward_zero_std=1.0)
    dead.every(reward=0.0, reward_std=0.0, frac_reward_zero_std=1.0)
    remedies = []
    for i, run in enumerate((dead, killed_by_updates)):
        _, diagnosis = diagnose(run.write(tmp_path / str(i)))
        remedies.append(" ".join(diagnosis.findings[0].remedies))
        assert diagnosis.findings[0].name == "constant_reward"
    assert ["learning_rate" in told for told in remedies] == [False, True]


def test_a_fall_within_the_noise_of_the_evaluation_is_none(tmp_path):
    run = healthy_run()
    run.evaluations[1]["accuracy"] = 0.26  # the two differ by 1.4 standard errors
    assert found_in(run, tmp_path) == {}


def test_without_its_standard_error_a_held_out_reward_has_that_of_the_training_rewards(tmp_path):
    run = healthy_run()
    run.evaluations = [{"samples": 25.0, "reward": 0.5}, {"samples": 25.0, "reward": 0.3}]
    assert found_in(run, tmp_path) == {}  # 0.45 / √25 = 0.09
    run.evaluations = [{"samples": 2500.0, "reward": 0.5}, {"samples": 2500.0, "reward": 0.3}]
    assert found_in(run, tmp_path / "many") == {"held_out_falls": "warning"}


def test_a_rise_that_the_noise_hides_step_by_step_is_still_seen(tmp_path):
    run = healthy_run()
    draw = random.Random(2)
    for n, row in enumerate(run.steps):
        row["reward"] = 0.4 + 0.001 * n + draw.gauss(0, 0.01)
    assert found_in(run, tmp_path) == {}


def test_a_reward_of_a_servers_completions_need_not_rise(tmp_path):
    run = healthy_run()
    flat(run)
    run.config["sampler_url"] = "http://localhost:8000"
    assert found_in(run, tmp_path) == {}


def test_too_few_steps_are_not_judged_and_that_is_said(tmp_path, capsys):
    run = healthy_run(steps=2)
    flat(run)
    log, diagnosis = diagnose(run.write(tmp_path))
    assert diagnosis.findings == []
    assert "a reward that stays where it was" in diagnosis.unchecked
    show(log, diagnosis)
    out = capsys.readouterr().out
    assert "2 steps, completions of 2, 2 evaluations: nothing found" in out
    assert "not checked: a reward that stays where it was (reward is known of 2 steps, 15" in out


# --- what is printed


def test_findings_are_printed_the_worst_first_each_line_whole(tmp_path, capsys):
    run = healthy_run()
    constant(run)
    killed(run)
    run.every(30, completions_clipped_ratio=0.7)
    show(*diagnose(run.write(tmp_path)))
    lines = capsys.readouterr().out.splitlines()
    heads = [
        line.split(" ")[0] for line in lines if line.split(" ")[0] in ("error", "warning", "note")
    ]
    assert heads == ["error", "warning", "warning"]
    assert lines[0].endswith("1 error, 2 warnings")
    place = next(i for i, line in enumerate(lines) if line.startswith("error"))
    assert lines[place] == (
        "error constant_reward: every completion of the last 30 steps earned 0, after a mean of up "
        "to 0.001 in earlier steps"
    )
    assert lines[place + 1].startswith("  why: ")
    assert lines[place + 2].startswith("  try: ")


def test_a_quiet_doctor_says_what_was_found_and_not_what_was_checked(tmp_path, capsys):
    run = healthy_run()
    constant(run)
    found = diagnose(run.write(tmp_path))
    show(*found)
    whole = capsys.readouterr().out
    show(*found, terse=True)
    terse = capsys.readouterr().out
    assert "checked: " in whole
    assert whole.startswith(terse)
    assert "error constant_reward" in terse
    assert "checked" not in terse


def test_on_a_terminal_a_long_remedy_is_wrapped_and_stays_indented(tmp_path):
    run = healthy_run()
    constant(run)
    page = Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None)
    show(*diagnose(run.write(tmp_path)), page)
    lines = page.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    first = next(i for i, line in enumerate(lines) if line.startswith("  try: try the reward"))
    assert lines[first + 1].startswith("  ")
    assert "`rl4lm score" in " ".join(line.strip() for line in lines[first : first + 4])


def test_a_share_is_called_all_or_none_only_where_it_is():
    shares = (0.0, 0.002, 0.5, 0.998, 1.0)
    assert [percent(x) for x in shares] == ["0 %", "under 1 %", "50 %", "over 99 %", "100 %"]


# --- half-written runs


def test_a_last_line_that_breaks_off_is_ignored_and_named(tmp_path):
    run = healthy_run()
    run.tail = '{"step": 61, "reward": 0.'
    log, diagnosis = diagnose(run.write(tmp_path))
    assert len(log.steps) == STEPS
    assert [(f.name, f.severity) for f in diagnosis.findings] == [("damaged_files", Severity.NOTE)]
    assert "metrics.jsonl: the last line (61) breaks off" in diagnosis.findings[0].seen


def test_a_step_that_was_done_again_counts_once_as_it_was_last(tmp_path):
    run = healthy_run()
    run.steps.insert(30, {**run.steps[10], "reward": 9.0})
    log = read_run(run.write(tmp_path))
    assert [row["step"] for row in log.steps] == list(range(1, STEPS + 1))
    assert log.steps[10]["reward"] == 9.0


@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.jsonl", "eval.jsonl", "summary.json", "completions"]
)
@pytest.mark.parametrize(
    "content", [None, b"", b"\xff\x00\xfe{", b"[1, 2]\n3\n", b"a: [\n", "folder"]
)
def test_a_file_that_is_missing_or_broken_leads_to_words(name, content, tmp_path):
    run = healthy_run(steps=20).write(tmp_path / "run")
    path = run / name
    if path.is_dir():
        path.rename(tmp_path / "away")
    else:
        path.unlink()
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    log, diagnosis = diagnose(run)
    show(log, diagnosis)
    whole = {"eval.jsonl": (None, b""), "completions": (None, b"", content)}
    told = {finding.name for finding in diagnosis.findings} | set(diagnosis.unchecked)
    if content not in whole.get(name, ()):
        assert told & {"damaged_files", "nothing_logged", "unfinished_run"}
    assert told


@pytest.mark.parametrize("make", ["missing", "file", "empty", "other"])
def test_what_holds_no_run_is_refused_in_words(make, tmp_path):
    path = tmp_path / "run"
    if make == "file":
        path.write_text("x")
    elif make != "missing":
        path.mkdir()
    if make == "other":
        (path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="run"):
        diagnose(path)


def test_not_every_page_of_a_long_run_is_read(tmp_path):
    log = read_run(healthy_run(steps=300).write(tmp_path))
    steps = [samples.step for samples in log.samples]
    assert len(steps) <= 40
    assert steps == sorted(set(steps))
    assert steps[0] == 1
    assert steps[-20:] == list(range(281, 301))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)
METRICS = [*sorted(healthy_run(1).steps[0]), "junk", "rewards/", "rewards//mean", "time/x"]
OPTIONS = sorted(healthy_run(1).config)
NUMBERS = st.sampled_from(
    [0, 0.0, 1, -1.0, 1e-320, 1e99, -1e99, 1e308, float("nan"), 10**400, True]
)
ROWS = st.lists(st.dictionaries(st.sampled_from(METRICS), JSON | NUMBERS), max_size=30)
PAGE = st.dictionaries(
    st.sampled_from(["prompt_id", "completion", "reward", "sample"]), JSON | NUMBERS
)


@settings(max_examples=60, deadline=None)
@given(
    config=st.dictionaries(st.sampled_from(OPTIONS), JSON | NUMBERS),
    changes=ROWS,
    dropped=st.sets(st.sampled_from(METRICS), max_size=4),
    evaluations=ROWS,
    page=st.lists(PAGE, max_size=8),
)
def test_no_rule_raises_whatever_is_missing_or_odd(config, changes, dropped, evaluations, page):
    healthy = healthy_run(30)
    for row, change in zip(healthy.steps, changes, strict=False):
        row.update(change)
    steps = [{k: v for k, v in row.items() if k not in dropped} for row in healthy.steps]
    log = RunLog(
        config={**healthy.config, **config},
        steps=steps,
        samples=[digest(1, page)] * 3,
        evaluations=evaluations,
        finished=False,
        damage=["x"],
    )
    for finding in examine(log).findings:
        json.dumps(finding.to_dict(), allow_nan=False)
    watch = Watch(log.config, {})
    for row in steps[-16:]:
        watch.observe(row, page)


# --- while a run goes on


def watched(run: Run) -> list[tuple[int, str]]:
    watch = Watch(run.config, {"device": run.device})
    return [
        (row["step"], finding.name)
        for row in run.steps
        for finding in watch.observe(row, run.pages[row["step"]])
    ]


WHILE_RUNNING = {rule.name for rule in RULES if rule.while_running}


@pytest.mark.parametrize(
    ("change", "name"),
    [(c, n) for c, n, _ in CASES if n in WHILE_RUNNING],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_what_the_doctor_would_find_is_said_while_the_run_goes_on(change, name):
    run = healthy_run()
    change(run)
    assert name in {said for _, said in watched(run)}


def test_nothing_is_said_of_a_healthy_run():
    assert watched(healthy_run(200)) == []


def test_a_finding_is_said_once_and_again_only_when_it_is_twice_as_bad():
    run = healthy_run()
    constant(run)
    assert watched(run) == [(step, "constant_reward") for step in (35, 40, 50)]  # 5, 10, 20 steps


def test_a_finding_that_becomes_an_error_is_said_again():
    run = healthy_run()
    cut_off(run)
    run.every(30, completions_clipped_ratio=1.0, effective_share=0.0)
    said = [step for step, name in watched(run) if name == "completions_cut_off"]
    assert len(said) == 2
    assert said[0] == 3


def test_notes_are_left_to_the_end():
    run = healthy_run()
    solve(run)
    assert watched(run) == []


def test_a_gradient_that_is_no_number_is_seen_before_it_is_written_as_null():
    run = healthy_run()
    run.steps[20].update(grad_norm=float("nan"), updated=False)
    assert watched(run) == [(21, "gradient_not_finite")]


def test_a_watch_keeps_a_bounded_part_of_the_run_and_counts_within_it():
    run = healthy_run(400)
    for row in run.steps[:20] + run.steps[310:]:
        row.update(reward=0.0, reward_std=0.0, frac_reward_zero_std=1.0)
    said = [step for step, name in watched(run) if name == "constant_reward"]
    assert said == [5, 10, 20, 350]  # the first 20 steps and the last 60 do not make 80


def test_watching_a_step_of_a_thousand_completions_costs_milliseconds():
    """A step of that size takes 0.3 s, of which a watch may have a hundredth."""
    run = healthy_run(100)
    page = [
        {"prompt_id": f"p{i // 4}", "completion": f"{i}", "reward": float(i % 2)}
        for i in range(1024)
    ]
    watch, seconds = Watch(run.config, {}), []
    for row in run.steps:
        began = time.perf_counter()
        watch.observe(row, page)
        seconds.append(time.perf_counter() - began)
    assert sorted(seconds[80:])[2] < 3e-3  # of the last ones, when it looks at most


# --- what is made of completions


def test_samples_are_new_where_more_than_case_and_white_space_differs():
    texts = ["A b", "a  B\n", "a c", "a c", "x"]
    rows = [{"prompt_id": "p", "completion": text, "reward": 0.5} for text in texts]
    assert digest(3, rows) == Samples(step=3, count=5, fresh=0.5, lowest=0.5, highest=0.5)


def test_prompts_are_compared_with_themselves_only():
    rows = [{"prompt_id": str(i // 2), "completion": "the same"} for i in range(4)]
    assert digest(1, rows).fresh == 0.0
    alone = [{"prompt_id": str(i), "completion": "the same"} for i in range(4)]
    assert digest(1, alone).fresh is None
