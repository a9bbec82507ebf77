"""Which modules of the standard library a job names after `import` or `from`.

Needed only where nothing can be opened in a run: these modules are then loaded before the filter
comes on. Found by pattern, in the job as it is: a module too many does no harm, and a hostile
program must not meet Python's parser in the process that trains.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

_NAME = rb"[A-Za-z_][\w.]*"
_LIST = _NAME + rb"(?:[ \t]*,[ \t]*" + _NAME + rb")*"
_STATEMENT = re.compile(rb"\b(?:from[ \t]+(%b)[ \t]+)?import[ \t(]+(%b)" % (_NAME, _LIST))
_MOST_MODULES = 64
_LONGEST_NAME = 64


def named_modules(job: bytes) -> list[str]:
    """Return the standard library modules that the job's text seems to import, sorted.

    `from a import b` names `a` and, in case `b` is a module, `a.b`. The number and length of the
    names are bounded, whatever the job says.
    """
    found: set[str] = set()
    for name in _named(job):
        if len(name) <= _LONGEST_NAME and name.partition(".")[0] in sys.stdlib_module_names:
            found.add(name)
        if len(found) >= _MOST_MODULES:
            break
    return sorted(found)


def _named(job: bytes) -> Iterator[str]:
    # In JSON a line of the program begins behind a backslash and an "n".
    text = job.replace(b"\\n", b"\n").replace(b"\\t", b"\t")
    for statement in _STATEMENT.finditer(text):
        package, names = statement.groups()
        if package:
            yield package.decode("ascii")
        for name in names.split(b","):
            yield b".".join(filter(None, (package, name.strip()))).decode("ascii")
