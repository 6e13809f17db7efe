"""A padded graph -> the same whose images lie in memory as those of a run's own size would.

Kernels of the largest sizes compute images of an open height and width, and a smaller image lies
at the beginning of its memory, row after row, each as wide as in this run. Kernels that know of it
(`Region.extents`) do what they would if they had been made for that size: no pixel that does not
count is computed or read, and none needs to be hidden, as a window sees padding behind the image's
end. So each Where that hides what is outside is left out. An operator without such kernels finds
images as a padded graph has them, and what it makes of these lies in that way; `lay` moves them
from one way to the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from qcompiler.ir import Dim, Graph, Node, constant
from qcompiler.ops import is_elementwise, make
from qcompiler.ops.quantized import TABLES
from qcompiler.plan.counted import SUMS, Extents, axes_of, sliced_axes
from qcompiler.plan.frames import WINDOWS, Frame, Frames, Spread, spread
from qcompiler.rewrite.matching import perm_of, reshaped

PICKED = ("Resize", "Slice")
"""Operators that take pixels of images as they are."""

_LAST = (0, 2, 3, 1)

FEW = 4
"""Images of so many channels are taken from planes as they are laid."""


@dataclass(frozen=True)
class Laid:
    """A graph, some of whose images lie in memory as those of a run's own size."""

    graph: Graph
    extents: Mapping[Node, Extents]
    """These images."""
    origin: Mapping[Node, Node]
    """Their nodes, and what reads them, in the graph as it was."""


def laid(graph: Graph, frames: Frames, refused: frozenset[Node] = frozenset()) -> Laid | None:
    """A graph of largest sizes, and its frames -> the same with as many images laid as it can have,
    but for what the nodes `refused` make or read; None if it would have none.
    """
    laying = _Laying(graph, frames, refused)
    return laying.made() if laying.dense else None


