"""Lower a transposed convolution to convolutions that compute the outputs between two inputs.

ConvTranspose(x, w, b)  ->  Transpose(Slice(shuffle(conv(Transpose(x), w'), ...)) + b)

With stride s, the outputs of phase q, those at s * j + q, are a plain convolution around input j:
tap k reads input j + (q + pad - k) / s, if that is a whole number. Neighbouring phases that read
the same inputs are channels of one convolution; `shuffle` is a Concat of them, a Transpose and a
Reshape that interleave the outputs. No filter has an inserted zero, by which an input that is
infinite would make NaN of an output that it has no part in. Phases are counted from an output that
the padding cuts off where that makes fewer convolutions; a Slice then crops the first outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np
from qcompiler.passes.layout.conv import PRODUCTS, pairs

from qcompiler.ir import Array, Node
from qcompiler.ops import make
from qcompiler.ops.window import Window
from qcompiler.rewrite import ANY, CONST, OPTIONAL, Skip, op, rule
from qcompiler.rewrite.layouts import to_first, to_last
from qcompiler.rewrite.matching import const, input_at, int64s, reshape, to_dtype, transpose

MOST, LONGEST = 16, 64
"""Most convolutions that one becomes, and the longest stride; its square is the most phases."""


@dataclass(frozen=True)
class Phases:
    """Neighbouring phases of one spatial axis that read inputs j + low, j + low + step, ..., or
    none: the filter's taps of each, as many for each, in the order of the inputs they read.
    """

    low: int
    step: int
    taps: tuple[tuple[int, ...], ...]

    @property
    def high(self) -> int:
        """The last input that is read, counted from j."""
        return self.low + (len(self.taps[0]) - 1) * self.step


@dataclass(frozen=True)
class Axis:
    """One spatial axis: `inputs`, and the outputs of its phases, of which the first are cropped."""

    inputs: int
    outputs: int
    crop: int
    runs: tuple[Phases, ...]

    @property
    def stride(self) -> int:
        """Number of phases."""
        return sum(len(run.taps) for run in self.runs)

    @property
    def count(self) -> int:
        """Outputs of each phase."""
        return -(-(self.outputs + self.crop) // self.stride)

    @staticmethod
    def of(size: int, outputs: int, kernel: int, stride: int, dilation: int, pad: int) -> Axis:
        """Phases from the first output on, or from an output that its padding cuts off, where that
        makes fewer runs of them.
        """
        made = (
            Axis(size, outputs, crop, _runs(kernel, stride, dilation, pad - crop))
            for crop in (0, pad % stride)
        )
        return min(made, key=lambda axis: len(axis.runs))


def _runs(kernel: int, stride: int, dilation: int, shift: int) -> tuple[Phases, ...]:
    """The phases of outputs at s * j + q, whose tap k reads input j + (q + shift - k * d) / s."""
    step, found = dilation // gcd(dilation, stride), list[Phases]()
    for q in range(stride):
        taps = [k for k in range(kernel) if (q + shift - k * dilation) % stride == 0][::-1]
        low = (q + shift - taps[0] * dilation) // stride if taps else 0
        last = found[-1] if found else None
        if last is not None and (last.low, len(last.taps[0])) == (low, len(taps)):
            found[-1] = Phases(low, step, (*last.taps, tuple(taps)))
        else:
            found.append(Phases(low, step, (tuple(taps),)))
    return tuple(found)


@rule(op("ConvTranspose", ANY, CONST, OPTIONAL))
def layout_conv_transpose(node: Node) -> Node | Skip:
    """ConvTranspose(x, w, b) -> Transpose(Slice(shuffle(conv(Transpose(x), w'), ...)) + b)."""
    x, w, b = node.operands[0], node.operands[1], input_at(node, 2)
    if not (x.type.static and node.type.static) or x.dtype not in PRODUCTS:
        return Skip(f"there is no product for {x.type}")
    if node.str("auto_pad") not in ("NOTSET", "VALID") or node.attrs["output_shape"]:
        return Skip("the padding follows from the output's size")
    window = Window.of(node, x.shape[2:], w.shape[2:])
    if max(window.strides) > LONGEST or prod(window.strides) > LONGEST**2:
        return Skip("its strides are too long")
    begins = [p[0] for p in pairs(window)]
    axes = [
        Axis.of(*each)
        for each in zip(
            x.type.dims[2:],
            node.type.dims[2:],
            window.kernel,
            window.strides,
            window.dilations,
            begins,
            strict=True,
        )
    ]
    if prod(len(a.runs) for a in axes) > MOST:
        return Skip("its phases would become too many convolutions")
    group, rank = node.int("group"), x.type.rank
    dims = w.type.dims
    split = w.array.reshape(group, dims[0] // group, *dims[1:])  # [g, C/g, O/g, *K]
    made = _phases(node, transpose(x, to_last(rank)), split, axes, ())
    made = shuffled(made, axes)
    if b is not None:
        made = make("Add", made, to_dtype(b, made.dtype))
    return transpose(to_dtype(made, node.dtype), to_first(rank))


def _phases(
    node: Node, x: Node, w: Array, axes: Sequence[Axis], chosen: tuple[Phases, ...]
) -> Node:
    """[N, *J, g, *strides, O/g]: all phases along the axes behind those whose phases are `chosen`;
    where no tap reads an input, 0.
    """
    if len(chosen) == len(axes):
        return _conv(node, x, w, axes, chosen)
    parts, empty = list[Node](), 0
    at = 2 + len(axes) + len(chosen)
    for run in axes[len(chosen)].runs:
        if run.taps[0]:
            part = _phases(node, x, w, axes, (*chosen, run))
            parts.append(_extended(part, at, empty, 0))
            empty = 0
        elif parts:
            parts[-1] = _extended(parts[-1], at, 0, len(run.taps))
        else:
            empty = len(run.taps)
    return parts[0] if len(parts) == 1 else make("Concat", *parts, axis=at)


def _extended(x: Node, axis: int, before: int, behind: int) -> Node:
    """A value with so many zeros along an axis."""
    if not before and not behind:
        return x
    begins, ends = ([n * (a == axis) for a in range(x.type.rank)] for n in (before, behind))
    return make("Pad", x, int64s([*begins, *ends]))


def _conv(node: Node, x: Node, w: Array, axes: Sequence[Axis], chosen: tuple[Phases, ...]) -> Node:
    """The convolution that computes some phases; one axis becomes two."""
    group, each = w.shape[0], w.shape[2]
    weights = interleaved(w, chosen)
    starts, ends, befores, afters = (list[int]() for _ in range(4))
    for axis, run in zip(axes, chosen, strict=True):
        first, last = run.low, axis.count - 1 + run.high  # of what is read
        befores.append(max(-first, 0))
        afters.append(max(last - axis.inputs + 1, 0))
        starts.append(max(first, 0))
        ends.append(min(last + 1, axis.inputs))
    if any(starts) or ends != [a.inputs for a in axes]:
        x = make("Slice", x, *map(int64s, (starts, ends, range(1, 1 + len(axes)))))
    dilations = [run.step for run in chosen]
    if len(axes) == 1:
        x = reshape(x, (x.type.dims[0], 1, *x.type.dims[1:]))
        weights, befores, afters, dilations = (
            weights[None],
            [0, *befores],
            [0, *afters],
            [1, *dilations],
        )
    made = make(
        "conv",
        x,
        const(weights),
        name=node.name,
        strides=(1,) * len(befores),
        dilations=tuple(dilations),
        pads=(*befores, *afters),
        group=group,
    )
    phases = [len(run.taps) for run in chosen]
    return reshape(made, (x.type.dims[0], *(a.count for a in axes), group, *phases, each))


def interleaved(w: Array, chosen: Sequence[Phases]) -> Array:
    """w[g, C/g, O/g, *K] -> [*taps, C/g, g * phases * O/g]: group, phase, channel."""
    group, inputs, each = w.shape[:3]
    phases, taps = (
        [len(n) for n in ns] for ns in ([r.taps for r in chosen], [r.taps[0] for r in chosen])
    )
    made = np.zeros((*taps, inputs, group, *phases, each), w.dtype)
    for phase in np.ndindex(*phases):
        own = [run.taps[q] for run, q in zip(chosen, phase, strict=True)]
        taken: tuple[Any, ...] = (slice(None), slice(None), slice(None), *np.ix_(*own))
        picked = w[taken]  # [g, C/g, O/g, *taps]
        made[(*[slice(None)] * (len(taps) + 2), *phase)] = np.moveaxis(
            picked, (0, 1, 2), (-2, -3, -1)
        )
    return made.reshape(*taps, inputs, -1)


def shuffled(made: Node, axes: Sequence[Axis]) -> Node:
    """[N, *J, g, *strides, O/g] -> [N, *(J * stride), O], cropped to the outputs."""
    n = len(axes)
    batch, *counts = made.type.dims[: 1 + n]
    group, each = made.type.dims[1 + n], made.type.dims[-1]
    pairs_of_axes = [a for i in range(n) for a in (1 + i, 2 + n + i)]
    mixed = transpose(made, (0, *pairs_of_axes, 1 + n, 2 + 2 * n))
    sizes = [c * a.stride for c, a in zip(counts, axes, strict=True)]
    whole = reshape(mixed, (batch, *sizes, group * each))
    starts, ends = [a.crop for a in axes], [a.crop + a.outputs for a in axes]
    if sizes == ends and not any(starts):
        return whole
    return make("Slice", whole, int64s(starts), int64s(ends), int64s(range(1, 1 + n)))
