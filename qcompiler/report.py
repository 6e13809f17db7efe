"""A float graph, the same in few bits, their artifacts and data -> what quantization did to it.

Per layer: what it multiplies, how its error grew (both graphs are run with every product's value
as an output), how its weights and values are spread before and after, what it takes and saves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from qcompiler import driver, plugins, timing
from qcompiler.artifact import Artifact
from qcompiler.driver import Watch
from qcompiler.ir import Array, Graph, Node
from qcompiler.matching import input_at
from qcompiler.plan import plan
from qcompiler.runtime import Model, load
from qcompiler.samples import Sample
from qcompiler.search import Found
from qcompiler.stages import Choice

SAMPLES = 16
"""So many samples are looked at for errors and distributions."""
BINS = 48
_PRODUCTS = frozenset({"Attention", "Conv", "ConvTranspose", "MatMul"})
_ENERGY = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Spread:
    """Counts of the numbers of a tensor, before and after, in BINS equal bins from low to high."""

    low: float
    high: float
    before: tuple[int, ...]
    after: tuple[int, ...]

    @staticmethod
    def of(before: Array, after: Array) -> Spread:
        """Two arrays -> their histograms over the range of both."""
        low = float(min(before.min(initial=0), after.min(initial=0)))
        high = float(max(before.max(initial=0), after.max(initial=0)))
        edges = (low, high if high > low else low + 1.0)
        counts = (np.histogram(x, BINS, edges)[0] for x in (before, after))
        first, second = (tuple(int(c) for c in row) for row in counts)
        return Spread(*edges, first, second)


@dataclass(frozen=True)
class LayerReport:
    """One product. Errors are of its value in the quantized network, all errors before included:
    SQNR in decibels, cosine similarity in 0..1. Bytes are those of its weights.
    """

    name: str
    op: str
    dtype: str
    sqnr: float
    cosine: float
    float_us: float
    int8_us: float
    bytes_before: int
    bytes_after: int
    weights: Spread | None
    values: Spread | None


@dataclass(frozen=True)
class Report:
    """All that is known of a quantized model. Times are medians in milliseconds on this machine."""

    model: str
    target: str
    threads: int
    quantization: str
    notes: Mapping[str, str]
    bytes_model: int
    bytes_float: int
    bytes_int8: int
    float_ms: float
    int8_ms: float
    layers: tuple[LayerReport, ...]
    skips: tuple[tuple[str, str, str], ...]
    energy: Mapping[str, float | str]
    """Millijoules a run of both, or why there is no number."""
    found: Found | None = field(default=None)


def examine(
    name: str,
    exact: Graph,
    coarse: Graph,
    artifact: Artifact,
    data: Sequence[Sample],
    *,
    model_bytes: int = 0,
    skips: Sequence[tuple[str, str, str]] = (),
    found: Found | None = None,
) -> Report:
    """Everything that can be measured here.

    exact, coarse: the fused float graph, and its quantized form in the open (`driver.quantized`).
    artifact: what was compiled of `coarse`. data: samples; the first SAMPLES of them are used.
    """
    device = plugins.device(artifact.manifest.isa, artifact.manifest.threads)
    floating = _artifact(exact, device.isa.name, artifact.manifest.threads)
    models = (load(floating), load(artifact))
    seconds = timing.medians(*(partial(m.run, data[0]) for m in models))
    return Report(
        model=name,
        target=artifact.manifest.isa,
        threads=artifact.manifest.threads,
        quantization=coarse.notes.get("quantization", "none"),
        notes=dict(artifact.manifest.notes),
        bytes_model=model_bytes,
        bytes_float=floating.bytes,
        bytes_int8=artifact.bytes,
        float_ms=seconds[0] * 1e3,
        int8_ms=seconds[1] * 1e3,
        layers=_layers(exact, coarse, models, data[:SAMPLES]),
        skips=tuple(dict.fromkeys(skips)),
        energy=_energy(models, data[0]),
        found=found,
    )


def _layers(
    exact: Graph, coarse: Graph, models: tuple[Model, Model], data: Sequence[Sample]
) -> tuple[LayerReport, ...]:
    before, after = _products(exact), _products(coarse)
    names = [n for n in before if n in after]
    runs = [_tapped(g, [p[n] for n in names]) for g, p in ((exact, before), (coarse, after))]
    sums = {n: np.zeros(4) for n in names}
    first: dict[str, tuple[Array, Array]] = {}
    for sample in data:
        for n, a, b in zip(names, runs[0](sample), runs[1](sample), strict=True):
            x, y = (v.astype(np.float64).ravel() for v in (a, b))
            sums[n] += (x @ x, y @ y, x @ y, np.square(x - y).sum())
            first.setdefault(n, (a, b))
    times = [timing.of_steps(m, data[0]) for m in models]
    return tuple(
        LayerReport(
            name=n,
            op=before[n].op,
            dtype=_dtype(after[n]),
            **_errors(sums[n]),
            float_us=times[0].get(n, 0.0) * 1e6,
            int8_us=times[1].get(n, 0.0) * 1e6,
            bytes_before=_weight_bytes(before[n]),
            bytes_after=_weight_bytes(after[n]),
            weights=_weights(before[n], after[n]),
            values=Spread.of(*first[n]) if n in first else None,
        )
        for n in names
    )


def _products(graph: Graph) -> dict[str, Node]:
    """Products by name, those whose name no other has."""
    found: dict[str, Node] = {}
    twice: set[str] = set()
    for node in graph.nodes:
        if node.op in _PRODUCTS and node.name:
            twice |= {node.name} & found.keys()
            found[node.name] = node
    return {n: node for n, node in found.items() if n not in twice}


def _tapped(graph: Graph, nodes: Sequence[Node]) -> Callable[[Sample], list[Array]]:
    """A graph -> a function that runs one sample on this machine and gives these nodes' values."""
    names = [f"tap{i}" for i in range(len(nodes))]
    tapped = replace(graph, outputs=tuple(nodes), output_names=tuple(names))
    model = load(_artifact(tapped, "host", 0))

    def run(sample: Sample) -> list[Array]:
        wanted = {v.name: sample[v.name] for v in model.inputs}
        made = model.run(wanted)
        return [made[n] for n in names]

    return run


