"""How well a quantized network agrees with the float one on some samples, and its worst layer.

Outputs are measured by running the artifact. Layers are judged one by one, by the rounding of their
inputs and weights; errors inherited from earlier layers do not count. The result is one line at the
end of every calibrated compile.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from qcompiler.artifact.artifact import Artifact
from qcompiler.data.calibrate import Run, value_names
from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Node
from qcompiler.ops import meaning
from qcompiler.ops.kinds import PRODUCTS
from qcompiler.runtime import load

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]

SAMPLES = 4
POOR = 10.0
"""Decibels: the error has a tenth of the output's power, and predictions begin to change."""

CURE = (
    "try another --calibration-method, more samples, --exclude {layer}, int8-dynamic or bfloat16; "
    "--max-drop searches for the layers to keep in float"
)


@dataclass(frozen=True)
class Agreement:
    """Over some samples: the lowest signal-to-quantization-noise ratio of any output, the top-1
    agreement, and the layer with the largest loss of its own.
    """

    samples: int
    decibels: float
    top1: tuple[int, int] | None
    layer: str
    layer_decibels: float

    @property
    def poor(self) -> bool:
        """Is the agreement so low that something is wrong?"""
        return self.decibels < POOR

    def __str__(self) -> str:
        line = f"SQNR {self.decibels:.1f} dB to float on {self.samples} calibration samples"
        if self.top1 is not None:
            line += f", top-1 agrees on {self.top1[0]} of {self.top1[1]}"
        if self.layer:
            line += f"; worst layer {self.layer}, {self.layer_decibels:.1f} dB by itself"
        return line

    @property
    def cure(self) -> str:
        """Advice for poor agreement."""
        return CURE.format(
            layer=f"'{self.layer}'" if self.layer else "the layers with the largest loss"
        )


def agreement(
    graph: Graph,
    run: Run,
    quantized: Graph,
    artifact: Artifact,
    samples: Iterable[Mapping[str, Array]],
) -> Agreement | None:
    """None if there is nothing to compare: no samples, or code for another machine."""
    try:
        model = load(artifact)
    except Error as e:
        log.info("int8 was not compared with float: %s", e)
        return None
    names = value_names(graph)
    outputs = {
        o: names[n]
        for o, n in zip(graph.output_names, graph.outputs, strict=True)
        if n in names and n.op != "input" and n.dtype.startswith("float")
    }
    errors = _Errors(outputs)
    worst, count = ("", math.inf), 0
    for sample in islice(samples, SAMPLES):
        seen = _seen(run, sample)
        errors.add(seen, model.run(sample))
        worst = _worst(graph, quantized, seen) if not count else worst
        count += 1
    measured = [_decibels(*p) for p in errors.powers.values() if p[0]]
    if not measured:
        return None
    top1 = (errors.same, errors.rows) if errors.rows else None
    return Agreement(count, min(measured), top1, *worst)


class _Errors:
    """Powers of outputs and their errors, and counts of top-1 agreement."""

    def __init__(self, outputs: Mapping[str, str]) -> None:
        self.outputs = outputs
        self.powers = dict.fromkeys(outputs, (0.0, 0.0))
        self.same = self.rows = 0

    def add(self, exact: Mapping[str, Array], got: Mapping[str, Array]) -> None:
        """Add one sample; `exact` is keyed by names of values."""
        for place, (output, name) in enumerate(self.outputs.items()):
            b = got[output].astype(np.float64)
            a = exact[name][tuple(map(slice, b.shape))].astype(np.float64)  # of open sizes, more
            signal, noise = self.powers[output]
            self.powers[output] = signal + np.square(a).sum(), noise + np.square(a - b).sum()
            if not place and a.ndim == 2 and a.shape[1] > 1:
                self.same += int(np.sum(a.argmax(1) == b.argmax(1)))
                self.rows += len(a)


def _seen(run: Run, sample: Mapping[str, Array]) -> dict[str, Array]:
    """Every float value computed for a sample."""
    seen: dict[str, Array] = {}
    run(sample, seen.__setitem__)
    return seen


def _decibels(signal: float, noise: float) -> float:
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else math.inf


