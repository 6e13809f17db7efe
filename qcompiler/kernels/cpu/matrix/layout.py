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

from qcompiler.hardware.products import TileMac
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.contraction.operands import Panels
from qcompiler.kernels.cpu.contraction.problem import Problem

WORD = 4
"""Bytes of a sum."""
PANEL_TILES = 2
"""Most columns of tiles in a panel of the right operand."""
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
    mac: TileMac
    axes: tuple[Axis, Axis]
    taps: tuple[int, ...]
    depth: int
    step: int
    full: int
    tail: int
    stride: int
    """Elements from row to row."""

    @property
    def quad(self) -> int:
        """Neighbours along k that fill the bytes of one sum: a right tile keeps them together."""
        return WORD // self.problem.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of a right tile, or of one of sums."""
        return self.mac.lanes * WORD

    @property
    def tile_bytes(self) -> int:
        """Bytes of a right tile."""
        return self.step // self.quad * self.row_bytes

    @property
    def strip_bytes(self) -> int:
        """Bytes of one column of right tiles, all its steps."""
        return self.steps * self.tile_bytes

    @cached_property
    def panels(self) -> Panels:
        """The right operand's, of columns of tiles."""
        return Panels.of(self.problem.width, self.mac.lanes, PANEL_TILES)

    @property
    def matrix_bytes(self) -> int:
        """Bytes of a right matrix."""
        return self.panels.cut.length * self.strip_bytes

    @property
    def exact(self) -> bool:
        """Does a zero weight cancel whatever it meets? (A float could be NaN.)"""
        return self.problem.root.dtype == "int32"

    @property
    def walk(self) -> int:
        """Cells from row to row."""
        return self.axes[0 if upright(self.problem) else 1].walk

    @property
    def steps(self) -> int:
        """Tile steps of a sum in all."""
        return self.taps[0] * self.taps[1] * self.tap_steps

    @property
    def tap_steps(self) -> int:
        """Tile steps of a tap."""
        return self.full + (self.tail > 0)

    @property
    def buffers(self) -> int:
        """Areas for sums: of a single step they leave while those before are still read."""
        return 2 if self.steps == 1 else 1

    @cached_property
    def pitch(self) -> int:
        """Rows from one output line to the next."""
        p = self.problem
        if self.form == "gathered" or upright(p):
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
        return self.cells(lines) * self.axes[0].planes * p.pixel * self.problem.itemsize

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
        size = self.needed_cells(lines) * self.problem.groups * self.step * self.problem.itemsize
        return size if self.tail else 0

    def left_bytes(self, lines: int) -> int:
        """Bytes of left operand that tile loads read for so many output lines."""
        if self.form == "gathered":
            return self.gathered_bytes(lines)
        p = self.problem
        return self.needed_cells(lines) * p.pixel * self.problem.itemsize + self.tail_bytes(lines)


def upright(p: Problem) -> bool:
    """Has a line one pixel, in and out?"""
    return (p.breadth, p.columns, p.window.kernel[1], p.begins[1]) == (1, 1, 1, 0)


def layouts(p: Problem, mac: TileMac) -> Iterator[Layout]:
    """Problem -> every layout that fits it."""
    if not p.padded and (p.window.strides == (1, 1) or upright(p)):
        yield _layout("direct", p, mac)
        if p.window.kernel == (1, 1):
            return
    planes = _layout("planes", p, mac)
    if planes.axes[0].planes <= _MOST_PLANES:
        yield planes
    if p.groups == 1:
        yield _gathered(p, mac)


def _layout(form: str, p: Problem, mac: TileMac) -> Layout:
    """Rows that are read tap by tap."""
    (ky, kx), (sy, sx), (dy, dx) = p.window.kernel, p.window.strides, p.window.dilations
    down = Axis(ky, 1, dy, walk=sy) if upright(p) else Axis(ky, sy, dy)
    axes = (down, Axis(kx, 1, dx, walk=sx))
    taps, depth = (ky, kx), p.channels
    if p.groups == 1 and upright(p) and axes[0].stride == dy == 1:
        taps, depth = (1, 1), depth * ky
    elif p.groups == 1 and dx == 1 and not upright(p):
        taps, depth = (ky, 1), depth * kx
    layout = Layout(form, p, mac, axes, taps, depth, 0, 0, 0, 0)
    layout = replace(layout, stride=p.pixel * layout.walk)
    return _stepped(layout, overread=form == "planes" and layout.exact)


def _gathered(p: Problem, mac: TileMac) -> Layout:
    """A window a row; copies of lines have their padding, nothing is in planes of its own."""
    (ky, kx), (sy, sx), (dy, dx) = p.window.kernel, p.window.strides, p.window.dilations
    axes = (Axis(ky, 1, dy, walk=sy), Axis(kx, 1, dx, walk=sx))
    depth, step = ky * kx * p.channels, mac.k
    steps = -(-depth // step)
    if steps == 1:  # a shorter row is a shorter step
        quad = mac.k // mac.rows
        step = -(-depth // quad) * quad
    return Layout("gathered", p, mac, axes, (1, 1), depth, step, steps, 0, steps * step)


def _stepped(layout: Layout, *, overread: bool) -> Layout:
    """A layout -> with its depth cut into steps."""
    depth, quad, most = layout.depth, layout.quad, layout.mac.k
    fewest = -(-depth // most)
    for steps in range(fewest, int(fewest * _SPARE_STEPS) + 1):
        if depth % (steps * quad) == 0:
            return replace(layout, step=depth // steps, full=steps)
    if overread:
        step = most if fewest > 1 else -(-depth // quad) * quad
        return replace(layout, step=step, full=fewest)
    if fewest == 1:
        return replace(layout, step=-(-depth // quad) * quad, full=0, tail=depth)
    return replace(layout, step=most, full=depth // most, tail=depth % most)


def tap_cell(layout: Layout, lines: int, ky: Value, kx: Value) -> Value:
    """Cells from a row's own place to where its tap lies, in copies for so many output lines."""
    y, x = layout.axes
    if layout.form == "direct":
        return ky * y.dilation * layout.problem.breadth + kx * x.dilation
    down = y.phase(ky) * layout.cells(lines) + y.shift(ky) * layout.across
    return down + kx * x.dilation
