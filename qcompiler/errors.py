"""The user-facing error (what, where, hint), which the command line prints without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec


class Error(Exception):
    """A mistake of the user's or in the input, never a bug of ours.

    `what` states the mistake, `where` names the file, node or flag, `hint` says how to fix it.
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
"""Packages needed to compile, not to run an artifact."""


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
        hint="install qcompiler with its dependencies; running an artifact needs only numpy",
    )


@contextmanager
def compiler_needed() -> Iterator[None]:
    """Imports of the compiler stand inside: where it is not installed, they raise Error."""
    try:
        yield
    except ImportError as e:
        if missing := compiler_missing(e):
            raise missing from e
        raise


@dataclass(frozen=True)
class Skip:
    """The reason a rule or kernel generator does not apply; `--explain` prints it."""

    reason: str


class Unfit(Exception):
    """Raised deep inside a kernel generator that cannot serve this problem; its caller treats it as
    a Skip with this reason.
    """
