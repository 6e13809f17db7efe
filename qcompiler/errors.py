"""What went wrong, where, and what to do -> one exception the command line prints without a
traceback.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec


class Error(Exception):
    """A mistake of the user's or of the input, never a bug of ours.

    `what` says what is wrong, `where` names the file, node or flag, `hint` says what to do about
    it.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\nhint: {self.hint}" if self.hint else text


_OF_THE_COMPILER = ("tvm", "tvm_ffi", "onnx", "networkx", "ml_dtypes", "google", "tomli")
"""Packages that running an artifact does without."""


def compiler_missing(error: ImportError) -> Error | None:
    """A failed import -> the Error that tells it, where it is one of the compiler's packages, or of
    its own modules where those are not installed.
    """
    package = (error.name or "").split(".")[0]
    if package == "qcompiler" and find_spec("qcompiler.driver") is None:
        return Error(
            "this needs the compiler, and the runtime alone is installed",
            hint="pip install qcompiler-tvm; running artifacts needs numpy only",
        )
    if package not in _OF_THE_COMPILER:
        return None
    return Error(
        f"this needs the compiler, and its package {package} is not installed",
        hint="install qcompiler with what it depends on; running artifacts needs numpy only",
    )


@dataclass(frozen=True)
class Skip:
    """Why a rule or a kernel generator does not apply here; `--explain` prints it."""

    reason: str


class Unfit(Exception):
    """Raised deep inside a kernel's generator that turns out not to serve this problem: whoever
    asked the generator takes it for a Skip of this reason.
    """
