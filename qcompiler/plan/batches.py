"""A graph over a batch -> the same graph over a part of it, and the number of parts.

Layer by layer, the activations of a large batch go to memory and back; part by part they stay in
the caches, and the workspace is smaller. It pays where reading the weights for every part moves far
fewer bytes. It is possible where every node treats the images of the batch (the first dimension of
all inputs and outputs) separately.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from math import isqrt

import numpy as np

from qcompiler.errors import Error, Skip
from qcompiler.hardware.isa import Cpu, Device
from qcompiler.ir import Graph, Node, Type, constant, placeholder
from qcompiler.ops import make
from qcompiler.ops.evaluate import known_value
from qcompiler.plan.regions import base, is_elementwise, regions
from qcompiler.plan.repeats import has_loops

log = logging.getLogger(__name__)

CACHED = 0.5
"""Fraction of the last-level cache that one step may use."""
WORTH = 4.0
"""Activations must move this many times the bytes of the weights that parts read again."""
TRIPS = 3
"""Times that an activation crosses the memory bus: the line it replaces, its store, its load."""

_FIRST = frozenset({"conv", "max_pool", "average_pool", "MaxPool", "AveragePool", "LpPool", "LRN"})
_FIRST |= {"GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization", "DepthToSpace"}
_FIRST |= {"SpaceToDepth", "ConvTranspose", "Conv"}
"""Operators that process the images of their first operand one by one."""
_ALONG = frozenset({"Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "Concat"})
"""Operators that work along one axis, or from one axis on."""


def in_parts(graph: Graph, device: Device, wanted: int = 0) -> tuple[Graph, int]:
    """Graph (static shapes, every output made by a node) -> the graph of a part, number of parts:
    so many as are `wanted`, if they can be equal, or, for 0, as are predicted to help; the graph
    itself and 1 where parts cannot be.
    """
    batch = _batch(graph)
    size = batch  # a GPU needs all images to be busy
    if wanted:
        size = batch // wanted if batch and batch % wanted == 0 else batch
    elif batch > 1 and isinstance(device, Cpu):
        size = _size(graph, batch, device)
    if size == batch:
        return graph, 1
    part = _Part(batch, size).graph(graph)
    if isinstance(part, Skip):
        log.info("the batch of %d stays whole: %s", batch, part.reason)
        return graph, 1
    return part, batch // size


def apart(graph: Graph) -> bool:
    """Is it known of a graph over a batch that each image's outputs are made of it alone?"""
    batch = _batch(graph)
    return batch > 1 and not isinstance(_Part(batch, batch).graph(graph), Skip)


def parts_of(graph: Graph) -> list[int]:
    """The numbers of equal parts that a graph's batch has."""
    return sorted(set(_divisors(_batch(graph)))) if _batch(graph) else [1]


def _batch(graph: Graph) -> int:
    """Number of images, the first dimension of all inputs and outputs; 0 if they differ, and where
    loops stay, of which it is not known what they do with images.
    """
    sides = [n.type for n in (*graph.inputs, *graph.outputs)]
    if has_loops(graph) or not all(t.static for t in sides):
        return 0
    found = {t.dims[0] if t.rank else 0 for t in sides}
    return found.pop() if len(found) == 1 else 0


