"""What the server's interpreter is told to run.

The package is put together by hand: importing `rewards` the ordinary way would run the package's
own imports, and would leave its folder on the path for the programs to find.
"""

from __future__ import annotations

import os

_CODE = """
import sys, types
sys.path.remove("")
for name, folder in (("rewards", {parent!r}), ("rewards.sandbox", {folder!r})):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [folder]
from rewards.sandbox import server
server.main()
"""


def command(interpreter: str) -> list[str]:
    """Return the command line of a server.

    Without `-I` and `-E`: those would ignore PYTHONHASHSEED. The environment is scrubbed instead.
    """
    folder = os.path.dirname(os.path.abspath(__file__))
    code = _CODE.format(parent=os.path.dirname(folder), folder=folder)
    return [interpreter, "-s", "-S", "-B", "-X", "utf8", "-c", code]


def environment() -> dict[str, str]:
    """Return the whole environment of a server and of every program."""
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0"}