def _worst(graph: Graph, quantized: Graph, seen: Mapping[str, Array]) -> tuple[str, float]:
    """The product that loses most by the rounding of its inputs and weights."""
    names, exact = value_names(graph), _products(graph)
    worst, least = "", math.inf
    for name, nodes in _products(quantized).items():
        if len(nodes) != len(exact.get(name, ())):
            continue
        for node, was in zip(nodes, exact[name], strict=True):
            if (value := seen.get(names.get(was, ""))) is not None:
                power = float(np.square(value.astype(np.float64)).mean())
                found = _decibels(power, _noise(node, was.operands[1], seen))
                worst, least = (name, found) if found < least else (worst, least)
    return worst, least


def _products(graph: Graph) -> dict[str, list[Node]]:
    """Products by name, in the graph's order; the parts of a split product share a name."""
    found: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op in PRODUCTS:
            found.setdefault(node.name, []).append(node)
    return found


def _noise(node: Node, exact: Node, seen: Mapping[str, Array]) -> float:
    """Mean power of a product's error, with the errors of channels taken as independent.

    The sum of E[dx^2] w^2 + E[x^2] dw^2 over the inputs of one output, averaged over outputs.
    """
    data, stored = node.operands[:2]
    pair = data.operands[0] if data.op == "DequantizeLinear" else data
    weights = node.op != "MatMul" or stored.type.rank == 2
    if pair.op != "QuantizeLinear" or stored.op != "DequantizeLinear" or not weights:
        return 0.0
    x = seen.get(pair.operands[0].name)
    if x is None or x.shape != data.shape or not all(i.is_constant for i in stored.operands):
        return 0.0
    power, error, factor = _channels(x, pair, data, x.ndim - 1 if node.op == "MatMul" else 1)
    w = _by_input(node, meaning(stored, _arrays(stored))[0])
    given = exact.array if exact.is_constant else None
    if given is not None and given.shape == stored.shape:
        dw = np.square(w - _by_input(node, given) * _spread(factor, w))
    else:
        dw = np.full(w.shape, np.square(stored.operands[1].array.astype(np.float64)).mean() / 12)
    total = np.square(w) * _spread(error, w) + dw * _spread(power, w)
    return float(total.sum()) / node.type.dims[-1 if node.op == "MatMul" else 1]


def _by_input(node: Node, weights: Array) -> Floats:
    """Weights -> [groups, inputs of a group, the rest]."""
    w = weights.astype(np.float64)
    if node.op == "MatMul":
        return w[None]
    groups = node.int("group")
    if node.op == "ConvTranspose":
        return w.reshape(groups, w.shape[0] // groups, -1)
    split = w.reshape(groups, w.shape[0] // groups, w.shape[1], -1)
    return split.swapaxes(1, 2).reshape(groups, w.shape[1], -1)


def _spread(channels: Floats, w: Floats) -> Floats:
    """Per-channel numbers, reshaped to broadcast to weights by input."""
    return channels.reshape(*w.shape[:2], 1)


def _channels(
    x: Array, quantize: Node, dequantize: Node, axis: int
) -> tuple[Floats, Floats, Floats]:
    """For each channel of an activation: the mean power as its reader sees it, that of its rounding
    error, and the factor folded into the weights.
    """
    step, worth = (n.operands[1].array.astype(np.float64) for n in (quantize, dequantize))
    whole = meaning(quantize, (x, *_arrays(quantize)[1:]))[0].astype(np.float64)
    zero, shape = quantize.operands[2].array.astype(np.float64), [1] * x.ndim
    shape[quantize.int("axis") % x.ndim] = -1
    zero, each, steps = (v.reshape(shape) if v.size > 1 else v for v in (zero, worth, step))
    exact = x.astype(np.float64) / steps * each
    error = (whole - zero) * each - exact
    others = tuple(a for a in range(x.ndim) if a != axis)
    power, noise = (np.square(v).mean(axis=others) for v in (exact, error))
    return power, noise, np.broadcast_to(step / worth, power.shape)


def _arrays(node: Node) -> tuple[Array | None, ...]:
    return tuple(i.array if i is not None and i.is_constant else None for i in node.inputs)