def _size(graph: Graph, batch: int, device: Cpu) -> int:
    """Images of a part: the most whose largest step fits the last-level cache; the whole batch if
    parts gain nothing.
    """
    parts = regions(graph)
    largest, moved = 0, 0
    for region in parts:
        read = {base(i) for i in region.inputs}
        values = [*(n for n in read if not n.is_constant), region.output]
        largest = max(largest, sum(n.type.bytes for n in values))
        moved += TRIPS * region.output.type.bytes
    fitting = CACHED * device.l3_bytes
    if largest <= fitting:
        return batch
    smaller = (d for d in _divisors(batch) if d < batch)
    size = max(d for d in smaller if d == 1 or largest * d <= fitting * batch)
    weights = sum(n.type.bytes for n in graph.nodes if n.is_constant)
    return size if WORTH * weights * (batch // size) <= moved else batch


def _divisors(number: int) -> Iterator[int]:
    """All divisors of a number, in time of its square root."""
    for low in range(1, isqrt(number) + 1):
        if number % low == 0:
            yield from (low, number // low)


def cut(graph: Graph, batch: int, size: int) -> Graph | Skip:
    """A graph over a batch of samples that are known not to meet -> the graph of `size` of them, or
    why there is none.
    """
    try:
        return _Part(batch, size, cuts=True).graph(graph)
    except Error as e:
        return Skip(f"a part of the batch makes no sense: {e.what}")


class _Part:
    """Makes the nodes of a part from those of the whole. `cuts`: also of constants that are the
    same for all images, and where an image has several rows of the first dimension.
    """

    def __init__(self, batch: int, size: int, *, cuts: bool = False) -> None:
        self.batch, self.size, self.cuts = batch, size, cuts
        self.made: dict[Node, Node] = {}
        self.batched: set[Node] = set()

    def graph(self, whole: Graph) -> Graph | Skip:
        """A graph -> that of a part."""
        for node in whole.nodes:
            made = self.node(node)
            if isinstance(made, Skip):
                return made
            self.made[node] = made
        if not self.batched.issuperset(whole.outputs):
            return Skip("an output is the same for all images")
        inputs = tuple(self.made[n] for n in whole.inputs)
        return replace(whole, inputs=inputs, outputs=tuple(self.made[n] for n in whole.outputs))

    def node(self, node: Node) -> Node | Skip:
        """A node, after those it reads -> that of a part."""
        if node.op == "input":
            self.batched.add(node)
            return placeholder(node.name, self._type(node.type))
        if not self.batched.intersection(node.operands):
            return node
        mixed = Skip(f"{node.name or 'a node'} ({node.op}) may mix the images of a batch")
        if not self._apart(node):
            return mixed
        inputs = [None if i is None else self._operand(i, node) for i in node.inputs]
        if node.op == "Reshape":
            target = np.array(node.operands[1].array)
            target[0] = self._rows(node.type.dims[0])
            inputs[1] = constant(target)
        made = make(node.op, *inputs, name=node.name, **node.attrs)
        if made.types != tuple(map(self._type, node.types)):
            return mixed
        self.batched.add(node)
        return made

    def _operand(self, operand: Node, node: Node) -> Node:
        """An operand's part; of a constant that has a row for each image, so many rows."""
        made = self.made[operand]
        rows = operand.is_constant and operand.type.rank == node.types[0].rank
        repeated = rows and operand.type.dims[0] == node.types[0].dims[0] > 1
        if not (repeated and self.cuts) or not (node.op == "Concat" or is_elementwise(node)):
            return made
        kept = operand.array[: self._rows(operand.type.dims[0])]
        return constant(np.ascontiguousarray(kept), operand.name)

    def _rows(self, whole: int) -> int:
        """Rows of the whole batch -> those of the part."""
        return whole * self.size // self.batch

    def _spans(self, type: Type) -> bool:
        """Does the first dimension go over the images?"""
        rows = type.dims[0] if type.rank else 0
        return rows == self.batch or (self.cuts and rows > 0 and rows % self.batch == 0)

    def _type(self, whole: Type) -> Type:
        return Type(whole.dtype, (self._rows(whole.dims[0]), *whole.shape[1:]))

    def _apart(self, node: Node) -> bool:
        """Does every image of a node's output depend on one image of its operands only?"""
        if not all(map(self._spans, node.types)):
            return False
        if (self.cuts or self.size == self.batch) and self._apart_as_a_whole(node):
            return True
        first, others = node.operands[0], node.operands[1:]
        alone = first in self.batched and not self.batched.intersection(others)
        rank, attrs = first.types[0].rank, node.attrs
        if is_elementwise(node) or node.op in ("attention", "Attention"):
            return all(self._in_step(i, node) for i in node.operands)
        if node.op in _FIRST or node.op == "item":
            return alone
        if node.op in _ALONG:
            together = (
                all(i in self.batched for i in node.operands) if node.op == "Concat" else alone
            )
            return together and node.int("axis") % rank != 0
        if node.op == "matmul":
            paired = all(i in self.batched and i.type.rank == rank for i in node.operands)
            return (paired and rank > 2) or (alone and others[0].type.rank == 2)
        if node.op == "Transpose":
            turned = node.attrs["perm"] is None and rank > 1
            return alone and not turned and (rank == 1 or node.ints("perm")[0] == 0)
        if node.op == "Flatten":
            return alone and attrs["axis"] == 1
        if node.op == "Reshape":
            return alone and others[0].is_constant and self._spans(first.type)
        return alone and self._other_axes(node, rank)

    def _apart_as_a_whole(self, node: Node) -> bool:
        """The same of what is not cut into parts: rows of a table by index, and constants that are
        the same for all images.
        """
        operands = node.operands
        if node.op == "Gather":
            table, index = operands
            axis = node.int("axis") % table.type.rank
            return index in self.batched and table not in self.batched and axis == 0
        if node.op == "Concat":
            apart = all(i in self.batched or _is_repeated(i) for i in operands)
            return apart and node.int("axis") % node.types[0].rank != 0
        if node.op in ("attention", "Attention"):
            scores = 4  # [image, head, query, key]: what the mask is added to
            masks = all(
                i.type.rank == scores if i in self.batched else self._is_shared(i, scores)
                for i in operands[3:]
            )
            return masks and self.batched.issuperset(operands[:3])
        if is_elementwise(node):
            return all(_is_repeated(i) or self._in_step(i, node) for i in operands)
        return False

    def _in_step(self, operand: Node, node: Node) -> bool:
        """Is an operand of an elementwise node batched like it, or the same for all images?"""
        rank = node.types[0].rank
        if operand in self.batched:
            return operand.type.rank == rank
        return self._is_shared(operand, rank)

    @staticmethod
    def _is_shared(operand: Node, rank: int) -> bool:
        """Whether an operand that is not batched is the same for all images."""
        return operand.type.rank < rank or operand.type.dims[0] == 1

    def _other_axes(self, node: Node, rank: int) -> bool:
        """Does a node name the axes that it works along, without the first?"""
        if node.op in ("Gather", "Split"):
            return node.int("axis") % rank != 0
        place = {"Slice": 3, "Squeeze": 1, "Unsqueeze": 1}.get(node.op)
        place = 1 if node.op.startswith("Reduce") else place
        if place is None or len(node.inputs) <= place:
            return False
        axes = known_value(node.inputs[place])
        rank += axes.size if node.op == "Unsqueeze" and axes is not None else 0
        return axes is not None and axes.size > 0 and bool((axes % rank != 0).all())


def _is_repeated(node: Node) -> bool:
    """Whether a constant is the same for all images."""
    if not node.is_constant or not node.type.rank:
        return False
    return bool((node.array == node.array[:1]).all())