def _artifact(graph: Graph, target: str, threads: int) -> Artifact:
    device = plugins.device(target, threads)
    lowered = driver.lowered(graph, Choice(), device, Watch())
    return driver.build(plan(lowered, device), Watch())


def _errors(sums: Array) -> dict[str, float]:
    """Sums of squares, of products and of squared differences -> SQNR and cosine."""
    xx, yy, xy, error = (float(v) for v in sums)
    sqnr = 10 * np.log10(xx / error) if error and xx else float("inf")
    lengths = float(np.sqrt(xx * yy))
    return {"sqnr": float(sqnr), "cosine": xy / lengths if lengths else 1.0}


def _dtype(node: Node) -> str:
    """What a product multiplies: "uint8 x int8", "float32"."""
    kinds = [_stored(i).dtype for i in node.operands[:2]]
    return kinds[0] if kinds[0] == kinds[1] else " x ".join(kinds)


def _stored(node: Node) -> Node:
    """What lies in memory behind a DequantizeLinear."""
    return node.operands[0] if node.op == "DequantizeLinear" else node


def _weight_bytes(node: Node) -> int:
    weights = _stored(node.operands[1])
    return weights.type.bytes if weights.is_constant else 0


def _weights(before: Node, after: Node) -> Spread | None:
    weights, coarse = before.operands[1], after.operands[1]
    if not weights.is_constant:
        return None
    if coarse.is_constant:
        return Spread.of(weights.array, coarse.array)
    integers, scale = coarse.operands[0], coarse.operands[1]
    if not (integers.is_constant and scale.is_constant) or "axis" not in coarse.attrs:
        return None
    zero = input_at(coarse, 2)
    shape = [1] * integers.type.rank
    if scale.array.size > 1 and scale.array.ndim == 1:
        shape[coarse.int("axis")] = -1
    elif scale.array.ndim > 1:  # groups along an axis
        return None
    whole = integers.array.astype(np.float64)
    if zero is not None and zero.is_constant:
        whole = whole - zero.array.astype(np.float64).reshape(shape)
    return Spread.of(weights.array, whole * scale.array.astype(np.float64).reshape(shape))


def _energy(models: Sequence[Model], sample: Sample) -> dict[str, float | str]:
    """Millijoules of a run by the counters of the processor's package (Intel's RAPL, which AMD's
    Linux driver serves too), where Linux shows them.
    """
    counters = sorted(_ENERGY.glob("intel-rapl:?/energy_uj")) if _ENERGY.is_dir() else []

    def read() -> int:
        return sum(int(c.read_text()) for c in counters)

    names = ("float32", "int8")
    try:
        read()
    except OSError:
        counters = []
    if not counters:
        return dict.fromkeys(names, "not available here: this machine shows no energy counters")
    found: dict[str, float | str] = {}
    for name, model in zip(names, models, strict=True):
        start, count, end = read(), 0, time.perf_counter() + 0.5
        while time.perf_counter() < end:
            model.run(sample)
            count += 1
        found[name] = (read() - start) / count / 1e3
    return found
