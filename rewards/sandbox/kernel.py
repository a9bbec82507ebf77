"""The Linux calls that Python has no function for, through ctypes.

Only the server imports this module; the process that trains never does. Every function raises
OSError with the errno of the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from rewards.sandbox.syscalls import Architecture, this_architecture

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 47, 4
_LAST_POSSIBLE_CAPABILITY = 63
_CAPABILITY_VERSION_3 = 0x20080522
_SECCOMP_SET_MODE_FILTER = 1
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

# PyDLL holds the interpreter's lock during a call: after a raw clone the child must own it.
_LIBC = ctypes.PyDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long

Argument = int | bytes | ctypes.Array[ctypes.c_char] | None


def architecture() -> Architecture:
    """Return the table of this machine's calls; the caller has checked that there is one."""
    known = this_architecture()
    if known is None:
        raise OSError(errno.ENOSYS, f"no table of system calls for {os.uname().machine}")
    return known


def call(name: str, *arguments: Argument) -> int:
    """Make the system call `name` and return its result."""
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    ctypes.set_errno(0)
    result = int(_LIBC.syscall(ctypes.c_long(architecture().numbers[name]), *wide))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return result


def prctl(option: int, value: int = 0, third: int = 0) -> None:
    """Change one attribute of this process."""
    call("prctl", option, value, third, 0, 0)


def pidfd_open(pid: int) -> int:
    """Return a descriptor that becomes readable when the process ends."""
    return call("pidfd_open", pid, 0)


def install_filter(program: bytes) -> None:
    """Put the seccomp filter on this process, for good."""
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, padding, a pointer to them.
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    call("seccomp", _SECCOMP_SET_MODE_FILTER, 0, header)


def drop_capabilities() -> None:
    """Give up every capability, and the ways to get one back."""
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(_LAST_POSSIBLE_CAPABILITY + 1):
        try:
            prctl(_PR_CAPBSET_DROP, capability)
        except OSError:
            # EINVAL: beyond the kernel's last. EPERM: an ordinary user has nothing to drop, and
            # no_new_privs keeps the bounding set from ever mattering.
            break
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    call("capset", header, bytes(24))
    left = ctypes.create_string_buffer(24)
    call("capget", header, left)
    if any(left.raw):
        raise OSError(errno.EPERM, "capabilities are left after dropping all", "capset")


def landlock_version() -> int:
    """Return the Landlock ABI of the kernel; OSError if there is none."""
    return call("landlock_create_ruleset", None, 0, _LANDLOCK_CREATE_RULESET_VERSION)


def landlock_ruleset(attributes: bytes) -> int:
    """Return a descriptor of a new ruleset that handles the rights in `attributes`."""
    return call("landlock_create_ruleset", attributes, len(attributes), 0)


def landlock_allow(ruleset: int, path: str, rights: int) -> None:
    """Allow `rights` on the file or beneath the folder at `path`."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", rights, descriptor)
        call("landlock_add_rule", ruleset, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)


def landlock_restrict(ruleset: int) -> None:
    """Put the ruleset on this process, for good."""
    call("landlock_restrict_self", ruleset, 0)


def clone(flags: int) -> int:
    """Fork into new namespaces; returns 0 in the child, as `os.fork` does."""
    return call("clone", flags, 0, 0, 0, 0)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mount `source` on `target`."""
    names = (None if text is None else os.fsencode(text) for text in (source, target, kind))
    call("mount", *names, flags, options.encode())


def mount_read_only(target: str, attributes: int) -> None:
    """Set mount attributes on `target` and everything mounted beneath it (Linux 5.12)."""
    structure = struct.pack("=QQQQ", attributes, 0, 0, 0)
    size = len(structure)
    call("mount_setattr", _AT_FDCWD, os.fsencode(target), _AT_RECURSIVE, structure, size)


def pivot_root_here() -> None:
    """Make the current folder the root and let go of the old one."""
    call("pivot_root", b".", b".")
    detach = 2
    call("umount2", b".", detach)
