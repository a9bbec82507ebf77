"""The benchmarks run at their smallest, as their first lines say, and their page is made."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def run(script, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, BENCHMARKS / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_programs_race_in_turns_and_ours_is_compared_with_each(tmp_path):
    out = tmp_path / "vs_trl-T-varied-1.json"
    asked = ("--size", "T", "--variant", "varied", "--contenders", "ours", "hand_rolled")
    printed = run("vs_trl.py", *asked, "--rounds", 1, "--side_rounds", 1, "--out", out)
    assert "| hand_rolled |" in printed
    found = json.loads(out.read_text())
    for result in found["results"].values():
        assert 2 < result["mean_length"] < 14  # ends are drawn, of at most 16 tokens
        (step,) = result["steps"]
        assert sum(step["phases_cpu_s"].values()) == step["cpu_s"]
        assert min(step["phases_cpu_s"].values()) >= -0.01
        assert result["memory"]["imported_bytes"] < result["memory"]["peak_bytes"]
    ours, other = (found["results"][name]["cpu_s"]["median"] for name in ("ours", "hand_rolled"))
    assert found["ratios"]["hand_rolled"]["cpu_s"]["median"] == other / ours


@pytest.mark.slow
def test_floors_and_exponents_are_measured_and_the_page_holds_them(tmp_path):
    run("limits.py", "--sizes", "T", "--rounds", 1, "--out", tmp_path / "limits-T-1.json")
    asked = ("--axes", "length", "--points", 2, "--steps", 1, "--no_memory")
    run("scaling.py", *asked, "--out", tmp_path / "scaling-1.json")
    (tmp_path / "unknown-1.json").write_text("{}")
    page = tmp_path / "RESULTS.md"
    run("results.py", "--results", tmp_path, "--out", page)
    text = page.read_text()
    assert text.index("## Against the machine") < text.index("## Growth")
    assert "| T | training |" in text
    assert "| tokens of a completion |" in text
    assert "`unknown-1.json`" in text
    found = json.loads((tmp_path / "limits-T-1.json").read_text())["results"]["T"]
    # By hand: 4 layers of 4·128² + 3·128·512 weights; 288 prompt tokens and 64·15 fed ones.
    assert found["operations"]["sampling"]["layers"] == 2 * 4 * 262_144 * (288 + 960)
    assert found["operations"]["training"]["head"] == 6 * 128 * 100 * 1024
    assert 0 < found["median"]["step"]["share_at_shapes"] < 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="pins processes to cores")
def test_two_processes_do_the_work_of_one_and_their_collectives_are_counted(tmp_path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    out = tmp_path / "processes-T.json"
    printed = run("processes.py", "--shape", "T", "--steps", 1, "--rounds", 1, "--out", out)
    assert "| two, FSDP2 |" in printed
    found = json.loads(out.read_text())["results"]
    one, replicated, sharded = found.values()
    for result in (replicated, sharded):
        (step,), (alone,) = result["steps"], one["steps"]
        assert step["reward"] == pytest.approx(alone["reward"], abs=1e-12)
        assert step["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
        assert result["ratio"]["median"] == alone["wall_s"] / step["wall_s"]
        assert sum(result["shares"].values()) == pytest.approx(1, abs=0.05)
    # By hand: 4 layers of 4·128² + 3·128·512 + 2·128 weights, the tied head's 100·128, the norm's.
    layers, rest = 4 * (262_144 + 256) * 4, (12_800 + 128) * 4  # bytes
    assert one["collectives"] == {}
    assert replicated["collectives"]["allreduce"] == {"calls": 1, "bytes": layers + rest}
    told = sharded["collectives"]
    # For the rollout and the forward pass all of them, for the way back the layers once more.
    assert told["allgather_base"] == {"calls": 5 + 5 + 4, "bytes": 2 * (layers + rest) + layers}
    assert told["reduce_scatter_base"] == {"calls": 5, "bytes": layers + rest}
    run("results.py", "--results", tmp_path, "--out", tmp_path / "RESULTS.md")
    assert "## Several processes" in (tmp_path / "RESULTS.md").read_text()


def test_two_processes_that_are_not_quick_enough_are_named(processes):
    def payload(size, seconds):
        """One step of each layout: alone 10 s, the others so many, a tenth of it waiting."""
        taken = dict(
            zip([layout.name for layout in processes.LAYOUTS], (10, *seconds), strict=True)
        )
        parts = {"sample": 0.3, "score": 0.0, "centre": 0.1, "gradient": 0.5, "reduce": 0.1}
        steps = {
            name: {
                "wall_s": s,
                "idle_s": 0.1 * s,
                "parts_s": {part: share * s for part, share in (parts | {"update": 0.0}).items()},
                "peak_bytes": [1, 2],
            }
            for name, s in taken.items()
        }
        rounds = [{name: {"steps": [step], "collectives": {}} for name, step in steps.items()}]
        results = {name: processes.result(rounds, name, 64) for name in taken}
        return {"settings": {"shape": size}, "results": results}

    quick = payload("S", (5, 6))
    assert processes.verdict(quick).endswith("missed by: none.")
    assert processes.verdict(payload("S", (5, 7))).endswith("missed by: two, FSDP2.")
    found = quick["results"]["two, replicated"]
    assert found["ratio"]["median"] == 2
    assert found["samples_per_s"]["median"] == 64 / 5
    assert found["shares"] == pytest.approx(
        {"sampling": 0.3, "gradient": 0.5, "waiting": 0.1, "telling": 0.1, "update": 0.0}
    )


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("processes")


@pytest.fixture
def cost_model(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("cost_model"), importlib.import_module("costs")


def test_the_cost_model_adds_up_and_processes_wait_where_lengths_differ_only(cost_model):
    model, costs = cost_model
    shape, full = model.MODELS["7B"], model.MODES[0]
    n = 28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18_944) + 2 * 3584 * 152_064
    assert model.weights(shape) == n
    assert costs.sum_seconds(8e9, model.H100, 1) == 0
    # 7/4 of the bytes over a link of 450 GB/s at 0.7, and 2·3 hops.
    summed = costs.sum_seconds(4 * n, model.H100, 8)
    assert summed == pytest.approx(7 / 4 * 4 * n / 315e9 + 6 * 5e-6)
    alike = dataclasses.replace(model.with_prompts(32), spread=0.0)
    equal = costs.step_cost(shape, full, alike, model.H100, 8)
    assert equal.waiting == pytest.approx(0, abs=1e-9)
    assert equal.telling == pytest.approx(summed)
    assert equal.memory > 16 * n
    differing = costs.step_cost(shape, full, model.with_prompts(32), model.H100, 8)
    assert differing.waiting > 0.01 * differing.seconds


def test_sharded_parameters_take_less_memory_and_more_telling_and_adapters_least_of_both(
    cost_model,
):
    model, costs = cost_model
    work = model.with_prompts(128)
    full, adapters, sharded = (
        costs.step_cost(model.MODELS["7B"], mode, work, model.H100, 64) for mode in model.MODES
    )
    assert sharded.memory < full.memory
    assert adapters.telling < full.telling
    assert sharded.update < full.update / 60
    assert adapters.sampling > full.sampling  # casts of frozen weights are not kept


def test_the_tables_of_the_cost_model_are_printed_with_the_two_processes(
    cost_model, monkeypatch, capsys
):
    model, _ = cost_model
    asked = ["--gpus", "2", "8", "--prompts_per_gpu", "1", "--prompts", "8"]
    monkeypatch.setattr(sys, "argv", ["cost_model.py", *asked])
    model.main()
    printed = capsys.readouterr().out
    assert printed.count("| 7B | FSDP2 |") == 4
    assert "was measured on a GPU" in printed
    ratio = float(printed.split("| ratio | ")[1].split(" |")[0])
    assert 1.6 < ratio < 2


def test_the_rows_of_the_page_on_scaling_are_what_the_cost_model_prints(
    cost_model, monkeypatch, capsys
):
    model, _ = cost_model
    monkeypatch.setattr(sys, "argv", ["cost_model.py"])
    model.main()
    printed = capsys.readouterr().out.splitlines()
    page = (BENCHMARKS.parent / "docs" / "scaling.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in page if line.startswith(tuple(f"| {name} |" for name in model.MODELS))]
    assert len(rows) > 20
    assert [row for row in rows if row not in printed] == []


@pytest.mark.slow
def test_without_trl_the_comparison_says_what_to_install_and_what_to_leave_out():
    code = (
        "import runpy, sys; sys.modules['trl'] = None; sys.argv = ['vs_trl.py']; "
        f"sys.path.insert(0, {str(BENCHMARKS)!r}); "
        f"runpy.run_path({str(BENCHMARKS / 'vs_trl.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert "pip install 'rl4lm[bench]'" in done.stderr
    assert "--contenders ours hand_rolled" in done.stderr
