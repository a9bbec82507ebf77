"""A sandbox for programs that a model wrote.

A program runs in a process of its own, forked by a server that was exec'd with a clean environment
and knows nothing of the training. The process gives up everything before it reads its job: system
calls by a seccomp allow-list, files by Landlock or a mount namespace, memory, time and descriptors
by limits, privileges for good. What is right or wrong is decided outside, in the parent.

    with Sandbox() as sandbox:
        verdicts = sandbox.map(judge, programs)    # judge(runner, program) -> verdict

`python -m rewards.sandbox --self-test` shows what works on this machine. Linux only.
"""

from __future__ import annotations

from rewards.sandbox.errors import Ended, SandboxFailed, SandboxUnavailable
from rewards.sandbox.limits import Limits
from rewards.sandbox.pool import Runner, Sandbox
from rewards.sandbox.session import Exit, Session

__all__ = [
    "Ended",
    "Exit",
    "Limits",
    "Runner",
    "Sandbox",
    "SandboxFailed",
    "SandboxUnavailable",
    "Session",
]
