"""What a person sees: plain lines in a file, completions shown as they are."""

from __future__ import annotations

import io
import sys
import time

import pytest
from rich.console import Console

from rl4lm.screen.console import Screen
from rl4lm.screen.stages import Stages
from rl4lm.screen.wording import describe_evaluation

METRICS = {"reward": 0.5, "tokens_per_second": 1234.5, "effective_samples": 3.0, "grad_norm": 1.0}
EVALUATION = {
    "samples": 8.0,
    "reward": 0.25,
    "accuracy": 0.125,
    "accuracy/sum": 0.5,
    "samples/sum": 4.0,
    "ended": 1.0,
    "mean_length": 3.25,
}


@pytest.fixture
def shown(capsys):
    """What has been printed so far."""
    return lambda: capsys.readouterr().out


def row(completion, **changes):
    plain = {"prompt": "1+1=", "reward": 1.0, "advantage": -0.5, "truncated": False}
    return {**plain, "completion": completion, **changes}


def test_in_a_file_the_first_the_last_and_every_tenth_step_get_a_line(shown):
    screen = Screen()
    screen.start(0, 25)
    for step in range(1, 26):
        screen.step(step, METRICS)
    screen.stop()
    lines = shown().splitlines()
    assert [line.split()[1] for line in lines] == ["1/25", "10/25", "20/25", "25/25"]
    assert "reward 0.500  1,234 tok/s" in lines[0]


def test_on_a_terminal_a_bar_comes_instead(monkeypatch):
    screen, output = Screen(), io.StringIO()
    screen._console = Console(file=output, force_terminal=True, width=80)
    screen.start(0, 3)
    screen.step(2, METRICS)
    screen.stop()
    screen.stop()  # may be called again
    assert "step 2/3" in output.getvalue()
    assert "━" in output.getvalue()
    assert "left" not in output.getvalue()


def test_a_step_without_any_reward_says_none(shown):
    screen = Screen(logging_steps=1)
    screen.start(0, 1)
    screen.step(1, {**METRICS, "reward": None})
    assert "reward none" in shown()


@pytest.mark.parametrize(
    "text", ["[bold]a[/bold]", "[/x]", ":smile:", "a\\", "[link=x]", "\\[b]", "é"]
)
def test_completions_are_shown_as_they_are(text, shown):
    screen = Screen()
    screen.completions(1, [row(text)])
    screen.samples([row(text, logprob=-1.0)])
    screen.note(text)
    output = shown()
    assert output.count(text) == 3


def test_control_characters_are_made_visible(shown):
    Screen().completions(1, [row("a\nb\x1b[31m")])
    assert r"a\nb\x1b[31m" in shown()


def test_long_texts_are_shortened_in_the_middle_and_leave_room_for_the_numbers(shown):
    long = "b" + "x" * 500 + "e"
    Screen().completions(1, [row(long, prompt=long, truncated=True)])
    _, header, line = shown().splitlines()
    assert header.split() == ["prompt", "completion", "reward", "advantage"]
    prompt, completion, *rest = line.split()
    assert prompt == completion
    assert prompt.startswith("bxxx")
    assert prompt.endswith("xxxe")
    assert rest == ["(cut", "off)", "1.00", "-0.50"]
    assert len(line) <= 120


def test_samples_to_look_at_lose_nothing_to_the_width_of_the_screen(shown):
    Screen().samples([row("x" * 190, logprob=-2.0)])
    assert shown().count("x") == 190


def test_the_table_shows_five_rows_with_reward_advantage_and_cut(shown):
    Screen().completions(3, [row(f"c{i}", reward=None, truncated=True) for i in range(9)])
    output = shown()
    assert "samples at step 3" in output
    assert [f"c{i} (cut off)" in output for i in range(9)] == [True] * 5 + [False] * 4
    assert output.count("none") == output.count("-0.50") == 5


def test_a_skipped_step_says_why(shown):
    screen = Screen()
    screen.skipped(4, {"effective_samples": 0.0, "grad_norm": 0.0})
    screen.skipped(5, {"effective_samples": 2.0, "grad_norm": float("nan")})
    for step in range(6, 12):
        screen.skipped(step, {"effective_samples": 0.0, "grad_norm": 0.0})
    first, second, third = shown().splitlines()  # a long run does not drown in them
    assert first.startswith("warning: step 4 changed nothing: no completion had an advantage")
    assert third.endswith("further ones are only counted")
    assert "step 5" in second
    assert "not finite (norm nan)" in second


