"""What one run may use."""

from __future__ import annotations

import math
from dataclasses import dataclass

# A fork of the server needs about 50 MiB of address space before it runs anything.
LEAST_MEMORY = 128 << 20
# stdin, stdout, stderr and the RPC socket, and a few for importing modules.
LEAST_FILES = 16


@dataclass(frozen=True)
class Limits:
    """What one run may use; every limit is enforced from outside the program.

    Args:
        seconds: Wall clock from start to end of a run.
        memory_bytes: Address space of the run (`RLIMIT_AS`).
        output_bytes: Bytes of stdout and stderr together; more ends the run.
        reply_bytes: Bytes of one line on the RPC socket; more ends the run.
        open_files: Open file descriptors (`RLIMIT_NOFILE`).

    Raises:
        ValueError: A limit is not a positive finite number, or too small for any program.
    """

    seconds: float = 5.0
    memory_bytes: int = 512 << 20
    output_bytes: int = 64 << 10
    reply_bytes: int = 1 << 20
    open_files: int = 64

    def __post_init__(self) -> None:
        """Check each limit; the message names the value."""
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"Limits.seconds must be positive and finite, got {self.seconds!r}")
        least = {
            "memory_bytes": LEAST_MEMORY,
            "output_bytes": 1,
            "reply_bytes": 1,
            "open_files": LEAST_FILES,
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
                raise ValueError(f"Limits.{name} must be an int >= {smallest}, got {value!r}")
