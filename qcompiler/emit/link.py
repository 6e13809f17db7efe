"""Object files -> shared library, by whichever linker the machine has."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from qcompiler.errors import Error

_ELF = {"x86_64": "elf_x86_64", "aarch64": "aarch64linux"}


def link(codes: Sequence[Path], triple: str) -> bytes:
    """Object files -> the bytes of a shared library; libc and libm symbols are left to the process
    that loads it, those of its own are its own, whatever that process has by their names.
    """
    library = codes[0].with_suffix(".so")
    command = [*linker(triple), "-shared", "-s", "-o", str(library), *map(str, codes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Error(f"the linker failed: {done.stderr.strip()[:500]}", where=" ".join(command))
    return library.read_bytes()


def linker(triple: str) -> list[str]:
    """The command that links for an architecture: LLVM's or GNU's linker, a C compiler, or the
    ziglang package's lld.
    """
    machine = triple.split("-")[0]
    emulation = ["-m", _ELF[machine]] if machine in _ELF else []
    for name in ("ld.lld", f"{machine}-linux-gnu-ld", "ld"):
        if shutil.which(name) and (name != "ld" or _native(machine)):
            return [name, *emulation, "-Bsymbolic"]
    for name in (f"{machine}-linux-gnu-gcc", *(("cc", "gcc", "clang") if _native(machine) else ())):
        if shutil.which(name):
            return [name, "-nostdlib", "-Wl,-Bsymbolic"]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "ld.lld", *emulation, "-Bsymbolic"]
    raise Error(
        f"no linker for {machine} was found",
        hint="`apt install binutils` on Debian and Ubuntu, or anywhere `pip install ziglang`",
    )


def _native(machine: str) -> bool:
    import platform

    return platform.machine() == machine
