"""Where bytes lie: in the caller's arrays, among the weights, or in the workspace."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.artifact.abi import ALIGN, GUARD
from qcompiler.ir.graph import Type


@dataclass(frozen=True)
class Place:
    """Where bytes are: space "input" or "output" (index = which), "weights" or "workspace" (offset
    in bytes).
    """

    space: str
    offset: int
    bytes: int
    type: Type | None = None

    def __str__(self) -> str:
        return (
            f"{self.space}[{self.offset}]"
            if self.space in ("input", "output")
            else f"{self.space}+{self.offset}"
        )


def room(size: int) -> int:
    """Bytes that a constant or a buffer takes up, including what kernels may read past its end."""
    return -(-(size + GUARD) // ALIGN) * ALIGN