def test_evaluations_are_shown_before_and_after(shown):
    assert describe_evaluation(EVALUATION) == (
        "accuracy 12.5 %, reward 0.250, ended 100.0 %, mean_length 3.2 (8 prompts)"
    )
    screen = Screen()
    screen.before_after(EVALUATION, {**EVALUATION, "accuracy": 0.75}, {}, "footer")
    cells = [line.split() for line in shown().splitlines()]
    assert ["accuracy", "12.5", "%", "75.0", "%"] in cells
    assert cells[-1] == ["footer"]
    screen.before_after({}, {}, {}, "only this")
    assert shown() == "only this\n"


def test_what_is_known_of_a_difference_stands_beside_it(shown):
    interval = {"accuracy_low": 0.1, "accuracy_high": 0.2, "confidence": 0.9}
    before, after = {**EVALUATION, **interval}, {**EVALUATION, **interval, "accuracy": 0.75}
    told = {"difference": 0.625, "low": 0.5, "high": 0.7, "p_value": 1e-9}
    change = {"accuracy": {**told, "only_first": 5, "only_second": 0}}
    Screen().before_after(before, after, change, "footer")
    header, first, *rest = [line.split() for line in shown().splitlines() if line.strip()]
    assert header == [
        "before",
        "after",
        "difference",
        "90",
        "%",
        "interval",
        "p",
        "better",
        "worse",
    ]
    cells = (
        "accuracy 12.5 % (10.0 to 20.0) 75.0 % (10.0 to 20.0) +62.5 % +50.0 to +70.0 < 0.001 5 0"
    )
    assert first == cells.split()
    assert ["accuracy,", "sum", "50.0", "%", "50.0", "%"] in rest


def test_groups_and_data_sets_have_their_places_in_the_tables(shown):
    other = {f"sums/{name}": value for name, value in EVALUATION.items()}
    outcomes = {"pass@4": 0.5, "pass@4_stderr": 0.1, "pass@4/sum": 0.75, "pass@4/sum_low": 0.1}
    Screen().metrics("[title]", {**EVALUATION, **outcomes, **other}, "greedy")
    lines = [line.split() for line in shown().splitlines()]
    assert lines[0] == ["[title]"]
    assert lines.index(["pass@4", "50.0", "%"]) < lines.index(["sums/accuracy", "12.5", "%"])
    groups = lines.index(["prompts", "accuracy", "pass@4"])
    assert lines[groups + 1] == ["sum", "4", "50.0", "%", "75.0", "%"]
    assert lines[groups + 2 : groups + 4] == [
        ["sums", "prompts", "accuracy"],
        ["sum", "4", "50.0", "%"],
    ]
    assert describe_evaluation({**EVALUATION, **other}).count("sums/") == 1


def test_silence_is_complete_and_json_runs_speak_on_stderr(capsys):
    quiet = Screen()
    quiet.only_if(False)
    quiet.note("a")
    Screen(stderr=True).note("b")
    assert capsys.readouterr() == ("", "b\n")


def test_a_gradient_that_is_not_finite_is_the_reason_even_where_no_completion_has_an_advantage(
    shown,
):
    """A KL in the loss has a gradient of its own, which may overflow."""
    Screen().skipped(4, {"effective_samples": 0.0, "grad_norm": float("inf")})
    assert "its gradient is not finite (norm inf)" in shown()


def test_a_gap_between_sampling_and_training_is_told_with_step_sizes_and_precision(shown):
    screen = Screen()
    for step in range(7, 17):
        metrics = {"sampler_gap_mean": 0.0123, "sampler_gap_max": 4.56}
        screen.gap(step, metrics, "float32")
        screen.skipped(step, {"effective_samples": 0.0, "grad_norm": 0.0})  # counted apart
    lines = shown().splitlines()
    gaps = [line for line in lines if "sampling and training differ" in line]
    assert [line.split()[2] for line in gaps] == ["7:", "8:", "9:"]
    assert len(lines) == 6
    assert "differ by 0.012 on average and 4.6 at most, more than rounding in float32" in gaps[0]
    assert gaps[-1].endswith("further ones are only counted")
    assert "only counted" not in gaps[1]


