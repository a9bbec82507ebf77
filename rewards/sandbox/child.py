"""What the children of the sandbox share: lines of JSON, compiling, and errors in words."""

from __future__ import annotations

import json
import os
from types import CodeType
from typing import Any

from rewards.sandbox.values import MAX_LINE

Frame = dict[str, Any]

_LONGEST_TEXT = 300  # characters of an error message that are sent


class Channel:
    """Lines of JSON over a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unread = b""

    def receive(self) -> Frame | None:
        """The next frame; None at the end of the stream."""
        while b"\n" not in self._unread:
            more = os.read(self._descriptor, 1 << 16)
            if not more:
                return None
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        frame: Frame = json.loads(line)
        return frame

    def send(self, frame: Frame) -> None:
        """Send a frame; one that is too long is replaced by the reason."""
        line = json.dumps(frame).encode() + b"\n"
        if len(line) > MAX_LINE:
            line = json.dumps({"n": frame.get("n"), "no": "a result that is too large"}).encode()
            line += b"\n"
        while line:
            line = line[os.write(self._descriptor, line) :]


def compiled(source: str, name: str) -> CodeType:
    """The program as code, free of this file's own `from __future__` imports."""
    return compile(source, name, "exec", dont_inherit=True)


def message(error: BaseException) -> str:
    """The text of an exception, cut; empty where its own methods fail."""
    try:
        # The text of a KeyError is quoted, and would be quoted twice when it is raised again.
        only = error.args[0] if len(error.args) == 1 else error
        return (only if isinstance(only, str) else str(error))[:_LONGEST_TEXT]
    except BaseException:  # noqa: BLE001 - its `__str__` is the program's
        return ""


def described(error: BaseException, name: str) -> str:
    """Class, message and the last line of the source `name` that took part."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == name:
            line = trace.tb_lineno
        trace = trace.tb_next
    text = error.msg if isinstance(error, SyntaxError) else message(error)
    where = f" (line {line})" if line else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"
