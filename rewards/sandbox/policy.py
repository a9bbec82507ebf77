"""Which system calls a program may make, and with which arguments.

An allow-list: every call not named here is refused with EPERM. What stays reachable computes,
reads the clock and memory of its own, reads files (where another layer limits which) and talks on
the descriptors it was given. Nothing here starts a process, opens a socket to anyone, writes a
file, sends a signal or looks at another process.
"""

from __future__ import annotations

import errno

from rewards.sandbox.bpf import Check, Rule, assemble
from rewards.sandbox.syscalls import Architecture

_ALLOWED = """
    read write close close_range fstat stat lstat newfstatat statx access faccessat faccessat2
    getdents64 getcwd lseek pread64 pwrite64 readv writev preadv
    poll ppoll select pselect6 pipe dup dup2 dup3
    mmap mprotect munmap brk mremap madvise getrandom
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait
    sigaltstack nanosleep clock_nanosleep restart_syscall getitimer setitimer alarm pause
    clock_gettime clock_getres gettimeofday time times getrusage getrlimit
    getpid getppid gettid getpgrp getpgid getsid getgroups getuid geteuid getgid getegid
    getresuid getresgid uname sysinfo getcpu sched_yield sched_getaffinity sched_getparam
    sched_getscheduler sched_get_priority_max sched_get_priority_min
    set_robust_list set_tid_address rseq exit exit_group
    epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
    recvfrom shutdown getsockname getpeername getsockopt
"""

_O_ASYNC = 0o20000
# O_NONBLOCK, O_NOCTTY, O_CLOEXEC: the same on both architectures.
_HARMLESS_OPEN_FLAGS = 0o4000 | 0o400 | 0o2000000
_PIPE_FLAGS = 0o4000 | 0o2000000  # O_NONBLOCK, O_CLOEXEC
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPES = 1, 1, 0xF
# DUPFD, GETFD, SETFD, GETFL, DUPFD_CLOEXEC. F_SETOWN and F_SETSIG would signal other processes.
_FCNTL_COMMANDS = (0, 1, 2, 3, 1030)
_F_SETFL = 4
# TCGETS, TIOCGWINSZ, FIOCLEX, FIONCLEX, FIONBIO: what `io`, `os` and `socket` use.
_IOCTL_COMMANDS = (0x5401, 0x5413, 0x5451, 0x5450, 0x5421)
# WAIT, WAKE, WAIT_BITSET, WAKE_BITSET, each private or shared, on either clock: what locks use.
_FUTEX_OPERATIONS = (0, 1, 9, 10)
_FUTEX_FLAGS = 128 | 256


def _any_of(argument: int, values: tuple[int, ...], mask: int = 0xFFFFFFFF) -> Rule:
    return Rule(tuple((Check(argument, value, mask),) for value in values), errno.EPERM)


def _open_rule(architecture: Architecture, flags_at: int, may_open: bool) -> Rule:
    if not may_open:
        return Rule((), errno.EACCES)
    harmless = _HARMLESS_OPEN_FLAGS | architecture.read_flags
    return Rule(((Check(flags_at, 0, ~harmless),),), errno.EROFS)


def _always(allowed: bool) -> Rule:
    return Rule(((),) if allowed else (), errno.EACCES)


def _rules(architecture: Architecture, may_open: bool) -> dict[str, Rule]:
    fcntl = _any_of(1, _FCNTL_COMMANDS).alternatives
    return {
        "open": _open_rule(architecture, 1, may_open),
        "openat": _open_rule(architecture, 2, may_open),
        # Without a layer that limits files, even the names behind links stay hidden.
        "readlink": _always(may_open),
        "readlinkat": _always(may_open),
        # A pipe of the kernel's notifications is another thing, and has had holes of its own.
        "pipe2": Rule(((Check(1, 0, ~_PIPE_FLAGS),),), errno.EPERM),
        # Its flags are behind a pointer, which a filter cannot follow: callers fall back.
        "openat2": Rule((), errno.ENOSYS),
        "fcntl": Rule((*fcntl, (Check(1, _F_SETFL), Check(2, 0, _O_ASYNC))), errno.EPERM),
        "ioctl": _any_of(1, _IOCTL_COMMANDS),
        "futex": _any_of(1, _FUTEX_OPERATIONS, ~_FUTEX_FLAGS),
        # One's own limits may be read, never set; other processes' neither.
        "prlimit64": Rule(((Check(0, 0), Check(2, 0, whole=True)),), errno.EPERM),
        # Datagram pairs could be pointed at sockets of the host by an address.
        "socketpair": Rule(
            ((Check(0, _AF_UNIX), Check(1, _SOCK_STREAM, _SOCK_TYPES)),), errno.EPERM
        ),
        "sendto": Rule(((Check(4, 0, whole=True),),), errno.EPERM),
        # glibc falls back from clone3 to clone; EAGAIN is what a full process table answers.
        "clone3": Rule((), errno.ENOSYS),
        "clone": Rule((), errno.EAGAIN),
        "fork": Rule((), errno.EAGAIN),
        "vfork": Rule((), errno.EAGAIN),
    }


def build_filter(architecture: Architecture, *, may_open: bool) -> bytes:
    """Return the seccomp filter of a run.

    Args:
        architecture: Of the machine the run is on.
        may_open: Files may be opened for reading. Only where another layer limits which files;
            without one, nothing can be opened at all.
    """
    rules = _rules(architecture, may_open)
    return assemble(architecture, _ALLOWED.split(), rules, otherwise=errno.EPERM)
