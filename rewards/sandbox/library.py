"""Which files a program needs to read: the standard library and what its modules load.

Installed packages are left out on purpose: a package of tests or reference answers that happens
to be installed must not be readable by the program that is being tested.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

_PACKAGE_FOLDERS = ("site-packages", "dist-packages")
_DATA = ("/etc/ld.so.cache", "/usr/share/zoneinfo")


# The state of the layer "files" where no other layer confines what can be read.
NOTHING_OPENED = "on: nothing can be opened"


@dataclass(frozen=True)
class Library:
    """Readable folders and files, and folders inside them that stay hidden; all real paths."""

    folders: tuple[str, ...]
    files: tuple[str, ...]
    hidden: tuple[str, ...]

    def expanded(self) -> Iterator[str]:
        """Yield the readable paths, each folder with something hidden as its visible entries."""
        yield from self.files
        for folder in self.folders:
            yield from self._visible(folder)

    def listed(self) -> Iterator[str]:
        """Yield the folders whose names may be listed although not all of them may be read."""
        yield from (folder for folder in self.folders if self._has_hidden(folder))

    def _has_hidden(self, folder: str) -> bool:
        return any(os.path.dirname(path) == folder for path in self.hidden)

    def _visible(self, folder: str) -> Iterator[str]:
        if not self._has_hidden(folder):
            yield folder
            return
        for entry in os.scandir(folder):
            if entry.path not in self.hidden:
                yield entry.path


def find_library() -> Library:
    """Return what this interpreter needs; its `sys.path` has the standard library only."""
    standard = _existing(path for path in sys.path if os.path.isdir(path))
    shared = _existing(_system_library_folders())
    hidden = [os.path.join(folder, name) for folder in standard for name in _PACKAGE_FOLDERS]
    for folder in shared:
        hidden += [entry.path for entry in os.scandir(folder) if entry.name.startswith("python")]
    data = _existing(_DATA)
    files = [path for path in data if os.path.isfile(path)]
    folders = [*standard, *shared, *(path for path in data if os.path.isdir(path))]
    files += _libraries_beside(standard)
    return Library(
        tuple(dict.fromkeys(folders)),
        tuple(dict.fromkeys(files)),
        tuple(path for path in dict.fromkeys(hidden) if os.path.isdir(path)),
    )


def _existing(paths: Iterator[str] | tuple[str, ...]) -> list[str]:
    return [os.path.realpath(path) for path in paths if os.path.exists(path)]


def _system_library_folders() -> Iterator[str]:
    machine = os.uname().machine
    for kind in ("gnu", "musl"):
        yield f"/lib/{machine}-linux-{kind}"
        yield f"/usr/lib/{machine}-linux-{kind}"
    yield from ("/lib64", "/usr/lib64")


def _libraries_beside(standard: list[str]) -> Iterator[str]:
    """Yield shared libraries in the interpreter's own `lib` (conda, pyenv, built from source)."""
    for parent in dict.fromkeys(os.path.dirname(path) for path in standard):
        for entry in os.scandir(parent):
            if ".so" in entry.name and entry.is_file():
                yield os.path.realpath(entry.path)
