"""Folders that are whole or not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rl4lm.rundir import durable
from rl4lm.rundir.durable import DamagedError


def write(folder: Path, text: str = "content", step: int = 3) -> Path:
    partial = durable.begin(folder)
    (partial / "inner").mkdir()
    (partial / "a.bin").write_text(text)
    (partial / "inner" / "b.bin").write_text("more")
    durable.seal(partial, {"step": step})
    durable.finish(partial, folder)
    return folder


def test_a_sealed_folder_gives_back_its_facts(tmp_path):
    facts = durable.read_sealed(write(tmp_path / "c"))
    assert facts["step"] == 3
    assert set(facts["files"]) == {"a.bin", "inner/b.bin"}


def test_nothing_has_the_name_before_everything_is_written(tmp_path):
    partial = durable.begin(tmp_path / "c")
    (partial / "a.bin").write_text("content")
    durable.seal(partial, {})
    assert not (tmp_path / "c").exists()


def cut_short(folder: Path) -> None:
    os.truncate(folder / "a.bin", 3)


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "inner" / "b.bin").read_bytes())
    data[1] ^= 1
    (folder / "inner" / "b.bin").write_bytes(data)


def lose_a_file(folder: Path) -> None:
    (folder / "a.bin").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / durable.MANIFEST).unlink()


def garble_the_manifest(folder: Path) -> None:
    (folder / durable.MANIFEST).write_text("{")


def come_from_the_future(folder: Path) -> None:
    manifest = json.loads((folder / durable.MANIFEST).read_text())
    (folder / durable.MANIFEST).write_text(json.dumps({**manifest, "format": 99}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_short, "a.bin has 3 bytes, 7 were written"),
        (flip_a_bit, "b.bin has other content"),
        (lose_a_file, "a.bin is missing"),
        (lose_the_manifest, "never finished"),
        (garble_the_manifest, "manifest.json cannot be read"),
        (come_from_the_future, "format is 99"),
    ],
)
def test_damage_is_named(damage, words, tmp_path):
    folder = write(tmp_path / "c")
    durable.read_sealed(folder)
    damage(folder)
    with pytest.raises(DamagedError, match=words):
        durable.read_sealed(folder)


def test_only_a_look_at_the_content_finds_a_flipped_bit(tmp_path):
    folder = write(tmp_path / "c")
    flip_a_bit(folder)
    assert durable.read_sealed(folder, thorough=False)["step"] == 3


def test_what_a_folder_replaces_is_there_until_the_new_one_is(tmp_path, monkeypatch):
    write(tmp_path / "c", "old")

    def killed(self: Path, target: Path) -> Path:
        if self.name.endswith(durable.PARTIAL):
            raise KeyboardInterrupt
        return original(self, target)

    original = Path.rename
    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "c", "new")
    aside = tmp_path / ("c" + durable.SUPERSEDED)
    assert durable.read_sealed(aside)
    assert (aside / "a.bin").read_text() == "old"


def test_a_folder_that_was_replaced_leaves_nothing_behind(tmp_path):
    write(tmp_path / "c", "old")
    write(tmp_path / "c", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert (tmp_path / "c" / "a.bin").read_text() == "new"


def test_a_text_is_replaced_at_once(tmp_path):
    durable.replace_text(tmp_path / "t", "one")
    durable.replace_text(tmp_path / "t", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    assert (tmp_path / "t").read_text() == "two"


DIES = """
import os, signal, sys
from pathlib import Path
from rl4lm.rundir import durable

unlink = os.unlink

def dies(*args, **keywords):
    unlink(*args, **keywords)
    os.kill(os.getpid(), signal.SIGKILL)

os.unlink = dies
durable.remove(Path(sys.argv[1]))
"""


def test_a_kill_during_a_removal_leaves_nothing_under_the_old_name(tmp_path):
    folder = write(tmp_path / "checkpoint-000003")
    killed = subprocess.run([sys.executable, "-c", DIES, str(folder)], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not folder.exists()
    gone = tmp_path / ("checkpoint-000003" + durable.REMOVED)
    files = {path.name for path in gone.rglob("*") if path.is_file()}
    assert 0 < len(files) < 3  # half removed: a.bin, b.bin and the manifest were there
    durable.remove(write(folder))  # again, with the remains in the way
    assert list(tmp_path.iterdir()) == []