def test_the_progress_line_shows_what_is_defined_and_leaves_out_the_rest(shown):
    screen = Screen(logging_steps=1)
    screen.start(0, 2)
    every = {
        "kl": 0.0123,
        "effective_share": 0.875,
        "variance_reduction": 0.5,
        "gradient_snr": 1.25,
        "gradient_noise_scale": 40.2,
        "sampler_gap_mean": 1e-7,
        "sampler_gap_max": 2e-6,
    }
    screen.step(1, {**METRICS, **every})
    screen.step(2, {**METRICS, **dict.fromkeys(every), "tokens_per_second": None})
    first, second = shown().splitlines()
    assert (
        "reward 0.500  1,234 tok/s  live 88%  snr 1.2  kl 0.012  variance -50%  noise scale 40  "
        "gap 1e-07  max gap 2e-06  0:00 left"
    ) in first
    assert "reward 0.500  snr 1.2  variance -50%  noise scale 40  0:00 left" in second


def test_a_bar_on_a_narrow_terminal_keeps_what_matters_most(capsys):
    for width, last in ((150, "max gap 2e-06"), (90, "live 88%"), (40, "reward 0.500")):
        screen = Screen()
        screen._console = Console(width=width, force_terminal=True)
        screen.start(0, 2)
        screen.step(1, {**METRICS, "effective_share": 0.875, "sampler_gap_max": 2e-6})
        assert screen._steps.bar.tasks[0].fields["numbers"].endswith(last)
        screen.stop()
    capsys.readouterr()


def test_the_noise_is_shown_as_it_was_last_measured(shown):
    screen = Screen(logging_steps=1)
    screen.start(0, 4)
    for step, snr in enumerate([{}, {"gradient_snr": 0.5}, {}, {"gradient_snr": 2.0}], start=1):
        screen.step(step, {**METRICS, **snr})
    found = [line.partition("snr ")[2].split(" ")[0] for line in shown().splitlines()]
    assert found == ["", "0.5", "0.5", "2"]


class Terminal(io.StringIO):
    """An output that says it is a terminal."""

    def isatty(self):
        return True


def told(screen, steps=2):
    """Let a screen show a short run."""
    screen.warn("beware")
    screen.start(0, steps)
    for step in range(1, steps + 1):
        screen.step(step, METRICS)
    screen.stop()


@pytest.fixture
def terminal(monkeypatch):
    """Make the standard output a terminal, with the environment of one."""

    def make(**environment):
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm-256color", "COLUMNS": "100", **environment}.items():
            monkeypatch.setenv(name, value)
        output = Terminal()
        monkeypatch.setattr(sys, "stdout", output)
        return output

    return make


def test_a_terminal_gets_a_bar_and_colours_and_without_colours_the_bar_alone(terminal):
    output = terminal()
    told(Screen())
    assert "\x1b[1;33mwarning:" in output.getvalue()
    assert "━" in output.getvalue()
    output = terminal(NO_COLOR="1")
    told(Screen())
    assert "━" in output.getvalue()
    assert "33m" not in output.getvalue()
    assert "warning:" in output.getvalue()


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(terminal):
    output = terminal(TERM="dumb")
    told(Screen())
    assert "\x1b" not in output.getvalue()
    assert "━" not in output.getvalue()
    assert [line.split()[0] for line in output.getvalue().splitlines()] == [
        "warning:",
        "step",
        "step",
    ]


def test_colours_that_are_forced_upon_a_file_bring_no_bar(monkeypatch, shown):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    told(Screen())
    first, *steps = shown().splitlines()
    assert first == "\x1b[1;33mwarning:\x1b[0m beware"
    assert [line.split()[1] for line in steps] == ["1/2", "2/2"]


def test_a_terse_screen_keeps_warnings_and_results(shown):
    screen = Screen(terse=True)
    screen.note("loading")
    told(screen)
    screen.completions(1, [row("2")])
    screen.evaluation("before training", EVALUATION)
    assert shown() == "warning: beware\n"
    screen.before_after(EVALUATION, {**EVALUATION, "accuracy": 0.75}, {}, "weights in here")
    output = shown()
    assert "75.0 %" in output
    assert output.splitlines()[-1] == "weights in here"
    screen.metrics("model on data", EVALUATION, "greedy")
    assert "model on data" in shown()


