"""CUDA C++ -> machine code for an architecture, by NVIDIA's run-time compiler: no GPU, no driver,
no toolkit; the extra `[cuda]` installs it (some 60 MB).
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from functools import cache
from pathlib import Path

from qcompiler.errors import Error

_HINT = "pip install 'qcompiler-tvm[cuda]'"
_OPTIONS = ("--std=c++17", "--fmad=false", "--device-as-default-execution-space")


def compile(source: str, architecture: str) -> bytes:
    """CUDA C++ -> a cubin, the same for the same source and version of the compiler. Raises Error
    where the compiler is missing or refuses the source.
    """
    return both(source, architecture)[0]


def both(source: str, architecture: str) -> tuple[bytes, bytes]:
    """CUDA C++ -> a cubin, and the PTX that it was made of, for GPUs to come."""
    return _Program(source).compiled(architecture)


def available() -> str:
    """Why code for GPUs cannot be compiled here; empty if it can."""
    try:
        _folder()
    except Error as e:
        return e.what
    return ""


def version() -> str:
    """The compiler's version, which is the toolkit's: "13.5"."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def driver() -> int:
    """The driver that runs this code: 1000 * major + 10 * minor. All of one major version run code
    of the same (NVIDIA: "CUDA Compatibility", minor version compatibility).
    """
    return int(version().partition(".")[0]) * 1000


@cache
def _folder() -> Path:
    """The folder of the wheels' libraries and headers."""
    found = importlib.util.find_spec("nvidia")
    for root in found.submodule_search_locations or () if found else ():
        for folder in sorted(Path(root).glob("cu*"), reverse=True):
            if list(folder.glob("lib/libnvrtc.so.*")) and (folder / "include/cuda_fp16.h").exists():
                return folder
    raise Error("the compiler for CUDA is not installed", hint=_HINT)


@cache
def _library() -> ctypes.CDLL:
    (path,) = _folder().glob("lib/libnvrtc.so.*")
    try:
        return ctypes.CDLL(str(path))
    except OSError as e:
        raise Error(f"the compiler for CUDA cannot be loaded: {e}", hint=_HINT) from e


def _check(status: int, log: str = "") -> None:
    if status == 0:
        return
    library = _library()
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    what = library.nvrtcGetErrorString(status).decode()
    first = re.search(r"^.*\berror\b.*$", log, re.MULTILINE)
    raise Error(f"the compiler for CUDA: {what}{f': {first.group()}' if first else ''}")


class _Program:
    """A source while it is compiled."""

    def __init__(self, source: str) -> None:
        self.library = _library()
        self.handle = ctypes.c_void_p()
        text = source.encode()
        _check(
            self.library.nvrtcCreateProgram(
                ctypes.byref(self.handle), text, b"kernels.cu", 0, None, None
            )
        )

    def compiled(self, architecture: str) -> tuple[bytes, bytes]:
        """The program's cubin and PTX."""
        try:
            options = [f"--gpu-architecture={architecture}", f"-I{_folder() / 'include'}"]
            words = [o.encode() for o in (*options, *_OPTIONS)]
            given = (ctypes.c_char_p * len(words))(*words)
            status = self.library.nvrtcCompileProgram(self.handle, len(words), given)
            _check(status, self._read("ProgramLog").rstrip(b"\0").decode(errors="replace"))
            return self._read("CUBIN"), self._read("PTX")
        finally:
            self.library.nvrtcDestroyProgram(ctypes.byref(self.handle))

    def _read(self, what: str) -> bytes:
        size = ctypes.c_size_t()
        _check(getattr(self.library, f"nvrtcGet{what}Size")(self.handle, ctypes.byref(size)))
        held = ctypes.create_string_buffer(size.value)
        _check(getattr(self.library, f"nvrtcGet{what}")(self.handle, held))
        return held.raw
