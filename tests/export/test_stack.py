"""Instructions that take stack, as assemblers encode them, and how functions add up to a run."""

from __future__ import annotations

import struct

import pytest

from qcompiler.export.elf import ALLOC, EXECUTE, FUNCTION, LOCAL, PROGBITS, Elf, Section, Symbol
from qcompiler.export.stack import most

X86, AARCH64, ARM, RISCV = 62, 183, 40, 243
X86_ALWAYS = 8 * 8 + 128


def file(machine: int, functions: dict[str, bytes], *, odd: int = 0) -> Elf:
    """An object file of functions one after the other."""
    code, symbols = b"", [Symbol("", -1, bind=LOCAL)]
    for name, body in functions.items():
        symbols.append(Symbol(name, 0, len(code) + odd, len(body), FUNCTION))
        code += body
    text = Section(".text", PROGBITS, ALLOC | EXECUTE, code, len(code), 4)
    return Elf(64 if machine in (X86, AARCH64) else 32, machine, 0, (text,), tuple(symbols))


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def halves(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}H", *values)


@pytest.mark.parametrize(
    ("code", "taken"),
    [
        (words(0xD100C3FF), 48),  # sub sp, sp, #48
        (words(0xD14007FF), 4096),  # sub sp, sp, #1, lsl #12
        (words(0xA9BA7BFD, 0x910003FD), 96),  # stp x29, x30, [sp, #-96]!; mov x29, sp
        (words(0x6DB83BEF), 128),  # stp d15, d14, [sp, #-128]!
        (words(0xF81F0FFE), 16),  # str x30, [sp, #-16]!
        (words(0xD10083E9, 0x927AE53F), 32 + 64),  # sub x9, sp, #32; and sp, x9, #~63
        (words(0x910083FF, 0xF9400BE8, 0xA8C17BFD), 0),  # add sp; ldr x8, [sp, #16]; ldp .., #16
    ],
)
def test_64_bit_arm(code: bytes, taken: int) -> None:
    assert most(file(AARCH64, {"f": code}), ()) == taken


@pytest.mark.parametrize(
    ("code", "taken"),
    [
        (words(0xE92D4FF0), 36),  # push {r4-r11, lr}
        (words(0xED2D8B10), 64),  # vpush {d8-d15}
        (words(0xE24DD030), 48),  # sub sp, sp, #48
        (words(0xE24DDB01), 1024),  # sub sp, sp, #1024
        (words(0xE52DB004), 4),  # str r11, [sp, #-4]!
        (words(0xE24D4020, 0xE7C3401F), 32 + 16),  # sub r4, sp, #32; bfc r4, #0, #4
        (words(0xE28DD030, 0xE8BD8FF0), 0),  # add sp, sp, #48; pop
    ],
)
def test_32_bit_arm(code: bytes, taken: int) -> None:
    assert most(file(ARM, {"f": code}), ()) == taken


@pytest.mark.parametrize(
    ("code", "taken"),
    [
        (halves(0xB5F0), 20),  # push {r4-r7, lr}
        (halves(0xE92D, 0x4FF0), 36),  # push.w {r4-r11, lr}
        (halves(0xED2D, 0x8B10), 64),  # vpush {d8-d15}
        (halves(0xB08C), 48),  # sub sp, #48
        (halves(0xF5AD, 0x7D00), 512),  # sub.w sp, sp, #512
        (halves(0xF2AD, 0x4D04), 1028),  # subw sp, sp, #1028
        (halves(0xF84D, 0x8D04), 4),  # str r8, [sp, #-4]!
        (halves(0xF1AD, 0x0420, 0xF36F, 0x0405), 32 + 64),  # sub.w r4, sp, #32; bfc r4, #0, #6
        (halves(0xF240, 0xB08C), 0),  # movw, whose second half would be a subtraction
        (halves(0xB00C, 0xBDF0), 0),  # add sp, #48; pop
    ],
)
def test_thumb(code: bytes, taken: int) -> None:
    assert most(file(ARM, {"f": code}, odd=1), ()) == taken


@pytest.mark.parametrize(
    ("code", "taken"),
    [
        (b"\x48\x83\xec\x28", 40),  # sub rsp, 40
        (b"\x48\x81\xec\x00\x10\x00\x00", 4096),  # sub rsp, 4096
        (b"\x48\x83\xe4\xc0\x48\x83\xec\x40", 64 + 64),  # and rsp, -64; sub rsp, 64
        (b"\x48\x8d\x64\x24\xe8", 24),  # lea rsp, [rsp - 24]
        (b"\x48\x83\xc4\x28\xc3", 0),  # add rsp, 40; ret
    ],
)
def test_x86(code: bytes, taken: int) -> None:
    assert most(file(X86, {"f": code}), ()) == X86_ALWAYS + taken


def test_a_run_takes_its_functions_and_the_largest_kernel() -> None:
    """Kernels, phases of kernels, and pieces are not active at the same time."""
    sizes = {
        "net_run": 16,
        "qcompiler_run": 32,
        "qcompiler_piece0": 48,
        "qcompiler_piece1": 64,
        "conv": 96,
        "conv_other": 80,
        "mean_phase1": 112,
    }
    code = {n: words(0xD10003FF | size << 10) for n, size in sizes.items()}
    found = most(file(AARCH64, code), {"conv", "conv_other", "mean"})
    assert found == 16 + 32 + 64 + 112


def test_what_cannot_be_told_is_not() -> None:
    assert most(file(RISCV, {"f": words(0x13)}), ()) is None
    assert most(file(AARCH64, {"f": words(0xCB2863FF)}), ()) is None  # sub sp, sp, x8


def test_constants_among_the_code_are_none() -> None:
    """As ARM's mapping symbols say."""
    made = file(ARM, {"f": halves(0xB5F0, 0xB08C, 0x4770, 0xBF00)}, odd=1)
    marks = (Symbol("$t", 0, 0, bind=LOCAL), Symbol("$d.1", 0, 2), Symbol("$t", 0, 4))
    marked = Elf(32, ARM, 0, made.sections, (*made.symbols, *marks))
    assert most(made, ()) == 20 + 48
    assert most(marked, ()) == 20
