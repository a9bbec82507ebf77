"""The seccomp filter by simulation, for both architectures; aarch64 is not run anywhere here."""

import errno
import os
import socket
import struct

import pytest

from rewards.sandbox.bpf import ALLOW, ERRNO, KILL, simulate
from rewards.sandbox.policy import build_filter
from rewards.sandbox.syscalls import AARCH64, X86_64

ARCHITECTURES = pytest.mark.parametrize("machine", [X86_64, AARCH64], ids=lambda m: m.name)

# Every number up to 600 that may be called with all arguments zero, written down by hand from the
# kernel's own tables, independently of the package's.
ALLOWED_X86_64 = {
    *range(0, 1 + 1), 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22, 23, 24,
    25, 28, 32, 33, 34, 35, 36, 37, 38, 39, 44, 45, 48, 51, 52, 55, 60, 63, 72, 79, 89, 96, 97, 98,
    99, 100, 102, 104, 107, 108, 110, 111, 115, 118, 120, 121, 124, 127, 128, 130, 131, 143, 145,
    146, 147, 186, 201, 202, 204, 213, 217, 218, 219, 228, 229, 230, 231, 232, 233, 257, 262, 267,
    269, 270, 271, 273, 281, 291, 292, 293, 295, 302, 309, 318, 332, 334, 436, 439, 2,
}  # fmt: skip
ALLOWED_AARCH64 = {
    17, 20, 21, 22, 23, 24, 25, 48, 56, 57, 59, 61, 62, 63, 64, 65, 66, 67, 68, 69, 72, 73, 78, 79,
    80, 93, 94, 96, 98, 99, 101, 102, 103, 113, 114, 115, 120, 121, 123, 124, 125, 126, 128,
    132, 133, 134, 135, 136, 137, 139, 148, 150, 153, 155, 156, 158, 160, 163, 165, 168, 169, 172,
    173, 174, 175, 176, 177, 178, 179, 204, 205, 206, 207, 209, 210, 214, 215, 216, 222, 226, 233,
    261, 278, 291, 293, 436, 439,
}  # fmt: skip


def verdict(machine, name, *arguments, may_open=True):
    program = build_filter(machine, may_open=may_open)
    return simulate(program, machine.audit, machine.numbers[name], arguments)


def refusal(code):
    return ERRNO | code


@pytest.mark.parametrize(
    ("machine", "allowed"),
    [(X86_64, ALLOWED_X86_64), (AARCH64, ALLOWED_AARCH64)],
    ids=["x86_64", "aarch64"],
)
def test_exactly_the_calls_on_the_list_are_allowed(machine, allowed):
    program = build_filter(machine, may_open=True)
    found = {n for n in range(601) if simulate(program, machine.audit, n) == ALLOW}
    assert found == allowed


@ARCHITECTURES
def test_every_call_that_is_not_allowed_is_answered_by_an_errno_and_never_by_a_kill(machine):
    program = build_filter(machine, may_open=True)
    for number in range(601):
        answer = simulate(program, machine.audit, number)
        assert answer == ALLOW or answer & 0xFFFF0000 == ERRNO


@ARCHITECTURES
@pytest.mark.parametrize("number", [0, 1, 39, 231])
def test_a_call_of_another_architecture_kills(machine, number):
    program = build_filter(machine, may_open=True)
    i386 = 0x40000003
    other = AARCH64 if machine is X86_64 else X86_64
    for audit in (i386, other.audit):
        assert simulate(program, audit, number) == KILL


@pytest.mark.parametrize("number", [0x40000000, 0x40000000 + 41, 0xFFFFFFFF])
def test_the_x32_numbers_kill(number):
    assert simulate(build_filter(X86_64, may_open=True), X86_64.audit, number) == KILL


@ARCHITECTURES
def test_files_open_for_reading_only(machine):
    reading = os.O_RDONLY | os.O_CLOEXEC
    assert verdict(machine, "openat", -100, 0, reading) == ALLOW
    creating, truncating, appending, path, tmpfile = 0o100, 0o1000, 0o2000, 0o10000000, 0o20000000
    for flag in (os.O_WRONLY, os.O_RDWR, creating, truncating, appending, path, tmpfile):
        assert verdict(machine, "openat", -100, 0, reading | flag) == refusal(errno.EROFS)


