"""Object files -> shared library, by any linker on this machine for their architecture."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from qcompiler.errors import Error
from qcompiler.hardware import cpu

_GNU = ("-Bsymbolic", "-z", "noseparate-code")
_LLVM = ("-Bsymbolic", "--no-rosegment")
"""Constant tables follow the code in the same pages, which leaves no page half empty."""
_ELF = {
    "x86_64": "elf_x86_64",
    "aarch64": "aarch64linux",
    "armv7": "armelf_linux_eabi",
    "riscv64": "elf64lriscv",
}
_TOOLS = {"armv7": "arm-linux-gnueabihf"}
"""Prefixes of GNU's tools, where they are not MACHINE-linux-gnu."""


def link(codes: Sequence[bytes], triple: str) -> bytes:
    """Object files' bytes -> those of a shared library. The process that loads it provides libc and
    libm, but cannot override the library's own symbols. Raises Error where there is no linker, or
    no room for its files.
    """
    command = linker(triple)
    try:
        with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
            return _linked(codes, command, Path(folder))
    except OSError as e:
        raise Error(
            f"cannot link in the temporary folder: {e.strerror or e}",
            where=str(e.filename or ""),
            hint="make room there, or name another folder in the environment variable TMPDIR",
        ) from e


def _linked(codes: Sequence[bytes], command: Sequence[str], folder: Path) -> bytes:
    paths = [folder / f"code{i}.o" for i in range(len(codes))]
    for path, code in zip(paths, codes, strict=True):
        path.write_bytes(code)
    if any(_HELPERS in code for code in codes):
        paths.append(_helpers(codes[0], command, folder))
    library = folder / "code.so"
    _called([*command, "-shared", "-s", "-o", str(library), *map(str, paths)])
    return library.read_bytes()


_HELPERS = b"\0__aeabi_"
"""How names of functions begin that compilers for 32-bit ARM call for 64-bit integers."""


def _helpers(code: bytes, command: Sequence[str], folder: Path) -> Path:
    """A shared library without content, named as the one that has those functions on every Linux,
    so that what is linked with it will be loaded with that one. `code`: an object file.
    """
    empty, made = folder / "empty.o", folder / "helpers.so"
    sections = {32: 4, 48: 4}  # where they are, and their number: none
    head = bytearray(code[:52])
    for at, size in sections.items():
        head[at : at + size] = bytes(size)
    empty.write_bytes(head)
    _called([*command, "-shared", "-soname", "libgcc_s.so.1", "-o", str(made), str(empty)])
    return made


def _called(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split())[:500] or f"it ended with {done.returncode}"
        raise Error(f"the linker failed: {reason}", where=command[0])


def linker(triple: str) -> list[str]:
    """The command that links for an architecture, by LLVM's or GNU's linker, a C compiler, or lld
    of the ziglang package.
    """
    machine = triple.split("-")[0]
    if "-none-" in triple:
        raise Error(
            f"{triple} has no operating system that could load an artifact",
            hint="`qcompiler export --format c` makes an object file for it",
        )
    emulation = ["-m", _ELF[machine]] if machine in _ELF else []
    if shutil.which("ld.lld"):
        return ["ld.lld", *emulation, *_LLVM]
    tools = _TOOLS.get(machine, f"{machine}-linux-gnu")
    for name in (f"{tools}-ld", "ld"):
        if shutil.which(name) and (name != "ld" or _native(machine)):
            return [name, *emulation, *_GNU]
    for name in (f"{tools}-gcc", *(("cc", "gcc", "clang") if _native(machine) else ())):
        if shutil.which(name):
            return [name, "-nostdlib", f"-Wl,{','.join(_GNU)}"]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "ld.lld", *emulation, *_LLVM]
    package = "binutils" if _native(machine) else f"binutils-{tools}"
    raise Error(
        f"no linker for {machine} was found",
        hint=f"`apt install {package.replace('_', '-')}` on Debian and Ubuntu, or anywhere"
        " `pip install ziglang` (the extra [cross])",
    )


def _native(machine: str) -> bool:
    return cpu.machine() == machine
