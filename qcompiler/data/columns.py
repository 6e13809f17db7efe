"""A product's first operand -> the columns that it multiplies; its weights -> rows.

Every element of a product's output is a row of weights times a column of its input: a patch of an
image, or a row of a matrix. Calibration looks at some of the columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir import Array, Graph, Node
from qcompiler.ops.registry import Numbers
from qcompiler.ops.window import Window

Floats = NDArray[np.float64]

NUMBERS = 1 << 16
"""Numbers kept of one product's columns, ..."""
COLUMNS = (32, 512)
"""... but at least and at most this many columns, however long they are."""
IMAGE = 16
"""Columns taken from one image (or sequence) of a sample, whose pixels are much alike."""
EAGER = 16
"""The first samples, which are all looked at; of later ones, fewer and fewer are."""
ROWS = 32
"""Outputs of a product, evenly spaced, that represent all."""


@dataclass
class Read:
    """Some of the columns that one product multiplies, drawn evenly from all samples."""

    node: Node
    columns: NDArray[np.float32] = field(init=False)
    """[G,K,P]"""
    keys: Floats = field(default_factory=lambda: np.zeros(0))
    samples: int = 0
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        groups, depth = size_of(self.node)
        self.most = int(np.clip(NUMBERS // (groups * depth), *COLUMNS))
        self.columns = np.zeros((groups, depth, 0), np.float32)

    def add(self, x: Array) -> None:
        """Add the columns of one sample: each draws a random key; the smallest keys are kept."""
        self.samples += 1
        if self.random.random() * self.samples >= EAGER:
            return
        found = columns_of(self.node, x, IMAGE, self.random)
        weight = max(1.0, self.samples / EAGER)  # it also represents the skipped samples
        keys = np.concatenate([self.keys, self.random.random(found.shape[2]) / weight])
        kept = np.argsort(keys, kind="stable")[: self.most]
        self.columns = np.concatenate([self.columns, found], axis=2)[:, :, kept]
        self.keys = keys[kept]

    def error(self, rounded: Callable[[Numbers], Numbers]) -> float:
        """The squared error of the product's outputs if it reads rounded columns, over the
        outputs' energy; 0 if there is nothing to compare. Groups count equally, none more than 1:
        a quiet channel may matter as much to the next layer as a loud one.
        """
        w = self.some_rows()
        wrong = np.einsum("gok,gkp->gop", w, (rounded(self.columns) - self.columns).astype("f"))
        exact = np.einsum("gok,gkp->gop", w, self.columns)
        noise, power = (np.square(y, dtype=np.float64).sum(axis=(1, 2)) for y in (wrong, exact))
        seen = power > 0
        shares = noise[seen] / power[seen]
        return float(np.minimum(shares, 1).mean() if shares.size > 1 else shares.sum())

    def beyond(self, rounded: Callable[[Numbers], Numbers], step: float) -> bool:
        """Whether any column is clipped: rounding moves one of its numbers by more than a step."""
        wrong = np.abs(rounded(self.columns) - self.columns)
        return bool((wrong > step).any())

    def some_rows(self) -> NDArray[np.float32]:
        """Weights of some outputs of each group, [G,O,K].

        Products with them are too small for BLAS, whose threads would wait for each other on busy
        cores.
        """
        w = rows(self.node, self.node.operands[1].array)
        return w[:, np.unique(np.linspace(0, w.shape[1] - 1, ROWS).astype(int))].astype("f")


def reads(graph: Graph) -> dict[Node, list[Read]]:
    """Inputs of products with constant weights -> the columns to collect for each product."""
    found: dict[Node, list[Read]] = {}
    for node in graph.nodes:
        if node.op in ("Conv", "MatMul") and takes(node):
            found.setdefault(node.operands[0], []).append(Read(node))
    return found


def takes(node: Node) -> bool:
    """Whether a node is a product whose moments can be computed: with constant weights [O,C,*] or
    [K,N], and static shapes.
    """
    if not by_rows(node) or node.dtype != "float32":
        return False
    x, w = node.operands[:2]
    return w.is_constant and not x.is_constant and x.type.static and node.type.static


def by_rows(node: Node) -> bool:
    """Whether `rows` handles a node's weights."""
    return node.op == "Conv" or (node.op == "MatMul" and node.operands[1].type.rank == 2)


def size_of(node: Node) -> tuple[int, int]:
    """The number of groups of a product, and of terms in the sum of one output."""
    dims = node.operands[1].type.dims
    return (1, dims[0]) if node.op == "MatMul" else (node.int("group"), prod(dims[1:]))


def columns_of(node: Node, x: Array, most: int, random: np.random.Generator) -> NDArray[np.float32]:
    """A product's first operand -> the columns that it multiplies, [G,K,P]; at most `most` per
    image of a batch.
    """
    if node.op == "MatMul":
        flat = x.reshape(-1, x.shape[-1])
        few = most * (x.shape[0] if x.ndim > 2 else 1)
        return flat[some_of(len(flat), few, random)].astype(np.float32).T[None]
    w = node.operands[1].type.dims
    window = Window.of(node, x.shape[2:], w[2:])
    counts = tuple(int(c) for c in window.outputs(x.shape[2:]))
    padded = window.pad(np.moveaxis(x, 1, -1), counts, 0)
    places = some_of(x.shape[0] * prod(counts), most * x.shape[0], random)
    at = np.unravel_index(places, (x.shape[0], *counts))
    taps = np.stack([tap[at] for tap in window.taps(padded, counts)], -1)  # [P,C,taps]
    group = node.int("group")
    made = taps.astype(np.float32).reshape(len(taps), group, -1)
    return np.ascontiguousarray(made.transpose(1, 2, 0))


def some_of(count: int, most: int, random: np.random.Generator) -> NDArray[np.int64]:
    """At most `most` of `count` indices, drawn at random, in order."""
    if count <= most:
        return np.arange(count)
    return np.sort(random.choice(count, most, replace=False))


def rows(node: Node, weights: Array) -> Floats:
    """A product's weights -> one row per output, [G,O/G,K], in the order of its columns."""
    if node.op == "MatMul":
        return weights.T[None].astype(np.float64)
    group = node.int("group")
    return weights.reshape(group, weights.shape[0] // group, -1).astype(np.float64)


def unrows(node: Node, made: Numbers) -> Numbers:
    """The inverse of `rows`, in the dtype of the rows."""
    dims = node.operands[1].type.dims
    return np.ascontiguousarray(made[0].T) if node.op == "MatMul" else made.reshape(dims)
