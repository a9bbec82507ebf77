"""A release, as a user gets it: built, installed outside of the checkout, and used there."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What a wheel must hold besides the code.
CARRIED = [
    *(f"rl4lm/builtin/{n}/{f}" for n in ("tiny-arithmetic", "tiny-code") for f in ("README.md",)),
    *(f"rl4lm/builtin/{n}/model.safetensors" for n in ("tiny-arithmetic", "tiny-code")),
    "rl4lm/report/assets/page.html",
    "rl4lm/report/assets/vendor/uPlot.iife.min.js",
    "rl4lm/report/assets/vendor/uPlot.LICENSE",
    "rl4lm/py.typed",
    "rewards/py.typed",
]

pytestmark = pytest.mark.slow


def run(*command, **settings):
    """A program that must succeed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, **settings)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def clean_environment(**more):
    """This environment without what would lead to the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """What builds a distribution (sdist, wheel) of a folder into another one."""
    tools = tmp_path_factory.mktemp("tools")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tools), "hatchling"]
    got = subprocess.run(pip, capture_output=True, text=True, timeout=280)
    if got.returncode != 0 and "No matching distribution" in got.stderr:
        pytest.skip("the build backend is not within reach")
    assert got.returncode == 0, got.stderr
    environment = clean_environment(PYTHONPATH=str(tools))

    def make(kind, source, into):
        run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", into,
            cwd=source, env=environment)  # fmt: skip
        (built,) = Path(into).glob("*.whl" if kind == "wheel" else "*.tar.gz")
        return built

    return make


@pytest.fixture(scope="module")
def wheel(build, tmp_path_factory):
    """The wheel of this checkout."""
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(build, tmp_path_factory):
    """The sources of this checkout, unpacked."""
    archive = build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return source


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The programs of an environment that has the wheel, and its dependencies from this one."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel,
        env=clean_environment())  # fmt: skip
    # Of the packages here, an editable rl4lm is not seen: nested .pth files are not followed.
    (packages,) = (place / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return place / "bin"


def content(wheel):
    """Name -> bytes of every file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_carries_models_licences_and_types_and_neither_tests_nor_recipes(wheel):
    files = content(wheel)
    assert [name for name in CARRIED if name not in files] == []
    for model in ("tiny-arithmetic", "tiny-code"):
        assert b"license: apache-2.0" in files[f"rl4lm/builtin/{model}/README.md"].lower()
    assert b"MIT" in files["rl4lm/report/assets/vendor/uPlot.LICENSE"]
    (licence,) = [name for name in files if name.endswith("dist-info/licenses/LICENSE")]
    assert files[licence] == (ROOT / "LICENSE").read_bytes()
    assert {name.split("/")[0].split("-")[0] for name in files} == {"rl4lm", "rewards"}
    assert not [name for name in files if "test" in name.split("/") or "recipes" in name]


def test_the_sources_build_the_same_wheel(build, sdist, wheel, tmp_path):
    again = content(build("wheel", sdist, tmp_path))
    first = content(wheel)
    assert set(again) == set(first)
    assert [name for name in first if again[name] != first[name]] == []


def test_the_sources_hold_what_one_needs_to_work_on_them(sdist):
    for name in ("tests/test_packaging.py", "recipes/README.md", "docs/maths.md", "LICENSE",
                 "CHANGELOG.md", "CITATION.cff", "Makefile", "constraints.txt"):  # fmt: skip
        assert (sdist / name).exists(), name
    assert not (sdist / ".git").exists()


def test_an_installed_release_trains_and_reports_in_an_empty_folder(installed, tmp_path):
    environment = clean_environment()
    program = installed / "rl4lm"
    where = run(installed / "python", "-c", "import rl4lm; print(rl4lm.__file__)",
                cwd=tmp_path, env=environment)  # fmt: skip
    assert Path(where.strip()).is_relative_to(installed.parent)
    train = ["--model_name_or_path", "builtin:tiny-arithmetic", "--output_dir", "run"]
    short = ["--max_steps", "2", "--prompts_per_step", "8", "--eval_samples", "20", "--quiet"]
    shown = run(program, "train", *train, *short, cwd=tmp_path, env=environment)
    assert "2 steps" in shown
    assert "before training" not in shown  # it was to be quiet
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    (tmp_path / "run" / "report.html").unlink()
    run(program, "report", "run", cwd=tmp_path, env=environment)
    assert "uPlot" in (tmp_path / "run" / "report.html").read_text()
    assert "complete -F" in run(program, "completion", "bash", cwd=tmp_path, env=environment)
