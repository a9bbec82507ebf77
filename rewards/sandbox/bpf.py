"""Assembler of the seccomp filter, and a simulator that says what a filter answers.

A filter is a classic BPF program over `struct seccomp_data`: the call's number, the architecture
and six 64-bit arguments. The simulator executes the same instructions, so that the table of
verdicts can be checked for an architecture that is not at hand.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewards.sandbox.syscalls import Architecture

KILL = 0x80000000
ERRNO = 0x00050000
ALLOW = 0x7FFF0000

_LOAD = 0x20
_AND = 0x54
_JUMP_EQUAL = 0x15
_JUMP_AT_LEAST = 0x35
_RETURN = 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_WORD = 0xFFFFFFFF

Instruction = tuple[int, int, int, int]


@dataclass(frozen=True)
class Check:
    """One condition on an argument: `argument & mask == value`.

    The kernel reads most arguments as 32-bit ints and ignores the upper half, so only the lower
    half is compared, unless `whole` asks for both (pointers).
    """

    argument: int
    value: int
    mask: int = _WORD
    whole: bool = False

    def words(self) -> list[tuple[int, int, int]]:
        """Return (offset, mask, value) of each 32-bit word to compare."""
        at = _ARGUMENTS_AT + 8 * self.argument
        lower = (at, self.mask & _WORD, self.value & _WORD)
        if not self.whole:
            return [lower]
        return [lower, (at + 4, _WORD, self.value >> 32)]


@dataclass(frozen=True)
class Rule:
    """A call allowed if all tests of one alternative hold, and refused with `errno` if not."""

    alternatives: tuple[tuple[Check, ...], ...]
    errno: int


def assemble(
    architecture: Architecture,
    allowed: Sequence[str],
    rules: Mapping[str, Rule],
    otherwise: int,
) -> bytes:
    """Return the filter as the kernel reads it.

    Args:
        architecture: Whose numbers to use; another one than the running kernel's kills.
        allowed: Names of calls allowed whatever their arguments.
        rules: Calls that depend on their arguments, by name.
        otherwise: The errno of every other call.
    """
    numbers = architecture.numbers
    program: list[Instruction] = _prologue(architecture)
    for name, rule in rules.items():
        if name in numbers:
            body = _rule(rule)
            program.append((_JUMP_EQUAL, 0, len(body), numbers[name]))
            program += body
    plain = [numbers[name] for name in allowed if name in numbers]
    for place, number in enumerate(plain):
        # The jump goes over the rest of the list and the refusal, onto the last instruction.
        program.append((_JUMP_EQUAL, len(plain) - place, 0, number))
    program += [(_RETURN, 0, 0, ERRNO | otherwise), (_RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _prologue(architecture: Architecture) -> list[Instruction]:
    checks = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, architecture.audit),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    if architecture.foreign_calls:
        checks += [(_JUMP_AT_LEAST, 0, 1, architecture.foreign_calls), (_RETURN, 0, 0, KILL)]
    return checks


def _rule(rule: Rule) -> list[Instruction]:
    body: list[Instruction] = []
    for tests in rule.alternatives:
        body += _alternative(tests)
    return [*body, (_RETURN, 0, 0, ERRNO | rule.errno)]


def _alternative(tests: Sequence[Check]) -> list[Instruction]:
    words = [word for test in tests for word in test.words()]
    length = 3 * len(words) + 1
    body: list[Instruction] = []
    for at, mask, value in words:
        body += [(_LOAD, 0, 0, at), (_AND, 0, 0, mask)]
        # A test that fails goes on behind this alternative.
        body.append((_JUMP_EQUAL, 0, length - len(body) - 1, value))
    return [*body, (_RETURN, 0, 0, ALLOW)]


def simulate(program: bytes, audit: int, number: int, arguments: Sequence[int] = ()) -> int:
    """Return what the filter answers (`ALLOW`, `KILL` or `ERRNO` with an errno) to one call."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    given = struct.pack("=IIQ6Q", number & _WORD, audit, 0, *(a & (2**64 - 1) for a in padded))
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at, word = 0, 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        if operation == _RETURN:
            return int(operand)
        if operation == _LOAD:
            word = struct.unpack_from("=I", given, operand)[0]
        elif operation == _AND:
            word &= operand
        else:
            held = word == operand if operation == _JUMP_EQUAL else word >= operand
            at += if_true if held else if_false
