"""What runs inside the confined child: it reads one job, a line of JSON, and serves it.

- `{"kind": "call", "programs": [...], "entry": name}`: run a program as a module, then answer
  requests `{"n": 0, "args": [...], "kwargs": {name: ...}}`, calls of the function `entry`, strictly
  one after the other, with `{"n": 0, "ok": value}`, `{"n": 0, "exc": class, "text": message}` or
  `{"n": 0, "no": reason}` (no such function, or the result is no plain data).
- `{"kind": "stdio", "programs": [...], "entry": null}`: run a program as `__main__`; the exit
  status is its own.
- `{"kind": "tests", "setup": text, "tests": text, "entry": name, "call_check": bool,
  "nonce": text}`: the other side of `call`. After the word to begin, run test code in which the
  function is a stand-in: each call is sent out as a request, the reply comes in, and at the end one
  report
  `{"report": nonce, "calls": k, "passed": p, "failed": text or null}` is sent; or
  `{"unfit": reason}` where a test hands a function something that cannot be sent.

`programs` are readings of one completion, pairs of texts `[program, part]`; the first whose program
compiles and whose part defines the entry is run, else the last. They are chosen from here because
parsing is not safe: some short texts make CPython's own parser or compiler overflow the stack.

A program can reach everything in its own process, this file and its socket too, and may send what
it likes. Nothing rests on its not doing so: the expected values and the verdict are elsewhere.
"""

from __future__ import annotations

import _sitebuiltins
import atexit
import builtins
import os
import sys
from collections.abc import Callable
from types import ModuleType

from rewards.sandbox.child import Channel, Frame, compiled, described, message
from rewards.sandbox.choice import chosen
from rewards.sandbox.grader import run_tests
from rewards.sandbox.values import NotPlain, decode, encode

_HIGHEST_DESCRIPTOR = 1023


def main(rpc_fd: int) -> int:
    """Serve the one job that the socket `rpc_fd` brings, and return the exit status."""
    _open_standard_streams()
    _add_interactive_builtins()
    channel = Channel(_moved_out_of_the_way(rpc_fd))
    job = channel.receive()
    if job is None:
        return 0
    return _KINDS[job["kind"]](job, channel)


def _serve_calls(job: Frame, channel: Channel) -> int:
    module = ModuleType("program")
    status = _run(chosen(job["programs"], job["entry"]), module)
    if status is not None:
        return status
    while (request := channel.receive()) is not None:
        channel.send({"n": request["n"], **_reply(module, job["entry"], request)})
    return 0


def _reply(module: ModuleType, name: str, request: Frame) -> Frame:
    if name not in vars(module):
        return {"no": f"the program defines no {name}"}
    try:
        args = [decode(value) for value in request["args"]]
        kwargs = {key: decode(value) for key, value in request.get("kwargs", {}).items()}
        return {"ok": encode(vars(module)[name](*args, **kwargs))}
    except NotPlain as error:
        return {"no": f"the result is {error}"}
    except BaseException as error:  # noqa: BLE001 - the program may raise anything
        return {"exc": _builtin_class(error), "text": message(error)}


def _run_script(job: Frame, channel: Channel) -> int:
    module = ModuleType("__main__")
    sys.argv = ["program.py"]
    status = _run(chosen(job["programs"], None), module)
    atexit._run_exitfuncs()
    # What the interpreter does when it ends: files that the program left open are flushed.
    vars(module).clear()
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        return 120  # as the interpreter itself does
    return status or 0


def _run(source: str, module: ModuleType) -> int | None:
    """Run a program in a module; None if it came to its end, else the exit status."""
    sys.modules[module.__name__] = module
    module.__file__ = "program.py"
    try:
        exec(compiled(source, "<program>"), vars(module))
    except SystemExit as error:
        return _exit_status(error.code)
    except BaseException as error:  # noqa: BLE001 - the program may raise anything
        sys.stderr.write(described(error, "<program>") + "\n")
        sys.stderr.flush()
        return 1
    return None


def _exit_status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return int(code) & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1


def _builtin_class(error: BaseException) -> str:
    for kind in type(error).__mro__:
        if kind.__module__ == "builtins":
            return kind.__name__
    return "Exception"


def _open_standard_streams() -> None:
    """New text streams, so that neither the locale nor the server's buffers have a say.

    Under their second names too: a program that wraps `sys.stdout.buffer` anew drops the first
    stream, which would close the buffer if nothing else held it.
    """
    # They stay open until the end; typeshed takes the second names for constants.
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(  # type: ignore[misc]  # noqa: SIM115, as above
        1, "w", encoding="utf-8", closefd=False
    )
    sys.stderr = sys.__stderr__ = open(  # type: ignore[misc]  # noqa: SIM115, as above
        2, "w", encoding="utf-8", errors="backslashreplace", closefd=False
    )


def _add_interactive_builtins() -> None:
    """`exit` and the like, which programs use and which `site`, switched off here, provides."""
    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D"))
    builtins.help = _sitebuiltins._Helper()


def _moved_out_of_the_way(descriptor: int) -> int:
    """The socket under a high number, where a program that closes or writes to 3 misses it."""
    limit = os.sysconf("SC_OPEN_MAX")
    highest = min(limit - 1, _HIGHEST_DESCRIPTOR) if limit > 0 else _HIGHEST_DESCRIPTOR
    moved = os.dup2(descriptor, highest, inheritable=False)
    os.close(descriptor)
    return moved


_KINDS: dict[str, Callable[[Frame, Channel], int]] = {
    "call": _serve_calls,
    "stdio": _run_script,
    "tests": run_tests,
}
