"""Problem -> the ways its left operand's rows can lie in memory, a constant stride apart.

Tile loads want rows in even steps, so a block of output lines is laid end to end: row f is the
output pixel (f // pitch, f % pitch); those of `columns` and more are computed and dropped.

"direct"    in the operand itself: matrix products, convolutions without padding and strides
"planes"    copied with their padding; lines that a stride parts stand in planes of their own
"gathered"  copied once for every window that sees them, a window a row
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.matrix.problem import Pair, Problem

WORD = 4
"""Bytes of a sum."""
_MOST_PLANES = 9
_SPARE_STEPS = 1.15
"""Steps of one size may be so many more than the fewest if that spares a tail."""


@dataclass(frozen=True)
class Axis:
    """Where a window's places along one axis lie: tap k is in plane phase(k), shift(k) cells on."""

    taps: int
    stride: int
    """Pixels of input from a cell to the next one, those between are in other planes."""
    dilation: int
    walk: int = 1
    """Cells from one output's window to the next one's."""

    def phase(self, tap: Value) -> Value:
        """The plane that a tap reads."""
        return tap * self.dilation % self.stride

    def shift(self, tap: Value) -> Value:
        """Cells from an output's place to the tap's."""
        return tap * self.dilation // self.stride

    @property
    def phases(self) -> tuple[int, ...]:
        """The planes that are read."""
        return tuple(sorted({self.phase(k) for k in range(self.taps)}))

    @property
    def planes(self) -> int:
        """Planes that have room, read or not."""
        return self.phases[-1] + 1

    def cells(self, outputs: int) -> int:
        """Cells of a plane that so many outputs see."""
        return (outputs - 1) * self.walk + int(self.shift(self.taps - 1)) + 1


