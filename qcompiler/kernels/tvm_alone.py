"""Imports TVM without PyTorch, before anything else imports TVM.

`tvm_ffi` imports torch wherever it is installed, so that it can convert its tensors. That takes two
seconds of CPU time, and here TVM is given numpy's arrays only. torch can be imported afterwards.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _NoTorch(MetaPathFinder):
    """Torch is not found by the thread that made this; other threads import what they like."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise ModuleNotFoundError for torch; leave other modules to other finders."""
        if fullname == "torch" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError("TVM is imported without it", name=fullname)
        return None


_finder = _NoTorch()
sys.meta_path.insert(0, _finder)
try:
    import tvm  # noqa: F401
finally:
    sys.meta_path.remove(_finder)
