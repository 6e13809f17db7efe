"""Images of a run's own height and width, in memory of the largest ones (plan/images.py)."""

from __future__ import annotations

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Node, Type
from qcompiler.ops.registry import Numbers, operator, typed
from qcompiler.ops.shapes import need_rank


@operator("lay", back=0, planar=0)
def lay(node: Node, x: Numbers, height: Numbers, width: Numbers) -> Numbers:
    """x[images, rows, columns, channels], or with `planar` [images, channels, rows, columns] -> the
    first `height` rows and `width` columns of each image, one pixel after the other, in
    [all pixels, channels]; `back`: the other way. What is behind them, or beside, may be anything.
    """
    if node.int("planar"):
        x = np.moveaxis(x, 1, -1)
    images, _, _, channels = x.shape
    h, w = (int(n.ravel()[0]) for n in (height, width))
    made = np.zeros(x.shape, x.dtype)
    count = images * h * w
    if node.int("back"):
        pixels = x.reshape(-1, channels)[:count]
        made[:, :h, :w] = pixels.reshape(images, h, w, channels)
    else:
        made.reshape(-1, channels)[:count] = x[:, :h, :w].reshape(count, channels)
    return made.reshape(-1, channels)


@typed(lay)
def _(node: Node) -> Type:
    x = need_rank(node.operands[0], 4, "images")
    if x.rank != 4 or not x.static:
        raise Error(f"{x} is not a batch of images of known sizes")
    images, *others = x.dims
    channels, rows, columns = others if node.int("planar") else (others[2], *others[:2])
    return Type(x.dtype, (images * rows * columns, channels))


@operator("depth_to_space", down=1, across=1)
def depth_to_space(node: Node, x: Numbers) -> Numbers:
    """x[N, H, W, down * across * C] -> [N, H * down, W * across, C]: the channels of each pixel as
    pixels below and beside each other.
    """
    down, across = node.int("down"), node.int("across")
    images, rows, columns, _ = x.shape
    blocks = x.reshape(images, rows, columns, down, across, -1).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(images, rows * down, columns * across, -1)


@typed(depth_to_space)
def _(node: Node) -> Type:
    x = need_rank(node.operands[0], 4, "images")
    down, across = node.int("down"), node.int("across")
    if x.rank != 4 or not x.static or min(down, across) < 1 or x.dims[3] % (down * across):
        raise Error(f"{x} has no {down} x {across} pixels in each")
    images, rows, columns, channels = x.dims
    shape = (images, rows * down, columns * across, channels // (down * across))
    return Type(x.dtype, shape)
