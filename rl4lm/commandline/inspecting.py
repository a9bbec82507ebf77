"""The verbs that look at what is there: the estimator, the log of a run.

Modules that need torch are imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl4lm.commandline.commands import default_values, print_json, quiet_libraries, settings_for
from rl4lm.errors import ConfigError
from rl4lm.options import (
    OptionParser,
    add_config_arguments,
    add_output_arguments,
    config_from,
)
from rl4lm.rundir.logged import check_run

_VERIFY = (
    "use_peft",
    "lora_r",
    "lora_alpha",
    "num_generations",
    "temperature",
    "baseline",
    "gamma",
    "beta",
    "kl_in",
    "entropy_coef",
    "entropy_in",
    "num_iterations",
    "epsilon",
    "activation_checkpointing",
    "seed",
)


def verify_parser() -> OptionParser:
    """The options of ``rl4lm verify``."""
    parser = OptionParser(
        prog="rl4lm verify",
        description="Compare the trainer's own gradient with the exact one, by enumerating every "
        "completion of a tiny model. Estimator options are taken, those of a whole run too in "
        "--config; model, data and rewards are the tiny problem's, with at most 3 completions a "
        "prompt.",
    )
    add_config_arguments(parser, _VERIFY, brought=settings_for(default_values()))
    parser.add_argument("--token_rewards", action="store_true", help="pay every token apart")
    parser.add_argument("--all", action="store_true", help="every baseline and estimator option")
    add_output_arguments(parser, "what was found", quiet="the verdict, and checks that fail")
    return parser


def verify(argv: Sequence[str]) -> None:
    """``rl4lm verify``: the gradient against exact enumeration."""
    namespace = verify_parser().parse_args(argv)
    config = config_from(namespace, base_for=settings_for)
    from rl4lm.errors import VerificationError
    from rl4lm.processes.world import World
    from rl4lm.screen.console import Screen
    from rl4lm.verify import verify as check
    from rl4lm.verify import verify_all

    quiet_libraries()
    world = World()
    screen = Screen(stderr=namespace.json, terse=namespace.quiet)
    screen.only_if(world.is_main)
    if namespace.all:
        reports = []
        for report in verify_all(config, prepare=quiet_libraries):
            reports.append(report.to_dict())
            screen.verified(reports[-1])
    else:
        reports = [check(config, namespace.token_rewards).to_dict()]
        screen.verification(reports[0])
    if namespace.json and world.is_main:
        print_json(reports if namespace.all else reports[0])
    failed = sum(found["verdict"] == "failed" for found in reports)
    if namespace.all:
        exact = sum(found["passed"] for found in reports)
        screen.result(
            f"{len(reports)} sets of options: {exact} exact, {len(reports) - exact - failed} with "
            f"another objective, as documented, {failed} failed"
        )
    world.close()
    if failed:
        raise VerificationError(f"{failed} of {len(reports)} sets of options failed")


def replay_parser() -> OptionParser:
    """The options of ``rl4lm replay``."""
    parser = OptionParser(
        prog="rl4lm replay",
        description="Recompute the loss and the gradient norm of a logged step from the nearest "
        "earlier checkpoint, or the start of the run, through the logged completions.",
        usage="%(prog)s RUN_DIR --step N [--json] [--quiet]",
    )
    parser.add_argument("run", metavar="RUN_DIR", nargs="?", help="folder of the run")
    parser.add_argument("--step", type=int, help="the step, counted from 1 as in metrics.jsonl")
    add_output_arguments(parser, "what was found", quiet="whether the step agrees")
    return parser


def replay(argv: Sequence[str]) -> None:
    """``rl4lm replay``: a logged step done again."""
    parser = replay_parser()
    namespace = parser.parse_args(argv)
    if namespace.run is None or namespace.step is None:
        raise parser.lacks("name a run and a step")
    check_run(Path(namespace.run))  # again in the replay; here it answers before torch is imported
    from rl4lm.errors import VerificationError
    from rl4lm.replay import replay as do_again
    from rl4lm.screen.console import Screen

    quiet_libraries()
    found = do_again(Path(namespace.run), namespace.step)
    screen = Screen(stderr=namespace.json, terse=namespace.quiet)
    screen.replayed(found.to_dict())
    if namespace.json:
        print_json(found.to_dict())
    if not found.agrees:
        raise VerificationError(f"step {namespace.step} does not come out as it was logged")


def doctor_parser() -> OptionParser:
    """The options of ``rl4lm doctor``."""
    parser = OptionParser(
        prog="rl4lm doctor",
        description="Look through the files of a run, ended or not, for what keeps it from "
        "learning. Findings are no failure: the exit code is 0 with them and without.",
        usage="%(prog)s RUN_DIR [--json] [--quiet]",
    )
    parser.add_argument("run", metavar="RUN_DIR", nargs="?", help="folder of the run")
    add_output_arguments(parser, "the findings", quiet="the findings")
    return parser


def doctor(argv: Sequence[str]) -> None:
    """``rl4lm doctor``: why a run does not learn."""
    parser = doctor_parser()
    namespace = parser.parse_args(argv)
    if namespace.run is None:
        raise parser.lacks("name a run")
    from rl4lm.doctor import diagnose, show

    log, diagnosis = diagnose(Path(namespace.run))
    if namespace.json:
        print_json([finding.to_dict() for finding in diagnosis.findings])
    else:
        show(log, diagnosis, terse=namespace.quiet)


def report_parser() -> OptionParser:
    """The options of ``rl4lm report``."""
    parser = OptionParser(
        prog="rl4lm report",
        description="Write a run, or several side by side, as one page that opens from disk: "
        "before and after, curves, completions, settings, and what the doctor says.",
        usage="%(prog)s RUN_DIR [RUN_DIR ...] [--option value ...]",
    )
    parser.add_argument("runs", metavar="RUN_DIR", nargs="*", help="folders of runs")
    parser.add_argument(
        "--out",
        help="where the page goes; default: report.html in the run, of several runs in this folder",
    )
    parser.add_argument("--png", help="write the main curves as a picture too; needs matplotlib")
    parser.add_argument(
        "--completions", default=100_000, help="most completions on the page; default: 100000"
    )
    parser.add_argument(
        "--watch", action="store_true", help="write it again every 10 s until the runs have ended"
    )
    add_output_arguments(parser, "what was written")
    return parser


def report(argv: Sequence[str]) -> None:
    """``rl4lm report``: a page to look at a run, or several side by side."""
    parser = report_parser()
    namespace = parser.parse_args(argv)
    if not namespace.runs:
        raise parser.lacks("name a run")
    if not str(namespace.completions).isdecimal():
        raise ConfigError(f"--completions {namespace.completions}: expected a whole number >= 0")
    runs, most = [Path(run) for run in namespace.runs], int(namespace.completions)
    out = Path(namespace.out or (runs[0] if len(runs) == 1 else Path()) / "report.html")
    _write_report(runs, out, most, namespace)


def _write_report(runs: list[Path], out: Path, most: int, namespace: Any) -> None:
    from rl4lm.report.picture import draw
    from rl4lm.report.write import watch, write_report
    from rl4lm.screen.console import Screen

    screen = Screen(stderr=namespace.json)
    if namespace.watch:
        screen.note(f"{out} is written every 10 s until the run has ended; Ctrl-C stops that")
        watch(runs, out, most)
    shown = write_report(runs, out, most)
    if namespace.png:
        draw(shown, Path(namespace.png))
    told = {"report": str(out), "png": namespace.png, "bytes": out.stat().st_size}
    if namespace.json:
        print_json(told)
    else:
        screen.note(f"{out}, {told['bytes'] / 1e6:.1f} MB: open it in a browser")
