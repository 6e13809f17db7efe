"""Which values of a padded graph are images of an open height or width, and their sizes in a run.

A frame says along which two dimensions a value is such an image. Frames begin at inputs, and go
along with operators that keep them, or whose windows make other sizes of them. A Where that sets to
a number what does not count (rewrite/padding) is known by its condition: it is no more than
comparisons of positions with the sizes of its frame, which are true within the image. Where nothing
else says the frame, these are its sizes if padding made the Where; a mask of the model's own may be
of other sizes than its image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.errors import Error
from qcompiler.ir import SIZE, Array, Dim, Graph, Node
from qcompiler.onnx_io.dims import in_types
from qcompiler.ops import is_elementwise, known_value
from qcompiler.ops.kinds import VIEWS
from qcompiler.ops.resize import repeats
from qcompiler.ops.window import Window
from qcompiler.plan.counted import sliced_axes
from qcompiler.plan.plan import Opened
from qcompiler.rewrite.matching import perm_of

WINDOWS = ("conv", "max_pool", "average_pool")

Tests = list[tuple[Array, str]]
"""Positions, in a shape that broadcasts to that of a condition, and the sizes they are below."""


@dataclass(frozen=True)
class Frame:
    """Images along dimensions `axis` and `axis + 1`: their height and width in a run."""

    axis: int
    height: Dim
    width: Dim

    @property
    def sizes(self) -> tuple[Dim, Dim]:
        """Both."""
        return self.height, self.width


class Frames:
    """The frames of a graph's values, and the values that hide what is outside of theirs."""

    def __init__(self, graph: Graph, opened: Opened) -> None:
        self.sizes: dict[Dim, Node] = {
            n.name.removeprefix(SIZE): n for n in graph.inputs if n.name.startswith(SIZE)
        }
        named = {s.name: str(in_types(s.name, s.low, s.step)) for s in opened.inner if s.low}
        for name, size in named.items():  # a size with a step is told by its name
            if name in self.sizes:
                self.sizes.setdefault(size, self.sizes[name])
        self._ranges = {s.name: (s.low, s.high) for s in opened.inner}
        self._top: dict[str, int] = {}
        self.of: dict[Node, Frame] = {}
        self.hidden: set[Node] = set()
        """Each Where that changes its second operand only where no image is."""
        self._tests: dict[Node, Tests | None] = {}
        for node, dims in zip(graph.inputs, opened.shapes[0], strict=False):
            self._input(node, dims, named)
        for node in graph.nodes:
            frame = self._frame(node)
            if frame is not None and self._is_known(node, frame):
                self.of[node] = frame

    def least(self, frame: Frame) -> tuple[int, int]:
        """The least height and width of such images in any run."""
        height, width = (max(Size.of(n).bounds(self._ranges)[0], 1) for n in frame.sizes)
        return height, width

    def _input(self, node: Node, dims: tuple[Dim, ...], named: Mapping[str, str]) -> None:
        """An image with its channels first, or last."""
        open_ = {a for a, d in enumerate(dims) if isinstance(d, str)}
        self._top.update((str(dims[a]), node.type.dims[a]) for a in open_)
        axis = next((a for a in (2, 1) if open_ and open_ <= {a, a + 1}), -1)
        if len(dims) != 4 or axis < 0 or not all(dims[a] in named for a in open_):
            return
        height, width = (named.get(str(d), d) for d in dims[axis : axis + 2])
        self.of[node] = Frame(axis, height, width)

    def _is_known(self, node: Node, frame: Frame) -> bool:
        """Are its sizes those of memory, and told to kernels?"""
        room = node.type.dims[frame.axis : frame.axis + 2]
        for size, most in zip(frame.sizes, room, strict=True):
            known = isinstance(size, int) or (
                size in self.sizes and Size.of(size).symbols <= self._top.keys()
            )
            if not known or Size.of(size).at(self._top) != most:
                return False
        return True

    def _frame(self, node: Node) -> Frame | None:
        if node.op == "input":
            return self.of.get(node)
        if len(node.types) != 1 or not node.operands:
            return None
        first = self.of.get(node.operands[0])
        if node.op == "Where" and (found := self._masked(node)):
            return found
        if node.op == "Transpose" and first is not None:
            perm = perm_of(node)
            height, width = perm.index(first.axis), perm.index(first.axis + 1)
            return Frame(height, *first.sizes) if width == height + 1 else None
        if node.op == "Concat":
            return _beside(node, self._shared(node))
        if channels := spread(node):
            frame = self.of.get(channels.x)
            made = None if frame is None else _times(frame, channels.down, channels.across)
            return made if made is None or self._covers(made, node, channels) else None
        if is_elementwise(node):
            return self._shared(node)
        rule = _windowed if node.op in WINDOWS else _RULES.get(node.op)
        return None if first is None or rule is None else rule(node, first)

    def _shared(self, node: Node) -> Frame | None:
        """That of all operands that have one, in the same dimensions."""
        rank = node.type.rank
        found = set()
        for n in node.operands:
            if n in self.of:
                frame = self.of[n]
                found.add(Frame(frame.axis + rank - n.type.rank, *frame.sizes))
        return found.pop() if len(found) == 1 else None

    def _masked(self, node: Node) -> Frame | None:
        """The frame of a Where that hides what is outside of it."""
        condition, x = node.operands[:2]
        tests = self._conditions(condition)
        if not tests or x.type.dims != node.type.dims:
            return None
        found: dict[int, str] = {}
        for positions, size in tests:
            axis = _axis(positions, node.type.dims)
            if axis < 0 or found.get(axis, size) != size:
                return None
            found[axis] = size
        frame = self.of.get(x)
        if frame is None and len(found) == 2 and node.int("hides"):
            frame = Frame(min(found), found[min(found)], found[max(found)])
        if frame is None or max(found) > frame.axis + 1:
            return None
        own = dict(zip((frame.axis, frame.axis + 1), frame.sizes, strict=True))
        if any(own.get(axis) != size for axis, size in found.items()):
            return None
        self.hidden.add(node)
        return frame

    def _covers(self, frame: Frame, node: Node, found: Spread) -> bool:
        """Is nothing hidden of what an image's channels become, but what is outside of a frame?"""
        if found.condition is None:
            return True
        tests = self._conditions(found.condition)
        split = node.operands[0].operands[0].type.dims
        for positions, size in tests or ():
            whole = np.broadcast_to(positions, split).transpose(_SPREAD).reshape(node.type.dims)
            axis = _axis(whole, node.type.dims)
            if axis not in (frame.axis, frame.axis + 1) or frame.sizes[axis - frame.axis] != size:
                return False
        return bool(tests)

    def _conditions(self, node: Node) -> Tests | None:
        """What a condition compares, if it is true where all of these are, and says no more."""
        if node not in self._tests:
            self._tests[node] = self._compared(node)
        return self._tests[node]

    def _compared(self, node: Node) -> Tests | None:
        if node.op == "Less":
            size = node.operands[1]
            given, dims = known_value(node.operands[0]), node.type.dims
            if given is None or not size.name.startswith(SIZE) or size.op != "input":
                return None
            return [(np.broadcast_to(given, dims), size.name.removeprefix(SIZE))]
        if node.op not in ("And", "Transpose", *VIEWS) or node.dtype != "bool":
            return None
        each = [self._conditions(n) for n in node.operands[: 2 if node.op == "And" else 1]]
        if None in each:
            return None
        tests = [test for some in each if some is not None for test in some]
        if node.op == "And":
            return tests
        x, dims = node.operands[0], node.type.dims
        whole = [(np.broadcast_to(positions, x.type.dims), size) for positions, size in tests]
        if node.op == "Transpose":
            return [(positions.transpose(perm_of(node)), size) for positions, size in whole]
        return [(positions.reshape(dims), size) for positions, size in whole]


