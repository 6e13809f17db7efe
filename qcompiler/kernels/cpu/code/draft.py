"""A region -> its kernel while it is written: parameters, and the root's prologue and epilogue."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from math import prod

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Array, Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.epilogue import DTYPES, Fused, Row, Walk, load, store
from qcompiler.kernels.cpu.code.math import TirMath
from qcompiler.kernels.cpu.code.tails import Tails
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.registry import Kernel, Region

_PRODUCTS = ("conv", "matmul", "attention")
_OFFSETS = 1 << 31


def refuse(region: Region) -> Skip | None:
    """Why no kernel can compute a region, whatever its root; None if there is no reason."""
    types = [t for n in (*region.inputs, *region.nodes) for t in n.types]
    if not all(t.static for t in types):
        return Skip("a dimension is not known")
    odd = sorted({t.dtype for t in types} - DTYPES)
    return Skip(f"no vectors of {odd[0]}") if odd else None


def too_large(region: Region) -> Skip | None:
    """Why 32-bit offsets do not reach all elements; None if they do."""
    if any(n.type.size * 4 >= _OFFSETS for n in (*region.inputs, region.output)):
        return Skip("an operand is too large for 32-bit offsets")
    return None


def in_place_candidates(region: Region) -> tuple[int, ...]:
    """Epilogue operands whose every element is read just before the output's is written, so that
    the output may reuse their memory.
    """
    assert region.root is not None
    out, operands = region.output.type, region.root.operands
    return tuple(
        i
        for i, n in enumerate(region.inputs)
        if n not in operands and n.type.shape == out.shape and n.type.bytes == out.bytes
    )


NOTHING_PACKED: Mapping[Node, str] = {}


class Draft:
    """One kernel: `b` collects its statements, `m` its arithmetic, `pointers` are its inputs."""

    def __init__(
        self,
        kind: str,
        region: Region,
        device: Cpu,
        *,
        name: str = "",
        packed: Mapping[Node, str] = NOTHING_PACKED,
        flush: bool = True,
    ) -> None:
        """`kind` and what is fused make the kernel's name, unless it is given. `packed` are inputs
        that are read as another dtype. With `flush`, the denormals of bfloat16 products become
        zero.
        """
        self.region, self.device, self.isa = region, device, device.isa
        self.name = name or name_of(kind, region)
        self.b = Builder(self.name, Tails.of(device.isa))
        root = region.root
        flush &= root is not None and root.op in _PRODUCTS and root.operands[0].dtype == "bfloat16"
        self.m = TirMath(self.b, device.isa, flush=flush)
        self.pointers: Mapping[Node, Pointer] = {
            n: self.b.pointer(f"in{i}", packed.get(n, n.dtype)) for i, n in enumerate(region.inputs)
        }
        self.out = self.b.pointer("out", region.output.dtype)
        self._scratch: Pointer | None = None
        self.is_counted = False

    def scratch(self, dtype: str = "uint8") -> Pointer:
        """The scratch area as elements of a dtype; to be called before any statement."""
        if self._scratch is None:
            self._scratch = self.b.pointer("scratch", "uint8")
        return self._scratch.view(dtype)

    def image(self) -> tuple[Value, Value]:
        """The height and the width of images in this run (`Region.extents`), for a kernel that
        computes no others; to be asked outside of loops over what it says.
        """
        self.is_counted = True
        extents = [self.b.let(self.pointers[n].load(), "found") for n in self.region.extents]
        root = self.region.root
        image = self.region.output if root is None else root.operands[0]
        pairs = zip(extents, image.type.dims[1:3], strict=True)
        height, width = (self.b.hold(tirx.Min(n, tir.const(most)), "size") for n, most in pairs)
        return height, width

    def counted(self, total: int, most: int) -> Value:
        """Of `total` iterations in the order of `most` positions, or of the pixels of images, those
        that count in this run; to be asked outside of loops over what it says.
        """
        if len(self.region.extents) == 2:
            pixels = prod(self.region.output.type.dims[1:3])
            if total % pixels:
                return total
            height, width = self.image()
            return self.b.hold(height * width * (total // pixels), "counted")
        count = self.region.count
        if count is None or total % most:
            return total
        self.is_counted = True
        found = self.b.let(self.pointers[count].load(), "found")
        return self.b.hold(tirx.Min(found, tir.const(most)) * (total // most), "counted")

    def least(self, total: int, most: int) -> int:
        """What `counted` says of the same, in a run in which it says least."""
        sizes = self.region.least or (1,)
        if len(self.region.extents) == 2:
            most = prod(self.region.output.type.dims[1:3])
        return prod(sizes) * (total // most)

    @property
    def root(self) -> Node:
        """The anchor."""
        assert self.region.root is not None
        return self.region.root

    @cached_property
    def prologue(self) -> Fused:
        """The root's first operand, with its elementwise nodes."""
        return self.reading(self.root.operands[0])

    def prologue_nodes(self, node: Node) -> list[Node]:
        """The elementwise nodes that compute a value the root reads."""
        inside = set(self.region.nodes)
        needed: set[Node] = set()
        stack = [node]
        while stack:
            n = stack.pop()
            if n in inside and n not in needed:
                needed.add(n)
                stack.extend(n.operands)
        return [n for n in self.region.nodes if n in needed]

    def epilogue_nodes(self) -> list[Node]:
        """The elementwise nodes that compute the output from the root."""
        nodes: list[Node] = []
        needed = {self.region.output}
        for n in reversed(self.region.nodes):
            if n in needed and n is not self.region.root:
                nodes.insert(0, n)
                needed.update(n.operands)
        return nodes

    def reading(self, node: Node, *, whole: bool = False, walk: Walk | None = None) -> Fused:
        """A value that the root reads, with its prologue; other arguments as for `Fused`."""
        nodes = self.prologue_nodes(node)
        return Fused(self.m, self.region, nodes, node, self.pointers, whole=whole, walk=walk)

    @cached_property
    def epilogue(self) -> Fused:
        """The region's output, with the elementwise nodes after the root."""
        return self.writing()

    def writing(
        self, summed: Node | None = None, *, whole: bool = False, walk: Walk | None = None
    ) -> Fused:
        """The region's output from the root's, or from that of the node after it, `summed`, where
        the kernel computes that itself; other arguments as for `Fused`.
        """
        first = summed or self.region.root
        given = () if first is None else (first,)
        nodes, output = [n for n in self.epilogue_nodes() if n is not summed], self.region.output
        pointers, region = self.pointers, self.region
        return Fused(self.m, region, nodes, output, pointers, given=given, whole=whole, walk=walk)

    def put(
        self, f: Fused, row: Row, offset: Value, column: Value, count: Value, value: Vec
    ) -> None:
        """Store the root's values, through the epilogue, to the output from an offset on."""
        made = f.at(row, column, value.lanes, count, {self.root: value})
        store(self.m, self.out, offset, made, count)

    def read(self, node: Node, offset: Value, lanes: int = 1, count: Value | None = None) -> Vec:
        """An operand's elements, without a prologue."""
        count = lanes if count is None else count
        return load(self.m, self.pointers[node], node.dtype, offset, lanes, count)

    def kernel(
        self,
        *,
        tasks: int = 1,
        scratch_bytes: int = 0,
        pack: Mapping[int, Callable[[Array], Array]] | None = None,
        in_place: tuple[int, ...] = (),
        macs: int = 0,
        generic: bool = False,
    ) -> Kernel:
        """The finished kernel."""
        func, pack = self.b.function(), pack or {}
        return Kernel(
            self.name,
            func,
            pack,
            scratch_bytes,
            tasks,
            macs,
            in_place,
            counted=self.is_counted,
            generic=generic,
        )


def name_of(kind: str, region: Region) -> str:
    """conv3x3 and a region of conv, add, relu to uint8 -> "conv3x3_add_relu_u8"."""
    short = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "bool": "b"}
    others = [n.op.lower() for n in region.nodes if n is not region.root][:6]
    word, size = re.match(r"([a-z]+)(\d*)", region.output.dtype).groups()  # type: ignore[union-attr]
    return "_".join([kind, *others, short[word] + size])
