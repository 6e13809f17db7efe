"""Machine code -> a callable, through the runtime half of TVM only (tvm_ffi and libtvm_runtime)."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qcompiler import cpu
from qcompiler.errors import Error

Tensor = Any
"""A tvm_ffi.Tensor; the package is imported only when a model is loaded."""

_configured = threading.local()


@cache
def start() -> None:
    """Load TVM's runtime, once a process.

    Its thread pool reads the environment when it is first used: by default it takes half the cores
    and pins the caller to one, so both are set here unless the user has set them.
    """
    os.environ.setdefault("TVM_NUM_THREADS", str(cpu.cores()))
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    import tvm_ffi  # noqa: F401  (its library must be in the process before TVM's)

    spec = importlib.util.find_spec("tvm")
    folders = [Path(p) / "lib" for p in (spec.submodule_search_locations or [])] if spec else []
    for folder in folders:
        for name in ("libtvm_runtime.so", "libtvm_runtime.dylib"):
            if (folder / name).exists():
                ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
                return
    raise Error("TVM's runtime library is not installed", hint="pip install apache-tvm")


def load_code(code: bytes, entry: str) -> tuple[Any, Callable[..., Any]]:
    """A shared library's bytes -> (the module, which must outlive it, and its entry function)."""
    start()
    import tvm_ffi

    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        path = Path(folder) / "code.so"
        path.write_bytes(code)
        module = tvm_ffi.load_module(str(path))
    return module, getattr(module, entry)


def tensor(array: NDArray[Any]) -> Tensor:
    """An array, as the entry function takes it without converting it at every call."""
    import tvm_ffi

    return tvm_ffi.from_dlpack(array)


def use_threads(count: int) -> None:
    """Let kernels called from this Python thread use `count` threads (every calling thread has a
    pool of its own).
    """
    if getattr(_configured, "count", 0) == count:
        return
    import tvm_ffi

    configure = tvm_ffi.get_global_func("runtime.config_threadpool")
    configure(1, count)
    _configured.count = count