def _axis(positions: Array, dims: tuple[int, ...]) -> int:
    """The dimension of a shape along which an array that broadcasts to it is 0, 1, 2, ...; -1 if
    there is none.
    """
    whole = (1,) * (len(dims) - positions.ndim) + positions.shape
    for axis, count in enumerate(dims):
        if whole[axis] == count > 1:
            steps = np.arange(count).reshape(-1, *[1] * (len(dims) - 1 - axis))
            if np.array_equal(positions.reshape(whole), np.broadcast_to(steps, whole)):
                return axis
    return -1


def _windowed(node: Node, frame: Frame) -> Frame | None:
    """What windows over images make of them, channels last."""
    x = node.operands[0]
    if frame.axis != 1 or x.type.rank != 4:
        return None
    kernel = node.operands[1].type.dims[:-2] if node.op == "conv" else None
    try:
        rows, columns = Window.of(node, frame.sizes, kernel).outputs(frame.sizes)
    except Error:
        return None
    return Frame(1, rows, columns)


def _beside(node: Node, frame: Frame | None) -> Frame | None:
    """Images joined along another dimension than their height and width."""
    axis = node.int("axis") % node.type.rank
    return None if frame is None or axis in (frame.axis, frame.axis + 1) else frame


def _cut(node: Node, frame: Frame) -> Frame | None:
    """Every n-th row and column, from some on to the end. A Slice may end before that: there are
    more then than count, which are what the padded graph has there.
    """
    numbers = [None if n is None else known_value(n) for n in (*node.inputs[1:], None, None)[:4]]
    axes = sliced_axes(node)
    if numbers[0] is None or axes is None or (node.inputs[4:] and numbers[3] is None):
        return None
    sizes, room = [*frame.sizes], node.operands[0].type.dims
    steps = [1] * len(axes) if numbers[3] is None else numbers[3].ravel().tolist()
    for axis, start, step in zip(axes, numbers[0].ravel().tolist(), steps, strict=True):
        if axis - frame.axis in (0, 1):
            if step < 1 or not 0 <= start < room[axis]:
                return None
            own = Size.of(sizes[axis - frame.axis])
            sizes[axis - frame.axis] = settled((own - start + (step - 1)) // step)
    return Frame(frame.axis, *sizes)


def _enlarged(node: Node, frame: Frame) -> Frame | None:
    """Every pixel repeated as often in all runs."""
    times = repeats(node)
    if times is None or not times.keys() <= {frame.axis, frame.axis + 1}:
        return None
    return _times(frame, *(times.get(frame.axis + i, 1) for i in (0, 1)))


def _times(frame: Frame, down: int, across: int) -> Frame:
    sizes = (settled(Size.of(n) * k) for n, k in zip(frame.sizes, (down, across), strict=True))
    return Frame(frame.axis, *sizes)


@dataclass(frozen=True)
class Spread:
    """Images whose channels become so many pixels below and beside each other."""

    x: Node
    condition: Node | None
    """Where they are kept, as they lie before they are moved."""
    down: int
    across: int


_SPREAD = (0, 1, 4, 2, 5, 3, 6)
"""How [images, rows, columns, 1, down, across, channels] are moved."""


def spread(node: Node) -> Spread | None:
    """A Reshape of a Transpose of a Reshape that does so, as of a transposed convolution, channels
    last; None for other nodes.
    """
    moved = node.operands[0] if node.op == "Reshape" else node
    if moved.op != "Transpose" or tuple(perm_of(moved)) != _SPREAD:
        return None
    split, condition = moved.operands[0], None
    if split.op == "Where":
        condition, split = split.operands[:2]
    if split.op != "Reshape" or split.type.dims != moved.operands[0].type.dims:
        return None
    x, (images, rows, columns, one, down, across, channels) = split.operands[0], split.type.dims
    made = (images, rows * down, columns * across, channels)
    if one != 1 or node.type.dims != made or x.type.dims[:-1] != (images, rows, columns):
        return None
    return Spread(x, condition, down, across)


_RULES = {"Resize": _enlarged, "Slice": _cut}
