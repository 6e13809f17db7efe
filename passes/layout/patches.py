"""Lower Col2Im and MaxUnpool.

Col2Im(x, image, block)      ->  col2im(x){image, block}     if they are known
MaxUnpool(x, indices)         ->  Reshape(ScatterElements(zeros, indices, x))
MaxUnpool(x, indices, shape)  ->  Pad of that
"""

from __future__ import annotations

from math import prod

import numpy as np

from qcompiler.ir import Node, numpy_dtype
from qcompiler.ops import make
from qcompiler.ops.contraction import numbers
from qcompiler.ops.patches import unpooled
from qcompiler.rewrite import Skip, op, rule
from qcompiler.rewrite.matching import const, input_at, int64s, ints, reshape


@rule(op("Col2Im"))
def layout_col2im(node: Node) -> Node | Skip:
    """Col2Im(x, image, block) -> col2im(x){image, block}."""
    image, block = ints(node.operands[1]), ints(node.operands[2])
    if image is None or block is None:
        return Skip("the sizes of the image or of its blocks are known at run time only")
    attrs = {**node.attrs, "image": image, "block": block}
    return make("col2im", node.operands[0], name=node.name, **attrs)


@rule(op("MaxUnpool"))
def layout_unpool(node: Node) -> Node | Skip:
    """MaxUnpool(x, indices) -> Reshape(ScatterElements(zeros, indices, x))."""
    x, places = node.operands[:2]
    if not x.type.static or not node.type.static:
        return Skip("a shape is unknown")
    whole = numbers(unpooled(node.attrs, x.type.dims))
    zeros = const(np.zeros(prod(whole), numpy_dtype(x.dtype)))
    flat = (reshape(i, (x.type.size,)) for i in (places, x))
    made = reshape(make("ScatterElements", zeros, *flat, axis=0, name=node.name), whole)
    wanted = ints(input_at(node, 2))
    if wanted is None or wanted == whole:
        return made
    ends = (n - m for n, m in zip(wanted, whole, strict=True))
    return make("Pad", made, int64s([*[0] * len(whole), *ends]))
