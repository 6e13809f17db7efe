"""Images whose height and width only a run knows, and the windows over them.

Such an image lies in memory as one of its own size would: its rows one after the other, each as
wide as this run's. So whatever goes through pixels one by one needs to know how many there are, and
only windows need to know where a row ends. What a window sees behind an end is padding, as in a
kernel made for that size.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.region import Region
from qcompiler.ops.window import Window


@dataclass(frozen=True)
class OpenImage:
    """The height and the width of images in this run, in pixels, and the rows and columns of what a
    window makes of each.
    """

    window: Window
    height: Value
    width: Value
    rows: Value
    columns: Value
    least: tuple[int, int]
    """The least rows and columns in any run."""

    @staticmethod
    def of(d: Draft, window: Window) -> OpenImage:
        """Those that a kernel's window goes over, along both dimensions."""
        sizes = d.image()
        axes = [
            (sum(pads or ()) - reach, stride)
            for pads, reach, stride in zip(window.pads, window.reach, window.strides, strict=True)
        ]
        rows, columns = (
            d.b.hold(tirx.floordiv(n + more, tir.const(stride)) + 1, "outputs")
            for n, (more, stride) in zip(sizes, axes, strict=True)
        )
        fewest = zip(least(d.region), axes, strict=True)
        height, width = (max((n + more) // stride + 1, 1) for n, (more, stride) in fewest)
        return OpenImage(window, *sizes, rows, columns, (height, width))


def least(region: Region) -> tuple[int, int]:
    """The least height and width, in any run, of a region's images of open sizes."""
    height, width = region.least or (1, 1)
    return height, width


def is_open(region: Region) -> bool:
    """Are a region's images of a size that only a run knows?"""
    return len(region.extents) == 2
