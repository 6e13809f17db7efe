"""What one kernel computes, and all that its code may depend on.

A generator never sees a graph. It gets a sealed region (`facts.sealed`), whose inputs are
placeholders: a type, and whether it is a constant; no array, no name, no operands. What a kernel
may know of a constant's numbers is in `Facts`, computed before any generator runs. So all that a
generator can read is in `Region.key`, and regions of equal keys have the same code on a device:
they share it, and its measurements.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np

from qcompiler.ir import Attr, Node


@dataclass(frozen=True)
class Facts:
    """What a kernel may know of a value besides its type; by default, nothing."""

    numbers: tuple[int | float, ...] | None = None
    """All elements, in order, of operands that say how to compute (starts, axes, sizes)."""
    zero: bool = False
    """Every element is zero (not negative zero), so it need not be loaded."""
    fits: bool = False
    """Of a `quantize`: what it rounds always fits int32, and is never NaN."""
    short: bool = False
    """The same of int16; of a `dequantize` of bytes: its zero points are such bytes, too. Asked
    only where the instruction set gains by it."""
    least: bool = False
    """Of a `quantize` to int8: its zero point is -128; asked only there, too."""
    halves: bool = False
    """Of a Clip of float32: float16 has its bounds. Of weights: float16 can add up all their
    products. Of a product, with its bias: it is only rounded to float16, which can hold it and all
    that it is made of. Asked only where float16 is multiplied."""
    run: int = 1
    """Of weights: steps whose products should be added in 16 bits (contraction/saturation.py)."""
    pairs_fit: bool = False
    """Of weights: two products of neighbouring kernel rows always fit 16 bits together."""

    def __str__(self) -> str:
        pairs = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        return " ".join(f"{name}={value!r}" for name, value, usual in pairs if value != usual)


NOTHING = Facts()


@dataclass(frozen=True)
class Region:
    """What one kernel computes: `root` (None when all nodes are elementwise), with its elementwise
    prologue and epilogue.

    `nodes` are in order, each after what it reads; `inputs` are the values read from outside
    (constants included), in the order of the kernel's pointers; `output` is the only node read from
    outside. More inputs may say how much of it counts (`extents`). `facts` is None while these are
    nodes of a graph; otherwise the region is sealed, and only then has a key and known facts.
    """

    root: Node | None
    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    output: Node
    facts: Mapping[Node, Facts] | None = field(default=None, compare=False)
    least: tuple[int, ...] = ()
    """The least that each of `extents` is in any run; empty where that may be 1, or none."""

    @cached_property
    def extents(self) -> tuple[Node, ...]:
        """The inputs that no node reads, each int32[1]. One is `count`; two are the height and the
        width, in this run, of the images that its anchor reads, or that it computes where it has no
        anchor. Their rows then lie one after the other, each as wide as this run's, in the memory
        of images[n, height, width, channels] of the largest sizes.
        """
        read = {self.output, *(i for n in self.nodes for i in n.operands)}
        return tuple(n for n in self.inputs if n not in read)

    @property
    def count(self) -> Node | None:
        """How many positions along the first dimension of more than one count in this run, if a
        run knows. A kernel need not compute others, nor read what belongs to them.
        """
        return self.extents[0] if len(self.extents) == 1 else None

    def known(self, node: Node) -> Facts:
        """What a kernel may know of an input or a node."""
        assert self.facts is not None, "only sealed regions have facts"
        return self.facts.get(node, NOTHING)

    @cached_property
    def key(self) -> str:
        """Text that is equal for regions of the same code: operators, attributes, types, edges and
        facts.
        """
        index = {n: f"%{i}" for i, n in enumerate((*self.inputs, *self.nodes))}
        parts = [self._text("constant" if n.is_constant else "value", n) for n in self.inputs]
        for n in self.nodes:
            attrs = ",".join(f"{k}={_attr_text(v)}" for k, v in sorted(n.attrs.items()))
            reads = ",".join("_" if i is None else index[i] for i in n.inputs)
            mark = "!" if n is self.root else ""
            parts.append(self._text(f"{mark}{n.op}({reads}){{{attrs}}}", n))
        least = [f"least {','.join(map(str, self.least))}"] if self.least else []
        return ";".join([*parts, *least, index[self.output]])

    def _text(self, what: str, node: Node) -> str:
        types = ",".join(map(str, node.types))
        return " ".join(filter(None, (what, types, str(self.known(node)))))


def _attr_text(value: Attr) -> str:
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(value.tobytes()).hexdigest()
        return f"{value.dtype.name}{list(value.shape)}:{digest}"
    return repr(value)