CHANGE = {"accuracy": {"p_value": 0.02, "difference": 0.625, "low": 0.25, "high": 0.875}}
CHANGE["accuracy"] |= {"only_first": 6, "only_second": 1}
INTERVALS = {"accuracy_low": 0.0, "accuracy_high": 0.5, "confidence": 0.95}


@pytest.mark.parametrize(("width", "tables"), [(80, 2), (120, 1)])
def test_a_comparison_too_wide_for_the_screen_is_stacked_and_no_cell_is_broken(
    width, tables, shown
):
    screen = Screen()
    screen._console = Console(width=width, force_terminal=True, color_system=None)
    before, after = {**EVALUATION, **INTERVALS}, {**EVALUATION, **INTERVALS, "accuracy": 0.75}
    screen.before_after(before, after, CHANGE, "footer")
    lines = shown().splitlines()
    assert max(map(len, lines)) <= width
    assert sum("12.5 % (0.0 to 50.0)" in line for line in lines) == 1
    assert sum("+25.0 to +87.5" in line for line in lines) == 1
    rows = [line for line in lines if line.startswith("accuracy ")]
    assert len(rows) == tables


def test_lines_in_a_file_have_no_blanks_at_their_end(shown):
    screen = Screen()
    screen.completions(1, [row("2"), row("a long one")])
    screen.before_after(EVALUATION, EVALUATION, CHANGE, "footer")
    screen.metrics("title", EVALUATION, "greedy")
    screen.samples([row("x", logprob=-2.0)])
    lines = shown().splitlines()
    assert len(lines) > 15
    assert all(line == line.rstrip() for line in lines)


def verified(verdict, passed):
    """A report of `verify`."""
    check = {"name": "a law", "value": 1e-15 if passed else 1.0, "limit": 1e-9, "passed": passed}
    options = {"baseline": "none", "num_generations": 2, "use_peft": False, "temperature": 1.0}
    options |= {"token_rewards": False, "gamma": 1.0, "beta": 0.0, "entropy_coef": 0.0}
    options |= {"processes": 1, "num_iterations": 1, "epsilon": None}
    report = {"objective": "E[r]", "options": options, "checks": [check], "variance": {"none": 1.0}}
    return {**report, "verdict": verdict, "scale": 1}


def test_a_terse_verification_is_its_verdict_and_the_checks_where_one_failed(shown):
    screen = Screen(terse=True)
    screen.verification(verified("exact", passed=True))
    assert shown() == "exact: the expected gradient is the gradient of J\n"
    screen.verified(verified("exact", passed=True))
    assert shown() == ""
    screen.verification(verified("failed", passed=False))
    output = shown()
    assert "a law" in output
    assert "FAILED" in output
    screen.verified(verified("failed", passed=False))
    assert shown().startswith("failed")
    Screen().verification(verified("exact", passed=True))
    assert "a law" in shown()


def waited_for(stages, words):
    """Two stages with nothing to do but wait for lines about them."""
    with stages:
        stages.begin("scoring [5] rows")
        deadline = time.monotonic() + 20
        while words not in stages._console.file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        stages.begin("one by one")
        stages.told(3, 4)
        time.sleep(0.1)
    return stages._console.file.getvalue()


def test_work_without_steps_gets_a_line_now_and_then_in_a_file():
    stages = Stages(Console(file=io.StringIO(), width=80), shown=True, every_s=0.01)
    said = waited_for(stages, "so far")
    assert "scoring [5] rows: 0:00 so far\n" in said
    assert "one by one: 3/4, 0:00 left\n" in said
    assert waited_for(Stages(Console(file=io.StringIO()), shown=True), "") == ""  # soon over


def test_work_without_steps_gets_a_bar_on_a_terminal_and_nothing_where_nothing_is_shown():
    def terminal():
        return Console(file=io.StringIO(), force_terminal=True, width=80)

    said = waited_for(Stages(terminal(), shown=True), "scoring [5] rows")
    assert "━" in said
    assert "3/4" in said
    assert "so far" not in said
    assert waited_for(Stages(terminal(), shown=False), "") == ""
