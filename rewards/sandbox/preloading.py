"""Modules that are there before a program runs: the usual ones, and those that it names."""

from __future__ import annotations

import contextlib
import importlib
import sys

# Modules that programs often import, or that others load late, when nothing may be opened any more;
# loaded once in the server, shared by every child.
_USUAL = """
    bisect collections copy dataclasses datetime decimal fractions functools heapq
    itertools json math operator random re statistics string typing
    _strptime encodings.ascii encodings.latin_1 encodings.utf_16 unicodedata
"""
# Modules that do something when imported, or need what the sandbox does not give.
_NEVER = "antigravity ensurepip idlelib lib2to3 test this tkinter turtle turtledemo venv"


def import_usual() -> None:
    """Import what many programs use."""
    for name in _USUAL.split():
        importlib.import_module(name)


def import_named(names: object) -> None:
    """Import modules of the standard library that the program will ask for."""
    roots = sys.stdlib_module_names - set(_NEVER.split())
    for name in names if isinstance(names, list) else []:
        parts = name.split(".")
        # `__main__` of a package does its work on import, and nothing confines it yet.
        if parts[0] in roots and "__main__" not in parts:
            _import(name)


def _import(name: str) -> None:
    """Import a module, or what a package loads when it is asked for a name of its own."""
    package, _, attribute = name.rpartition(".")
    # A name that does not exist is for the program to stumble over.
    with contextlib.suppress(ImportError, AttributeError):
        try:
            importlib.import_module(name)
        except ImportError:
            getattr(sys.modules.get(package), attribute)