class _Laying:
    """The nodes of the new graph: images as a run's own, and as a padded graph has them."""

    def __init__(self, graph: Graph, frames: Frames, refused: frozenset[Node]) -> None:
        self.graph, self.frames, self.refused = graph, frames, refused
        self.dense: dict[Node, Node] = {}
        self.padded: dict[Node, Node] = {}
        self.extents: dict[Node, Extents] = {}
        self.filled: set[Node] = set()
        """Of those in `dense`: what is made of something that hides what is outside."""
        self.origin: dict[Node, Node] = {}
        self._sizes: dict[tuple[Dim, Dim], Extents] = {}
        self._laid: dict[object, Node] = {}
        self._lasts: dict[Node, Node] = {}
        for node in graph.nodes:
            self._see(node)

    def made(self) -> Laid:
        """The graph."""
        outputs = [self._padded(n) for n in self.graph.outputs]
        return Laid(self.graph.with_outputs(outputs), self.extents, self.origin)

    def _see(self, node: Node) -> None:
        """Compute a value where its operands allow it."""
        if node in self.frames.hidden:
            if node.operands[1] in self.dense:
                self.dense[node] = self.dense[node.operands[1]]
            return
        if (found := spread(node)) and self._is_spread(node, found):
            made = make("depth_to_space", self.dense[found.x], down=found.down, across=found.across)
            self._keep(node, replace(made, name=node.name), self.frames.of[node])
            if found.condition is not None or found.x in self.filled | self.frames.hidden:
                self.filled.add(node)
            return
        if self._is_dense(node):
            frame = self.frames.of[node]
            inputs = [n and self._operand(node, n, i) for i, n in enumerate(node.inputs)]
            self._keep(node, node.with_inputs(inputs), frame)
            if node.op not in WINDOWS and any(
                n in self.frames.hidden or n in self.filled for n in node.operands
            ):
                self.filled.add(node)
            return
        inputs = [n and self._padded(n) for n in node.inputs]
        if self._sums(node):
            inputs[0] = self.dense[node.operands[0]]
        self.padded[node] = made = node.with_inputs(inputs)
        self.origin[made] = node

    def _keep(self, node: Node, made: Node, frame: Frame) -> None:
        self.dense[node], self.extents[made], self.origin[made] = made, self._of(frame), node

    def _is_spread(self, node: Node, found: Spread) -> bool:
        """Are an image's channels made pixels of a run's own?"""
        return node in self.frames.of and node not in self.refused and found.x in self.dense

    def _is_dense(self, node: Node) -> bool:
        """Is it computed as a run's own?"""
        frame = self.frames.of.get(node)
        if frame is None or frame.axis != 1 or node.type.rank != 4 or node in self.refused:
            return False
        if node.op in WINDOWS:
            return node.op != "conv" or node.operands[1].is_constant
        if node.op in PICKED:
            return node.operands[0] in self.dense
        if node.op == "Concat":
            return any(n in self.dense for n in node.operands)
        if not is_elementwise(node):
            return False
        tables = TABLES.get(node.op, ())
        read = [n for i, n in enumerate(node.inputs) if n is not None and i not in tables]
        return any(n in self.dense for n in read) and all(
            _is_flat(n) or _is_image(n, node) for n in read
        )

    def _sums(self, node: Node) -> bool:
        """Is it a reduction over the pixels of images that it can read as they are?"""
        if node.op not in SUMS or node in self.refused or node.operands[0] not in self.dense:
            return False
        x = node.operands[0]
        return "float" in x.dtype and sorted(axes_of(node) or []) == [1, 2]

    def _operand(self, node: Node, operand: Node, place: int) -> Node:
        if node.op in (*WINDOWS, *PICKED):
            return self._dense(operand) if not place else self._padded(operand)
        if operand in self.dense or (_is_image(operand, node) and not _is_flat(operand)):
            return self._dense(operand, self.frames.of[node])
        return self._padded(operand)

    # -- from one way to the other

    def _dense(self, node: Node, frame: Frame | None = None) -> Node:
        """An image as a run's own; `frame`: its sizes, where it has none by itself."""
        if node not in self.dense:
            frame = self.frames.of.get(node) or frame
            assert frame is not None
            bare = self._shown(node)
            turned = self._turned(bare.operands[0]) if _channels_go_last(bare) else None
            made = turned or self._moved(self._bare(node), frame, back=False)
            self._keep(node, made, frame)
        return self.dense[node]

    def _turned(self, planes: Node) -> Node | None:
        """Planes that are joined by their channels, or every n-th row and column of some, as images
        of a run's own whose channels are last; None for others.
        """
        planes = self._shown(planes)
        frame = self.frames.of.get(planes)
        if frame is None or frame.axis != 2 or planes.type.rank != 4 or planes in self.refused:
            return None
        alike = all(self.frames.of.get(n) == frame for n in planes.operands)
        if planes.op == "Concat" and planes.int("axis") % 4 == 1 and alike:
            return make("Concat", *map(self._last, planes.operands), axis=3)
        axes = sliced_axes(planes) if planes.op == "Slice" else None
        if not axes or not set(axes) <= {2, 3}:
            return None
        x, start, end, _, *steps = planes.inputs
        assert x is not None
        along = constant(np.array(axes, np.int64) - 1)
        return make("Slice", self._last(x), start, end, along, *steps)

    def _last(self, planes: Node) -> Node:
        """Planes as images of a run's own whose channels are last."""
        if planes not in self._lasts:
            frame = self.frames.of[planes]
            bare = make("Transpose", self._bare(planes), perm=_LAST)
            made = self._turned(planes) or self._moved(bare, frame, back=False)
            self._lasts[planes], self.extents[made] = made, self._of(frame)
            self.origin[made] = planes
        return self._lasts[planes]

    def _shown(self, node: Node) -> Node:
        """A value of which nothing is hidden that is outside of its frame."""
        return self._shown(node.operands[1]) if node in self.frames.hidden else node

    def _bare(self, node: Node) -> Node:
        """A padded image, of which it does not matter what is outside."""
        node = self._shown(node)
        if node.op == "Transpose" and node.operands[0] in self.frames.hidden:
            return make("Transpose", self._bare(node.operands[0]), perm=perm_of(node))
        return self._padded(node)

    def _padded(self, node: Node) -> Node:
        """A value as a padded graph has it. What follows from hidden numbers is computed again from
        these, as its readers may know that it is 0, or finite, outside.
        """
        if node not in self.padded:
            if node in self.frames.hidden or node in self.filled:
                made = node.with_inputs(n and self._padded(n) for n in node.inputs)
            else:
                made = self._moved(self.dense[node], self.frames.of[node], back=True)
            self.padded[node] = made
            self.origin[made] = node
        return self.padded[node]

    def _moved(self, x: Node, frame: Frame, *, back: bool) -> Node:
        """Images laid the other way."""
        key = (x, frame.sizes, back)
        if key not in self._laid:
            planar = _channels_go_last(x) and not back and x.type.dims[3] <= FEW
            source = x.operands[0] if planar else x
            pixels = make("lay", source, *self._of(frame).sizes, back=int(back), planar=int(planar))
            self._laid[key] = reshaped(pixels, x.type.dims, x.name)
        return self._laid[key]

    def _of(self, frame: Frame) -> Extents:
        """What tells kernels the sizes of a frame: nodes that no node reads."""
        if frame.sizes not in self._sizes:
            height, width = (
                constant(np.array([size], np.int32))
                if isinstance(size, int)
                else reshaped(self.frames.sizes[size], (1,))
                for size in frame.sizes
            )
            self._sizes[frame.sizes] = Extents((height, width), self.frames.least(frame))
        return self._sizes[frame.sizes]


def _channels_go_last(node: Node) -> bool:
    """Are planes made images whose channels are last?"""
    return node.op == "Transpose" and tuple(perm_of(node)) == _LAST


def _is_flat(operand: Node) -> bool:
    """Is it the same for all pixels?"""
    return all(n == 1 for n in operand.type.dims[:-1])


def _is_image(operand: Node, node: Node) -> bool:
    """Is an operand an image of the size of its node's?"""
    return operand.type.rank == 4 and operand.type.dims[:3] == node.type.dims[:3]
