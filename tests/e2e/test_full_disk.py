"""A disk that fills while a run saves: what was reported as saved is still there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# A checkpoint of the built-in model takes some 11 MB: weights and AdamW's two moments.
_RUN = """
set -eu
mkdir disk
mount -t tmpfs -o size={size}m tmpfs disk
{before}
set +e
{python} -m rl4lm train --output_dir disk/run --max_steps {steps} --save_steps 1 \\
    --prompts_per_step 4 --num_generations 4 --eval_samples 4 --torch_threads 1 {reward} \\
    > said.txt 2>&1
echo $? > code.txt
{python} look.py
"""
# The disk is gone with its name space: what is on it is looked at from inside.
_LOOK = """
import json
from pathlib import Path
from rl4lm.rundir import durable
from rl4lm.rundir.tracking import checkpoints

run = Path("disk/run")
whole = {step: durable.read_sealed(path)["step"] for step, path in checkpoints(run).items()}
steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
left = sorted(path.name for path in run.iterdir())
Path("found.json").write_text(json.dumps({"whole": sorted(whole), "steps": steps, "left": left}))
"""
_FILLS = """
from pathlib import Path
calls = 0
def fills(completions, answer, **_):
    global calls
    calls += 1
    if calls == 3:  # after the evaluation and the first step
        with open("disk/other", "wb") as file:
            try:
                while file.write(b"0" * 65536):
                    file.flush()
            except OSError:
                pass
    return [float(a == b) for a, b in zip(completions, answer)]
"""


def run_on_a_disk(folder: Path, **settings: object) -> tuple[int, str, dict]:
    """Exit code, what was said, and what was found on the disk."""
    (folder / "look.py").write_text(_LOOK)
    (folder / "fills.py").write_text(_FILLS)
    defaults = {"python": sys.executable, "before": "", "reward": ""}
    script = _RUN.format(**{**defaults, **settings})
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    said = (folder / "said.txt").read_text()
    return (
        int((folder / "code.txt").read_text()),
        said,
        json.loads((folder / "found.json").read_text()),
    )


def can_mount() -> bool:
    try:
        command = ["unshare", "--mount", "--map-root-user", "mount", "-t", "tmpfs", "t", "/mnt"]
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except OSError:
        return False


needs_mount = pytest.mark.skipif(
    not can_mount(), reason="a small disk is a mount in a name space of its own, refused here"
)


@needs_mount
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_ends_no_run_and_costs_no_earlier_one(tmp_path):
    code, said, found = run_on_a_disk(tmp_path, size=24, steps=4)
    assert code == 0, said
    assert "no checkpoint was written" in said
    assert "the last one is checkpoint-000002, the run goes on" in said
    assert found["whole"] == [1, 2]
    assert found["steps"] == [1, 2, 3, 4]
    assert "model" in found["left"]
    assert not [name for name in found["left"] if name.endswith(".partial")]


@pytest.mark.slow
@needs_mount
@pytest.mark.timeout(240)
def test_where_not_even_a_line_fits_the_run_ends_loudly_with_its_last_checkpoint(tmp_path):
    reward = "--reward_funcs fills.py:fills"
    code, said, found = run_on_a_disk(tmp_path, size=28, steps=3, reward=reward)
    assert code == 1, said
    assert "its lines wait in memory until there is room" in said
    assert "the last one is checkpoint-000001" in said
    assert "cannot be saved" in said
    assert found["whole"] == [1]
    assert found["steps"] == [1, 2, 3][: len(found["steps"])]  # as far as the last page went
    assert "Traceback" not in said
