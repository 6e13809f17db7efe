"""Constants -> one block of bytes, each packed as its kernel reads it; equal ones once."""

from __future__ import annotations

import hashlib

import numpy as np

from qcompiler.artifact.artifact import Bytes
from qcompiler.ir.graph import Array, Node
from qcompiler.kernels.registry import Kernel
from qcompiler.plan.places import Place, room


class Weights:
    """The block, as it grows."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []
        self.offset = 0
        self.known: dict[tuple[str, bytes], Place] = {}

    def place(self, source: Node, node: Node, kernel: Kernel, position: int) -> Place:
        """The place of a constant that a kernel reads as input `position`, in `node`'s shape."""
        array = source.array.reshape(node.type.dims)
        pack = kernel.pack.get(position)
        packed = np.ascontiguousarray(pack(array) if pack else array)
        raw = packed.reshape(-1).view(np.uint8)
        key = (packed.dtype.name, hashlib.sha256(raw.tobytes()).digest())
        if key not in self.known:
            self.known[key] = Place("weights", self.offset, raw.size)
            self.arrays.append(raw)
            self.offset += room(raw.size)
        return self.known[key]

    def blob(self) -> Bytes:
        """The whole block."""
        blob = np.zeros(self.offset, np.uint8)
        for place, raw in zip(self.known.values(), self.arrays, strict=True):
            blob[place.offset : place.offset + raw.size] = raw
        return blob
