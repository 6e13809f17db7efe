"""AMX or AVX-VNNI machine code on a CPU that lacks it -> the same results, slowly.

`load()` compiles emulator.c with gcc and installs its SIGILL handler in this process; from then on
every thread may run AMX (tile, int8, bf16), AVX-VNNI and AVX-VNNI-INT8 instructions. A CPU that has
them never raises the signal, so the same tests run at full speed there.

The emulator changes what the CPU does, not what it says: CPUID and /proc/cpuinfo still deny AMX. A
test hands the features that it wants to the compiler and the runtime itself. Linux's answer when a
process asks for the tile registers is changed, for good: by a filter of system calls, which grants
them, in this process and in those that it starts. A child process must call `load()` again after
exec.
"""

import ctypes
import functools
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from qcompiler.hardware import cpu

SOURCE = Path(__file__).with_name("emulator.c")
EMULATED = {"amx_tile", "amx_int8", "amx_bf16", "avx_vnni", "avx_vnni_int8"}
"""Features as Linux names them, in /proc/cpuinfo."""
FLAGS = ("-O2", "-ffp-contract=off", "-shared", "-fPIC")

# Linux, asm/prctl.h and asm/fpu/types.h: a process asks for 8 KiB of tile data before it uses them.
SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18


class Unavailable(RuntimeError):
    """Why there is no emulator here: the text for `pytest.skip`."""


def compile_library(source: Path, *flags: str) -> ctypes.CDLL:
    """C source -> the loaded shared library. Nothing stays on disk."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise Unavailable("no gcc to compile the emulator")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / f"{source.stem}.so"
        subprocess.run([compiler, *FLAGS, *flags, str(source), "-o", str(output)], check=True)
        return ctypes.CDLL(str(output))


@functools.cache
def library() -> ctypes.CDLL:
    """-> emulator.c, loaded but not installed; AMX is granted. Raises `Unavailable`."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Unavailable(
            f"the emulator is for Linux on x86-64, this is {sys.platform} on {platform.machine()}"
        )
    compiled = compile_library(SOURCE)
    compiled.emulator_count.restype = ctypes.c_ulong
    # An AMX machine grants it, and the signal never comes; any other refuses it, and it comes.
    asked = (SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    if ctypes.CDLL(None).syscall(*asked) != 0 and compiled.emulator_answer(0) != 0:
        raise Unavailable("Linux refuses a filter of system calls, which grants tile registers")
    return compiled


def refuse(error: int) -> None:
    """From now on this process is refused tile registers, with that errno."""
    if library().emulator_answer(error) != 0:
        raise Unavailable("Linux refuses a filter of system calls")


def load() -> None:
    """This process -> this process with the handler installed; again when something replaced it.

    Raises `Unavailable` without gcc or off Linux on x86-64.
    """
    if library().emulator_install() != 0:
        raise Unavailable("sigaction refused the SIGILL handler")


def load_or_skip(flags: Iterable[str] = ()) -> None:
    """`load()`, or the running test is skipped with the reason: among others that this CPU has not
    all of these features, and they are none of the emulated ones.
    """
    if missing := sorted({*flags} - EMULATED - cpu.features()):
        pytest.skip(f"this CPU lacks {', '.join(missing)}")
    try:
        load()
    except Unavailable as reason:
        pytest.skip(str(reason))


def count() -> int:
    """-> how many instructions this process emulated so far: 0 on a CPU that has them all."""
    return int(library().emulator_count())


def observe(told: ctypes.c_void_p | None) -> None:
    """The address of a C function (`observer` in emulator.c) that is called for every tile load,
    store and product from now on; None: no function.
    """
    library().emulator_observe(told or ctypes.c_void_p())
