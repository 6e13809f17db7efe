"""The arrays of a run -> addresses in its table.

Asking numpy for an address takes a microsecond, as long as a small network's layer. So a small
input is copied to a fixed buffer, and a small output is cut from a block of known address.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.artifact.abi import ALIGN
from qcompiler.artifact.manifest import Check
from qcompiler.errors import Error
from qcompiler.runtime.library import Frame, Memory, aligned, aligned_copy

Array = NDArray[Any]
Kind = tuple[np.dtype[Any], tuple[int, ...]]
"""dtype and shape."""

STAGED_BYTES = 32 << 10
"""Inputs up to this size are copied: that takes no longer than asking for their address."""
CUT_BYTES, BLOCK_BYTES = 2 << 10, 32 << 10
"""Outputs up to the first size are cut from blocks of the second; a block lives as long as any
output in it.
"""
_NOTHING: Mapping[int, Memory] = MappingProxyType({})


class Context:
    """An execution context: a frame and the arrays it reads and writes, for one run at a time."""

    def __init__(
        self,
        inputs: Sequence[Kind],
        outputs: Sequence[Kind],
        weights: Memory,
        workspace: int,
        checks: Sequence[Check] = (),
        extents: Sequence[tuple[int, int]] = (),
    ) -> None:
        """`extents`: which outputs are cut to the size at which offset in the workspace."""
        self._checks, self._extents = checks, extents
        self.frame = Frame(len(inputs) + len(outputs), weights, workspace)
        self._staged = [_staged(dtype, shape) for dtype, shape in inputs]
        for i, memory in enumerate(self._staged):
            if memory is not None:
                self.frame.table[i] = memory.address
        sizes = [prod(shape) * dtype.itemsize for dtype, shape in outputs]
        self._made = [
            (*kind, size, -(-size // ALIGN) * ALIGN) for kind, size in zip(outputs, sizes)
        ]
        self._block, self._at = aligned(np.dtype(np.uint8), (0,)), 0

    def take(
        self, arrays: Sequence[Array | None], own: Mapping[int, Memory] = _NOTHING
    ) -> list[Memory]:
        """Enter inputs into the table -> arrays that must live until the run has ended. `own`:
        where those inputs are that have no array here.
        """
        kept = []
        for i, array in enumerate(arrays):
            staged = self._staged[i]
            if array is None:
                self.frame.table[i] = own[i].address
            elif staged is not None:
                np.copyto(staged.array, array)
            else:
                memory = aligned_copy(array)
                self.frame.table[i] = memory.address
                kept.append(memory)
        return kept

    def stage(self, at: int) -> Array:
        """The fixed buffer of a small input, entered into the table."""
        memory = self._staged[at]
        assert memory is not None
        self.frame.table[at] = memory.address
        return memory.array

    def cut(self, outputs: list[Array]) -> list[Array]:
        """The outputs of the last run, to the sizes that its data decided. Raises Error if a check
        of it failed.
        """
        self.demand_fit()
        for at, offset in self._extents:
            whole = outputs[at]
            raw = self.frame.workspace.array[offset : offset + 8 * whole.ndim]
            outputs[at] = whole[tuple(slice(int(n)) for n in raw.view(np.int64))]
        return outputs

    def demand_whole(self) -> None:
        """Raise Error if data decide the size of an output, which then has no array of its own."""
        if self._extents:
            raise Error("data decide the size of an output", hint="run the model by itself")

    def demand_fit(self) -> None:
        """Raise Error if a check of the last run failed."""
        for check in self._checks:
            if not self.frame.workspace.array[check.offset : check.offset + check.bytes].all():
                hint = "compile the model for the shapes that these values give"
                raise Error(check.what, hint=hint)

    def make(self, own: Mapping[int, Memory] = _NOTHING) -> list[Array]:
        """Enter new arrays for the outputs into the table, `own` for some -> the arrays."""
        made: list[Array] = []
        place, table = len(self._staged), self.frame.table
        for dtype, shape, size, room in self._made:
            if place - len(self._staged) in own:
                memory = own[place - len(self._staged)]
                made.append(memory.array)
                table[place] = memory.address
            elif size > CUT_BYTES:
                memory = aligned(dtype, shape)
                made.append(memory.array)
                table[place] = memory.address
            else:
                if self._at + room > self._block.array.size:
                    self._block, self._at = aligned(np.dtype(np.uint8), (BLOCK_BYTES,)), 0
                made.append(np.ndarray(shape, dtype, self._block.array, self._at))
                table[place] = self._block.address + self._at
                self._at += room
            place += 1
        return made


def _staged(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Memory | None:
    return aligned(dtype, shape) if prod(shape) * dtype.itemsize <= STAGED_BYTES else None
