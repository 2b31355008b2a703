"""The filter as a program: run here by a small interpreter, for both processors."""

import errno
import struct

import pytest

from fermata.kit.errors import SandboxUnsupportedError
from fermata.sandboxes.providers.local.seccomp import build_filter

ALLOW, KILL = 0x7FFF0000, 0x80000000
X86, ARM = 0xC000003E, 0xC00000B7


def decide(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What the kernel would answer; fails where the kernel would refuse the program."""
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<iIQ6Q", number, arch, 0, *(argument & (1 << 64) - 1 for argument in padded))
    at = accumulator = 0
    while True:
        operation, yes, no, value = code[at]
        at += 1
        if operation == 0x20:
            assert value % 4 == 0
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x15:
            at += yes if accumulator == value else no
        elif operation == 0x25:
            at += yes if accumulator > value else no
        elif operation == 0x45:
            at += yes if accumulator & value else no
        else:
            assert operation == 0x06
            return value


def error(number: int) -> int:
    return 0x00050000 | number


@pytest.mark.parametrize(("machine", "arch"), [("x86_64", X86), ("aarch64", ARM)])
def test_every_path_through_the_filter_ends_in_a_decision(machine: str, arch: int) -> None:
    program = build_filter(machine)
    for number in range(600):
        for argument in (0, 1, 2, 10, 16, 0x5412, 0x10000000, 0o060000):
            decide(program, arch, number, argument, argument, argument)


@pytest.mark.parametrize(
    ("call", "x86", "arm", "arguments", "answer"),
    [
        ("read", 0, 63, (), ALLOW),
        ("execve", 59, 221, (), ALLOW),
        ("mount", 165, 40, (), error(errno.EPERM)),
        ("bpf", 321, 280, (), error(errno.EPERM)),
        ("clone3", 435, 435, (), error(errno.ENOSYS)),
        ("a future call", 470, 470, (), error(errno.ENOSYS)),
        ("a negative number", -1, -1, (), error(errno.ENOSYS)),
        ("clone of a thread", 56, 220, (0x3D0F00,), ALLOW),
        ("clone with a new network", 56, 220, (0x40000011,), error(errno.EPERM)),
        ("a unix socket", 41, 198, (1, 1, 0), ALLOW),
        ("a TCP socket with flags", 41, 198, (2, 0o2004001, 6), ALLOW),
        ("a UDP socket", 41, 198, (10, 2, 17), ALLOW),
        ("a DCCP socket", 41, 198, (2, 6, 33), error(errno.EPROTONOSUPPORT)),
        ("MPTCP", 41, 198, (2, 1, 262), error(errno.EPROTONOSUPPORT)),
        ("routes by netlink", 41, 198, (16, 3, 0), ALLOW),
        ("netfilter by netlink", 41, 198, (16, 3, 12), error(errno.EPROTONOSUPPORT)),
        ("Bluetooth", 41, 198, (31, 1, 0), error(errno.EAFNOSUPPORT)),
        ("asking a terminal's size", 16, 29, (0, 0x5413), ALLOW),
        ("typing into a terminal", 16, 29, (0, 0x5412), error(errno.EPERM)),
        ("typing, with bits above", 16, 29, (0, 0x1_0000_5412), error(errno.EPERM)),
        ("a FIFO", 259, 33, (0, 0, 0o010644), ALLOW),
        ("a character device", 259, 33, (0, 0, 0o020644), error(errno.EPERM)),
        ("no randomization, as debuggers want", 135, 92, (0x40000,), ALLOW),
        ("an odd personality", 135, 92, (0x400000,), error(errno.EPERM)),
        ("fallocate", 285, 47, (), error(errno.EOPNOTSUPP)),
    ],
)
def test_calls_are_judged_alike_on_both_processors(
    call: str, x86: int, arm: int, arguments: tuple[int, ...], answer: int
) -> None:
    assert decide(build_filter("x86_64"), X86, x86, *arguments) == answer, call
    assert decide(build_filter("aarch64"), ARM, arm, *arguments) == answer, call


def test_calls_by_another_processors_numbers_end_the_program() -> None:
    assert decide(build_filter("x86_64"), 0x40000003, 0) == KILL
    assert decide(build_filter("aarch64"), X86, 0) == KILL


def test_numbers_of_the_x32_dialect_do_not_exist() -> None:
    assert decide(build_filter("x86_64"), X86, 0x40000000 | 165) == error(errno.ENOSYS)


def test_an_unknown_processor_is_refused_in_words() -> None:
    with pytest.raises(SandboxUnsupportedError, match="riscv64"):
        build_filter("riscv64")
