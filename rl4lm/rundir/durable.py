"""Files and folders that are whole or not there, whatever kills the process in between.

A folder is written under another name, sealed by a manifest with the size and the SHA-256 of every
file, brought to the disk, and only then given its name. What a manifest does not vouch for is not
taken for complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
PARTIAL = ".partial"  # ending of the name of a folder that is being written
SUPERSEDED = ".superseded"  # ending of the name of a folder that another one has replaced
REMOVED = ".removed"  # ending of the name of a folder that is being removed
_FORMAT = 1
_CHUNK = 1 << 20


class DamagedError(Exception):
    """A folder that is not as its manifest says; the text says what is wrong."""


def replace_text(path: Path, text: str) -> None:
    """Write a whole file so that a reader sees the old one or the new one, never a half."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin(folder: Path) -> Path:
    """The empty place where the content of a folder is to be written."""
    partial = folder.with_name(folder.name + PARTIAL)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial


def seal(partial: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest; `finish` brings everything to the disk before it gives the name.

    Args:
        partial: of `begin`, filled.
        facts: plain values that are kept in the manifest.
    """
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    listed = {}
    for path in files:
        listed[path.relative_to(partial).as_posix()] = _fingerprint(path)
    manifest = {"format": _FORMAT, **facts, "files": listed}
    replace_text(partial / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def finish(partial: Path, folder: Path) -> None:
    """Give a written folder its name; one that has it already is set aside first."""
    for path in (*partial.rglob("*"), partial):
        sync(path)
    set_aside(folder)
    partial.rename(folder)
    sync(folder.parent)
    shutil.rmtree(folder.with_name(folder.name + SUPERSEDED), ignore_errors=True)


def set_aside(folder: Path) -> Path | None:
    """Rename a folder to what nobody takes for it; returns its new place, None if there is none."""
    if not folder.exists():
        return None
    aside = folder.with_name(folder.name + SUPERSEDED)
    if aside.exists():
        shutil.rmtree(aside)
    folder.rename(aside)
    return aside


def remove(folder: Path) -> None:
    """Remove a folder; one that a kill leaves half removed has another name by then."""
    gone = folder.with_name(folder.name + REMOVED)
    if gone.exists():
        shutil.rmtree(gone)
    folder.rename(gone)
    sync(folder.parent)
    shutil.rmtree(gone, ignore_errors=True)


def is_sealed(folder: Path) -> bool:
    """Whether a folder has its name and a manifest; its files are not looked at."""
    return (folder / MANIFEST).is_file()


def read_sealed(folder: Path, thorough: bool = True) -> dict[str, Any]:
    """The facts of a sealed folder, after every file was compared with the manifest.

    Args:
        folder: the folder.
        thorough: compare the content of the files too, and not only their sizes.

    Raises:
        DamagedError: no manifest, or a file that is missing, cut short or changed.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed = {name: dict(expected) for name, expected in manifest["files"].items()}
    except FileNotFoundError:
        raise DamagedError(f"it has no {MANIFEST}, so it was never finished") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"its {MANIFEST} cannot be read: {error}") from error
    if manifest.get("format") != _FORMAT:
        raise DamagedError(
            f"its format is {manifest.get('format')!r}, this version reads {_FORMAT}"
        )
    for name, expected in listed.items():
        _compare(folder / name, expected, thorough)
    return manifest


def _compare(path: Path, expected: Mapping[str, Any], thorough: bool) -> None:
    if not path.is_file():
        raise DamagedError(f"{path.name} is missing")
    size = path.stat().st_size
    if size != expected.get("bytes"):
        raise DamagedError(f"{path.name} has {size} bytes, {expected.get('bytes')} were written")
    if thorough and _fingerprint(path) != expected:
        raise DamagedError(f"{path.name} has other content than was written (its hash differs)")


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