@dataclass(frozen=True)
class Layout:
    """How rows lie. `axes` are the window's; at every tap a row has `depth` neighbouring elements,
    read in `full` steps of `step` elements and, if there is a `tail`, one more from a copy of what
    is left, with zeros behind it.
    """

    form: str
    problem: Problem
    axes: tuple[Axis, Axis]
    taps: Pair
    depth: int
    step: int
    full: int
    tail: int
    stride: int
    """Elements from row to row."""

    @property
    def walk(self) -> int:
        """Cells from row to row."""
        return self.axes[0 if self.problem.narrow else 1].walk

    @property
    def steps(self) -> int:
        """Tile steps of a sum in all."""
        return self.taps[0] * self.taps[1] * self.tap_steps

    @property
    def tap_steps(self) -> int:
        """Tile steps of a tap."""
        return self.full + (self.tail > 0)

    @property
    def step_bytes(self) -> int:
        """Bytes of a left row that one step takes."""
        return self.step * self.problem.itemsize

    @cached_property
    def pitch(self) -> int:
        """Rows from one output line to the next."""
        p = self.problem
        if self.form == "gathered" or p.narrow:
            return p.columns
        return p.breadth if self.form == "direct" else self.across // self.walk

    @cached_property
    def across(self) -> int:
        """Cells of a copied line; in planes a whole number of steps from row to row."""
        x = self.axes[1]
        cells = x.cells(self.problem.columns)
        return cells if self.form == "gathered" else -(-cells // x.walk) * x.walk

    def rows(self, lines: int) -> int:
        """Rows of so many output lines laid end to end."""
        return (lines - 1) * self.pitch + self.problem.columns

    def cells(self, lines: int) -> int:
        """Cells of a plane for so many output lines."""
        return self.axes[0].cells(lines) * self.across

    def plane_bytes(self, lines: int) -> int:
        """Bytes of all planes that are copied for so many output lines."""
        p = self.problem
        if self.form == "direct" or (self.form == "gathered" and not p.padded):
            return 0
        return self.cells(lines) * self.axes[0].planes * p.pixel * p.itemsize

    def gathered_bytes(self, lines: int) -> int:
        """Bytes of the gathered rows of so many output lines."""
        size = lines * self.problem.columns * self.stride * self.problem.itemsize
        return size if self.form == "gathered" else 0

    def needed_cells(self, lines: int) -> int:
        """Cells from the first that tile loads read to the last, for so many output lines."""
        ky, kx = (range(n) for n in self.taps)
        furthest = max(int(tap_cell(self, lines, y, x)) for y in ky for x in kx)
        return (self.rows(lines) - 1) * self.walk + furthest + 1

    def tail_bytes(self, lines: int) -> int:
        """Bytes of the tails' copy for so many output lines."""
        size = self.needed_cells(lines) * self.problem.groups * self.step_bytes
        return size if self.tail else 0

    def left_bytes(self, lines: int) -> int:
        """Bytes of left operand that tile loads read for so many output lines."""
        if self.form == "gathered":
            return self.gathered_bytes(lines)
        p = self.problem
        return self.needed_cells(lines) * p.pixel * p.itemsize + self.tail_bytes(lines)


def layouts(p: Problem) -> Iterator[Layout]:
    """Problem -> every layout that fits it."""
    if not p.padded and (p.strides == (1, 1) or p.narrow):
        yield _layout("direct", p)
        if p.kernel == (1, 1):
            return
    planes = _layout("planes", p)
    if planes.axes[0].planes <= _MOST_PLANES:
        yield planes
    if p.groups == 1:
        yield _gathered(p)


def _layout(form: str, p: Problem) -> Layout:
    """Rows that are read tap by tap."""
    (sy, sx), (dy, dx) = p.strides, p.dilations
    down = Axis(p.kernel[0], 1, dy, walk=sy) if p.narrow else Axis(p.kernel[0], sy, dy)
    axes = (down, Axis(p.kernel[1], 1, dx, walk=sx))
    taps, depth = p.kernel, p.channels
    if p.groups == 1 and p.narrow and axes[0].stride == dy == 1:
        taps, depth = (1, 1), depth * p.kernel[0]
    elif p.groups == 1 and dx == 1 and not p.narrow:
        taps, depth = (p.kernel[0], 1), depth * p.kernel[1]
    layout = Layout(form, p, axes, taps, depth, 0, 0, 0, 0)
    layout = replace(layout, stride=p.pixel * layout.walk)
    return _stepped(layout, overread=form == "planes" and p.exact)


def _gathered(p: Problem) -> Layout:
    """A window a row; copies of lines have their padding, nothing is in planes of its own."""
    (sy, sx), (dy, dx) = p.strides, p.dilations
    axes = (Axis(p.kernel[0], 1, dy, walk=sy), Axis(p.kernel[1], 1, dx, walk=sx))
    depth = p.kernel[0] * p.kernel[1] * p.channels
    step = p.mac.k
    steps = -(-depth // step)
    if steps == 1:  # a shorter row is a shorter step
        step = -(-depth // p.quad) * p.quad
    return Layout("gathered", p, axes, (1, 1), depth, step, steps, 0, steps * step)


def _stepped(layout: Layout, *, overread: bool) -> Layout:
    """A layout -> with its depth cut into steps."""
    p, depth = layout.problem, layout.depth
    most = p.mac.k
    fewest = -(-depth // most)
    for steps in range(fewest, int(fewest * _SPARE_STEPS) + 1):
        if depth % (steps * p.quad) == 0:
            return replace(layout, step=depth // steps, full=steps)
    if overread:
        step = most if fewest > 1 else -(-depth // p.quad) * p.quad
        return replace(layout, step=step, full=fewest)
    if fewest == 1:
        return replace(layout, step=-(-depth // p.quad) * p.quad, full=0, tail=depth)
    return replace(layout, step=most, full=depth // most, tail=depth % most)


def tap_cell(layout: Layout, lines: int, ky: Value, kx: Value) -> Value:
    """Cells from a row's own place to where its tap lies, in copies for so many output lines."""
    y, x = layout.axes
    if layout.form == "direct":
        return ky * y.dilation * layout.problem.breadth + kx * x.dilation
    down = y.phase(ky) * layout.cells(lines) + y.shift(ky) * layout.across
    return down + kx * x.dilation
