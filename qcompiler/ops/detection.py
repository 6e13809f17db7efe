"""Boxes: which of them to keep."""

from __future__ import annotations

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Node, Type
from qcompiler.ops.registry import Numbers, operator, required, typed
from qcompiler.ops.shapes import agree, need_shape, together


@operator("non_max_suppression", most=required(), center=0)
def non_max_suppression(
    node: Node, boxes: Numbers, scores: Numbers, each: Numbers, overlap: Numbers, least: Numbers
) -> Numbers:
    """ONNX's NonMaxSuppression of boxes[B, N, 4] and scores[B, C, N] -> int64[most + 1, 3]: up to
    `most` triples (batch, class, box), zeros, and in the last row how many there are in all.

    Of a class up to `each` boxes are kept, the best score first (of equals the first), each with a
    score above `least` and an overlap of at most `overlap` with those before it. `most` may be an
    open size.
    """
    most = node.int("most")
    found = []
    for batch, group in np.ndindex(*scores.shape[:2]):
        corners = _corners(boxes[batch].astype(np.float32), center=bool(node.int("center")))
        for box in _kept(corners, scores[batch, group], int(each[0]), overlap[0], least[0]):
            found.append((batch, group, box))
    made = np.zeros((most + 1, 3), np.int64)
    rows = np.array(found[:most], np.int64).reshape(-1, 3)
    made[: len(rows)], made[most, 0] = rows, len(found)
    return made


def _corners(boxes: Numbers, *, center: bool) -> Numbers:
    """Boxes as in the model -> two corners, the smaller coordinates first: [N, 4]."""
    if center:
        middle, half = boxes[:, :2], boxes[:, 2:] / np.float32(2)
        return np.concatenate([middle - half, middle + half], 1)
    a, b = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([np.minimum(a, b), np.maximum(a, b)], 1)


def _kept(corners: Numbers, scores: Numbers, each: int, overlap: float, least: float) -> list[int]:
    order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > least]
    kept: list[int] = []
    for i in order:
        if len(kept) >= each:
            break
        if not any(_overlap(corners[i], corners[j]) > overlap for j in kept):
            kept.append(int(i))
    return kept


def _overlap(a: Numbers, b: Numbers) -> float:
    """The intersection of two boxes over their union; 0 where either is empty."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    if min(sides) <= 0 or min(areas) <= 0:
        return 0.0
    both = sides[0] * sides[1]
    return float(both / (areas[0] + areas[1] - both))


@typed(non_max_suppression)
def _(node: Node) -> Type:
    boxes, scores = (i.type for i in node.operands[:2])
    if boxes.rank != 3 or not agree(boxes.shape[2], 4) or scores.rank != 3:
        raise Error(f"boxes {boxes} and scores {scores} where [B,N,4] and [B,C,N] are needed")
    if not agree(boxes.shape[0], scores.shape[0]) or not agree(boxes.shape[1], scores.shape[2]):
        raise Error(f"boxes {boxes} do not fit scores {scores}")
    for i, what in enumerate(("most", "overlap", "least score")):
        need_shape(node.operands[2 + i], (1,), what)
    most = node.attrs["most"]
    if not isinstance(most, (int, str)) or (isinstance(most, int) and most < 0):
        raise Error(f"{most} boxes")
    return Type("int64", (together((most, 1)), 3))