@ARCHITECTURES
def test_without_a_layer_that_confines_files_none_can_be_opened_or_followed(machine):
    assert verdict(machine, "openat", -100, 0, 0, may_open=False) == refusal(errno.EACCES)
    assert verdict(machine, "readlinkat", -100, 0, may_open=False) == refusal(errno.EACCES)


@ARCHITECTURES
def test_fcntl_cannot_make_the_kernel_signal_another_process(machine):
    set_flags, set_owner, set_signal, set_owner_ex, asynchronous = 4, 8, 10, 15, 0o20000
    assert verdict(machine, "fcntl", 0, set_flags, os.O_NONBLOCK) == ALLOW
    assert verdict(machine, "fcntl", 0, set_flags, asynchronous) == refusal(errno.EPERM)
    for command in (set_owner, set_signal, set_owner_ex):
        assert verdict(machine, "fcntl", 0, command) == refusal(errno.EPERM)


@ARCHITECTURES
def test_limits_can_be_read_but_neither_set_nor_read_of_another_process(machine):
    assert verdict(machine, "prlimit64", 0, 7, 0, 0x7FFF0000) == ALLOW
    assert verdict(machine, "prlimit64", 0, 7, 0x7FFF0000, 0) == refusal(errno.EPERM)
    assert verdict(machine, "prlimit64", 1, 7, 0, 0x7FFF0000) == refusal(errno.EPERM)


@ARCHITECTURES
def test_a_pointer_is_compared_in_both_halves(machine):
    lower_half_zero = 0x7FFF_0000_0000
    assert verdict(machine, "prlimit64", 0, 7, lower_half_zero) == refusal(errno.EPERM)
    assert verdict(machine, "sendto", 3, 0, 1, 0, lower_half_zero) == refusal(errno.EPERM)


@ARCHITECTURES
def test_the_upper_half_of_an_int_is_ignored_as_the_kernel_does(machine):
    write_only_below = 1 << 32 | os.O_WRONLY
    assert verdict(machine, "openat", -100, 0, write_only_below) == refusal(errno.EROFS)
    assert verdict(machine, "fcntl", 0, 1 << 32 | 8) == refusal(errno.EPERM)


@ARCHITECTURES
def test_pipes_are_ordinary_ones(machine):
    assert verdict(machine, "pipe2", 0, os.O_CLOEXEC | os.O_NONBLOCK) == ALLOW
    notifications = os.O_EXCL
    assert verdict(machine, "pipe2", 0, notifications) == refusal(errno.EPERM)


@ARCHITECTURES
def test_socket_pairs_are_unix_streams_only(machine):
    nonblocking = socket.SOCK_STREAM | os.O_NONBLOCK
    assert verdict(machine, "socketpair", socket.AF_UNIX, nonblocking) == ALLOW
    for kind in (2, 3, 5):
        assert verdict(machine, "socketpair", socket.AF_UNIX, kind) == refusal(errno.EPERM)
    assert verdict(machine, "socketpair", 2, nonblocking) == refusal(errno.EPERM)


@ARCHITECTURES
def test_processes_and_threads_cannot_be_made(machine):
    assert verdict(machine, "clone", 17) == refusal(errno.EAGAIN)
    assert verdict(machine, "clone3") == refusal(errno.ENOSYS)
    assert verdict(machine, "execve") == refusal(errno.EPERM)


def test_no_jump_of_a_filter_leaves_it():
    for machine in (X86_64, AARCH64):
        program = build_filter(machine, may_open=True)
        code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
        targets = [
            place + 1 + max(if_true, if_false)
            for place, (operation, if_true, if_false, _) in enumerate(code)
            if operation in (0x15, 0x35)
        ]
        assert len(targets) > 10
        assert max(targets) < len(code)
