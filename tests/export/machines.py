"""An exported model -> what it computes, on this machine or on one that qemu emulates.

A program around it reads samples from a file and writes what the model gives to another, in memory
whose bytes before and behind the workspace are looked at, and on a stack that is painted before
each run, so that it shows how much of it a run has taken. Microcontrollers are boards that qemu
knows, with nothing on them but that program, which reaches files by semihosting.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from qcompiler.dtypes import numpy_dtype
from qcompiler.export.elf import read
from qcompiler.export.header import Facts, members
from qcompiler.export.merge import undefined
from qcompiler.ir import Array

HERE = Path(__file__).parent / "cortex_m"
STRICT = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2")


@dataclass(frozen=True)
class Machine:
    """A target, and what builds and runs programs for it: any of some compilers; the emulator and
    its words; for a board without an operating system, where flash and RAM begin and end.
    """

    target: str
    compilers: tuple[tuple[str, ...], ...]
    emulators: tuple[tuple[str, ...], ...] = ()
    board: tuple[int, int, int] | None = None


def _board(target: str, triple: str, machine: str, flash: int, ram: int, size: int) -> Machine:
    cpu = target.replace("_", "-")
    clang = ("clang", f"--target={triple}", f"-mcpu={cpu}", "-mfloat-abi=hard", "-ffreestanding")
    shown = ("-nographic", "-monitor", "none", "-serial", "none")
    qemu = ("qemu-system-arm", "-machine", machine, "-cpu", cpu, *shown)
    calls = ("-semihosting-config", "enable=on,target=native", "-kernel")
    return Machine(target, (clang,), ((*qemu, *calls),), (flash, ram, size))


def _linux(target: str, cpu: str, machine: str = "aarch64", abi: str = "") -> Machine:
    emulators = tuple((f"qemu-{machine}{end}", "-cpu", cpu) for end in ("", "-static"))
    return Machine(target, ((f"{machine}-linux-gnu{abi}-gcc", "-static"),), emulators)


MEGABYTE = 1 << 20
SLACK = 512
"""Bytes of stack that a run may leave of what it says it takes: functions that it does not reach
from its largest kernel, and the frame of the function that looks.
"""
OF_C = 64
"""Bytes of stack that memcpy and memset may take."""
MACHINES = {
    "x86-64": Machine("x86_avx2", (("gcc", "-static"), ("clang", "-static"))),
    "cortex-a53": _linux("raspberry_pi_3", "cortex-a53"),
    "cortex-a76": _linux("raspberry_pi_5", "cortex-a76"),
    "cortex-a7": _linux("generic_armv7", "cortex-a7", "arm", "eabihf"),
    "cortex-m4": _board(
        "cortex_m4", "thumbv7em-none-eabihf", "mps2-an386", 0, 0x20000000, 4 * MEGABYTE
    ),
    "cortex-m7": _board(
        "cortex_m7", "thumbv7em-none-eabihf", "mps2-an500", 0, 0x20000000, 4 * MEGABYTE
    ),
    "cortex-m33": _board(
        "cortex_m33", "thumbv8m.main-none-eabihf", "mps2-an505", 0x10000000, 0x38000000, MEGABYTE
    ),
    "cortex-m55": _board(
        "cortex_m55", "thumbv8.1m.main-none-eabihf", "mps3-an547", 0, 0x20000000, MEGABYTE // 2
    ),
}


def demand(machine: Machine) -> None:
    """Skip, with the reason, where a tool is not there."""
    _found(machine.compilers)
    if machine.emulators:
        _found(machine.emulators)
    if machine.board and shutil.which("ld.lld") is None:
        pytest.skip("no ld.lld here")


def run(
    machine: Machine, facts: Facts, folder: Path, samples: Sequence[Mapping[str, Array]]
) -> list[dict[str, Array]]:
    """What the model in a folder gives for some samples."""
    (folder / "program.c").write_text(program(facts))
    feeds = [
        s[v.name].astype(numpy_dtype(v.dtype)).tobytes() for s in samples for v in facts.inputs
    ]
    (folder / "in.bin").write_bytes(b"".join(feeds))
    build(machine, folder, facts.name)
    emulator = _found(machine.emulators) if machine.emulators else ()
    command = [*emulator, "./program"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])
    data, at, found = (folder / "out.bin").read_bytes(), 0, []
    for _ in samples:
        row = {}
        for value in facts.outputs:
            dtype = numpy_dtype(value.dtype)
            count = int(np.prod(value.shape))
            row[value.name] = np.frombuffer(data, dtype, count, at).reshape(value.shape)
            at += count * dtype.itemsize
        found.append(row)
        _demand_stack(facts, folder, int.from_bytes(data[at : at + 4], "little"))
        at += 4
    assert at == len(data)
    return found


def _demand_stack(facts: Facts, folder: Path, taken: int) -> None:
    """What a run has taken of the stack is at most what the header says, and what functions of C
    take if it calls any; and not much less: on x86 this counts pushes and the red zone for every
    function, whether it has them or not.
    """
    assert facts.stack_bytes is not None
    calls = undefined(read((folder / f"{facts.name}.o").read_bytes()))
    assert 0 < taken <= facts.stack_bytes + (OF_C if calls else 0)
    assert facts.stack_bytes <= taken + (2048 if facts.target.startswith("x86") else SLACK)


def build(machine: Machine, folder: Path, name: str) -> None:
    """The program in a folder, around NAME.o."""
    compiler = _found(machine.compilers)
    ours = (HERE / ("start.c" if machine.board else "hosted.c"), folder / "program.c")
    if machine.board is None:
        words = (*compiler, *STRICT, f"-I{folder}", *ours, folder / f"{name}.o")
        _done(*words, "-lm", "-o", folder / "program")
        return
    objects = []
    for source in ours:
        objects.append(folder / f"{source.stem}.obj")
        _done(*compiler, *STRICT, f"-I{folder}", "-c", source, "-o", objects[-1])
    places = zip(("FLASH", "RAM", "RAM_BYTES"), machine.board, strict=True)
    defined = [f"--defsym={n}={value}" for n, value in places]
    words = ("ld.lld", "-T", HERE / "board.ld", *defined, *objects, folder / f"{name}.o")
    _done(*words, "-o", folder / "program")


def program(facts: Facts) -> str:
    """C that runs a model on every sample of in.bin."""
    n, m = facts.name, facts.macro
    lines = [
        f'#include "{n}.h"',
        "int open_file(const char *, int);",
        "int read_file(int, void *, size_t);",
        "int write_file(int, const void *, size_t);",
        f"enum {{ GUARD = {m}_ALIGN }};",
        f"_Alignas({m}_ALIGN) static unsigned char memory[{m}_WORKSPACE_BYTES + 2 * GUARD];",
    ]
    sides = {"input": facts.inputs, "output": facts.outputs}
    for side, values in sides.items():
        for member in members(values):
            size = f"{m}_{side.upper()}_{member.upper()}_BYTES"
            align = f"_Alignas({m}_ALIGN)"
            lines.append(f"{align} static unsigned char {side}_{member}[{size} ? {size} : 1];")
    lines.append(_STACK.replace("@M", m))
    lines += ["int main(void) {", '    int in = open_file("in.bin", 0);']
    lines += ['    int out = open_file("out.bin", 1);', "    if (in < 0 || out < 0) return 60;"]
    for side, values in sides.items():
        of = ", ".join(f"(void *){side}_{x}" for x in members(values))
        lines.append(f"    struct {n}_{side}s {side}s = {{{of}}};")
    lines.append(
        "    for (size_t i = 0; i < sizeof memory; i++) memory[i] = (unsigned char)(i * 7);"
    )
    lines.append("    for (;;) {")
    for member in members(facts.inputs):
        size = f"{m}_INPUT_{member.upper()}_BYTES"
        lines.append(f"        if (read_file(in, input_{member}, {size})) return 0;")
    lines.append("        stack(1);")
    lines.append(f"        int status = {n}_run(&inputs, &outputs, memory + GUARD);")
    lines.append("        uint32_t taken = stack(0);")
    lines.append("        if (status) return 80 + status;")
    for member in members(facts.outputs):
        size = f"{m}_OUTPUT_{member.upper()}_BYTES"
        lines.append(f"        if (write_file(out, output_{member}, {size}))")
        lines.append("            return 61;")
    lines += [
        "        if (write_file(out, &taken, sizeof taken)) return 61;",
        "        for (size_t i = 0; i < GUARD; i++) {",
        f"            size_t behind = GUARD + {m}_WORKSPACE_BYTES + i;",
        "            if (memory[i] != (unsigned char)(i * 7)) return 62;",
        "            if (memory[behind] != (unsigned char)(behind * 7)) return 63;",
        "        }",
        "    }",
        "}",
    ]
    return "\n".join(lines) + "\n"


_STACK = """
/* Paints the stack below its caller; or tells how much of the paint is gone. */
__attribute__((noinline)) static uint32_t stack(int paint) {
    enum { BYTES = @M_STACK_BYTES + 1024 };
    volatile unsigned char area[BYTES], *at = area;
    __asm__ volatile("" : "+r"(at));
    size_t i = 0;
    if (paint)
        for (; i < BYTES; i++) at[i] = 0xA5;
    else
        while (i < BYTES && at[i] == 0xA5) i++;
    return (uint32_t)(BYTES - i);
}
"""


def _found(commands: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The first command of which there is a program; a skip where there is none."""
    for command in commands:
        if shutil.which(command[0]):
            return command
    pytest.skip(f"no {' nor '.join(c[0] for c in commands)} here")


def _done(*words: object) -> None:
    command = list(map(str, words))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
