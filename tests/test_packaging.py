"""What a user installs: the wheel is whole, and its defaults work outside the checkout."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Run outside the checkout: whose packages are these, and does every default name resolve?
RESOLVE = """
import json, sys
import rl4lm, rewards
from rl4lm.builtin import BUILTIN_MODELS, model_path, model_settings
from rl4lm.config import ReinforceConfig
from rl4lm.data.examples import load_split
from rl4lm.model.loading import open_model
from rl4lm.rewarding.lookup import resolve_rewards

functions = []
for settings in [{}, *map(model_settings, BUILTIN_MODELS)]:
    config = ReinforceConfig(**settings)
    found = resolve_rewards([*config.reward_funcs, config.accuracy_func])
    plain = [getattr(each.function, "__wrapped__", each.function) for each in found]
    functions += [function.__code__.co_filename for function in plain]
    for split in (config.dataset_train_split, config.dataset_test_split):
        assert len(load_split(config.dataset_name, split, config.prompt_column)) > 0
    open_model(config.model_name_or_path)
places = [rl4lm.__file__, rewards.__file__, *functions]
places += [str(model_path(name)) for name in BUILTIN_MODELS]
print(json.dumps(places))
"""


def run(*command, **settings):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=250,
        **settings,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    here = importlib.util.find_spec("hatchling") is not None
    isolation = ["--no-build-isolation"] if here else []
    pip = ["-m", "pip", "wheel", "--no-deps", "--no-cache-dir", *isolation]
    done = run(*pip, "-w", folder, ROOT, cwd=folder)
    if not here and "hatchling" in done.stderr and "No matching distribution" in done.stderr:
        pytest.skip("the build backend is neither installed nor within reach")
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel's content, and the environment that imports from it first."""
    target = tmp_path_factory.mktemp("target")
    with zipfile.ZipFile(wheel) as archive:  # a pure wheel is installed by unpacking it
        archive.extractall(target)
    environment = {"PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return target, {**os.environ, **environment}


def test_every_file_of_both_packages_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        str(path.relative_to(ROOT))
        for package in ("rl4lm", "rewards")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= names
    assert "rl4lm/builtin/tiny-arithmetic/model.safetensors" in names
    assert "rl4lm/builtin/settings/tiny-arithmetic.yaml" in names
    others = {name.split("/")[0] for name in names - sources}
    assert len(others) == 1, f"a wheel must not install {others}"


def test_the_wheel_is_pure_and_brings_the_command(wheel, installed):
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size < 10e6
    (information,) = installed[0].glob("*.dist-info")
    assert "rl4lm = rl4lm.cli:main" in (information / "entry_points.txt").read_text()
    assert list(information.rglob("LICENSE"))


def test_every_default_name_resolves_to_what_the_wheel_brings(installed, tmp_path):
    target, environment = installed
    done = run("-c", RESOLVE, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    places = [Path(place) for place in json.loads(done.stdout)]
    # Two packages; a reward and an accuracy of the defaults and of both models; the two models.
    assert len(places) == 2 + 3 * 2 + 2
    assert all(place.is_relative_to(target) for place in places)


def test_the_installed_command_scores_a_row(installed, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "completion": "2", "answer": "2"}\n')
    reward = ["--reward", "rewards.arithmetic:exact_answer", "--data", "rows.jsonl", "--json"]
    done = run("-m", "rl4lm", "score", *reward, cwd=tmp_path, env=installed[1])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mean"] == 1.0


def test_another_package_named_rewards_is_shown_by_its_place(installed, tmp_path):
    """`python -m` looks in the working folder first, and other packages have this name too."""
    (tmp_path / "rewards.py").write_text("def mine(completions, **columns): return []\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "completion": "2", "answer": "2"}\n')
    words = ["--reward", "rewards.arithmetic:exact_answer", "--data", "rows.jsonl"]
    done = run("-m", "rl4lm", "score", *words, cwd=tmp_path, env=installed[1])
    assert done.returncode == 2
    assert f"rewards is {tmp_path / 'rewards.py'}" in done.stderr


def test_this_environment_imports_our_own_rewards():
    import rewards

    assert Path(rewards.__file__).is_relative_to(ROOT)
    assert importlib.metadata.version("rl4lm")
    owners = importlib.metadata.packages_distributions().get("rewards", ["rl4lm"])
    assert set(owners) == {"rl4lm"}


def test_the_readme_names_every_extra_and_no_other():
    text = (ROOT / "pyproject.toml").read_text()
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))
    table = (ROOT / "README.md").read_text().split("| extra |")[1].split("\n\n")[0]
    first_cells = " ".join(row.split("|")[1] for row in table.splitlines()[1:])
    named = set(re.findall(r"`(\w+)`", first_cells))
    assert extras == named


def test_version_and_licence_are_the_same_wherever_they_stand():
    cited = (ROOT / "CITATION.cff").read_text()
    declared = (ROOT / "pyproject.toml").read_text()
    for field in ("version", "license"):
        (first,) = re.findall(rf'^{field} = "(.+)"', declared, re.MULTILINE)
        assert re.findall(rf"^{field}: (.+)", cited, re.MULTILINE) == [first]
