"""An exported model -> what it computes, on this machine or on one that qemu emulates.

A program around it reads samples from a file and writes what the model gives to another, in memory
whose bytes before and behind the workspace are looked at. Microcontrollers are boards that qemu
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
from qcompiler.export.header import Facts, members
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


def _linux(target: str, cpu: str) -> Machine:
    emulators = tuple((name, "-cpu", cpu) for name in ("qemu-aarch64", "qemu-aarch64-static"))
    return Machine(target, (("aarch64-linux-gnu-gcc", "-static"),), emulators)


MEGABYTE = 1 << 20
MACHINES = {
    "x86-64": Machine("x86_avx2", (("gcc",), ("clang",))),
    "cortex-a53": _linux("raspberry_pi_3", "cortex-a53"),
    "cortex-a76": _linux("raspberry_pi_5", "cortex-a76"),
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
    assert at == len(data)
    return found


def build(machine: Machine, folder: Path, name: str) -> None:
    """The program in a folder, around NAME.o."""
    compiler = _found(machine.compilers)
    ours = (HERE / ("start.c" if machine.board else "hosted.c"), folder / "program.c")
    if machine.board is None:
        words = (*compiler, *STRICT, f"-I{folder}", *ours, folder / f"{name}.o")
        _done(*words, "-o", folder / "program")
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
            lines.append(f"{align} static unsigned char {side}_{member}[{size}];")
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
        lines.append(f"        if (read_file(in, input_{member}, sizeof input_{member})) return 0;")
    lines.append(f"        int status = {n}_run(&inputs, &outputs, memory + GUARD);")
    lines.append("        if (status) return 80 + status;")
    for member in members(facts.outputs):
        lines.append(f"        if (write_file(out, output_{member}, sizeof output_{member}))")
        lines.append("            return 61;")
    lines += [
        "        for (size_t i = 0; i < GUARD; i++) {",
        f"            size_t behind = GUARD + {m}_WORKSPACE_BYTES + i;",
        "            if (memory[i] != (unsigned char)(i * 7)) return 62;",
        "            if (memory[behind] != (unsigned char)(behind * 7)) return 63;",
        "        }",
        "    }",
        "}",
    ]
    return "\n".join(lines) + "\n"


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
