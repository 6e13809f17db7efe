"""Is what a candidate computes what the region means? Integers are equal; floats may differ by what
another order of sums does to them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qcompiler.autotune import region_file
from qcompiler.autotune.builder import written
from qcompiler.autotune.tasks import Choice, Task
from qcompiler.errors import Error
from qcompiler.ir import Array, Node
from qcompiler.kernels.registry import Region
from qcompiler.ops import evaluate
from qcompiler.ops.evaluate import known_value
from qcompiler.ops.work import work

CHEAP = 30_000_000
"""Operations of a region that numpy computes in about a second."""
_ROUNDED = frozenset({"Cast", "dequantize", "Add", "Sub", "Mul", "Min", "Max", "Relu", "Clip"})
"""Operators whose floats every kernel rounds alike, where their operands are."""
FLIPPED = 2
"""Weights of a row of int8 attention that may be rounded up in one kernel and down in another."""
_EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}


def difference(found: Array, meant: Array, region: Region) -> str:
    """What is wrong with an output, or nothing.

    Floats: the largest error, of the largest magnitude, grows with the square root of the length of
    the sums; transforms (Winograd's, Strassen's) double it. Integers rounded from float sums, or
    from functions such as those in attention, may be next to each other.
    """
    if found.shape != meant.shape or found.dtype != meant.dtype:
        return f"{found.dtype}{list(found.shape)} instead of {meant.dtype}{list(meant.shape)}"
    if not found.size or np.array_equal(found, meant):
        return ""
    wide, right = found.astype(np.float64), meant.astype(np.float64)
    strange = ~np.isfinite(wide) & (wide != right) & ~(np.isnan(wide) & np.isnan(right))
    if strange.any():
        return f"{int(strange.sum())} of {wide.size} values are not finite"
    error = float(np.nanmax(np.abs(wide - right)))
    most = _allowed(region, float(np.nanmax(np.abs(right))))
    return "" if error <= most else f"off by {error:.3g}, where {most:.3g} may be"


def _allowed(region: Region, largest: float) -> float:
    reads = [n.dtype for n in region.nodes] + [n.dtype for n in region.inputs]
    narrow = max((_EPS.get(d, 0.0) for d in reads), default=0.0)
    root = region.root
    if region.output.dtype not in _EPS:
        summed = root is not None and bool(root.operands) and root.operands[0].dtype in _EPS
        inexact = any(n.dtype in _EPS and n.op not in _ROUNDED for n in region.nodes)
        return (1.0 if summed or inexact else 0.0) + _flipped(region)
    length = 1 if root is None else _length(root)
    return narrow * (16 + 8 * math.sqrt(length)) * max(largest, 1e-30) + _flipped(region)


def _flipped(region: Region) -> float:
    """What weights of int8 attention that are rounded otherwise do to the output."""
    root = region.root
    if root is None or root.op != "attention" or root.operands[0].dtype != "int8":
        return 0.0
    return FLIPPED * max((_factor(n) for n in region.nodes if n.inputs[:1] == (root,)), default=1.0)


def _factor(node: Node) -> float:
    """What a reader multiplies its first operand by, at the most."""
    factor = known_value(node.operands[1]) if node.op in ("quantize", "Mul") else None
    if factor is None:
        return 1.0
    divided = node.op == "quantize" and node.int("divide")
    wide = np.abs(factor.astype(np.float64))
    return float((1 / wide if divided else wide).max())


def _length(root: Node) -> int:
    """Numbers that are added up to one of an anchor's, or more."""
    if root.op == "conv":
        return math.prod(root.operands[1].type.dims[:-1])
    widest = max((d for n in root.operands for t in n.types for d in t.dims), default=1)
    whole = max((t.size for n in root.operands for t in n.types), default=1)
    return max(widest, whole // max(root.type.size, 1), 1)


def meaning(region: Region, inputs: Mapping[str, Array]) -> Array | None:
    """What numpy makes of a region, where that takes about a second at most; else None."""
    if region.root is not None and work(region.root) > CHEAP:
        return None
    graph = region_file.graph_of(region)
    try:
        return evaluate(graph, dict(inputs))["y"]
    except Error:  # an operator whose meaning numpy does not have for such numbers
        return None


def keep(task: Task, choice: Choice, why: str, seed: int, folder: Path) -> Path:
    """A candidate that was wrong -> the files to see it again with
    `python -m qcompiler.autotune.again FILE`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise Error(f"cannot write: {e.strerror or e}", where=str(folder)) from e
    count = len(list(folder.glob("*.json")))
    path = folder / f"wrong{count}"
    region_file.save(
        task.region,
        path,
        choice=written(choice),
        default=written(task.default),
        target=task.target,
        threads=task.device.threads,
        seed=seed,
        why=why,
    )
    return path.with_suffix(".json")
