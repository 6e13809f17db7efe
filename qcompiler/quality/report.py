"""A float graph, its pruned and its quantized form, and data -> a report on what compiling did.

Of the network: for each of these three as an artifact, its score, how close its outputs are to the
float network's, its size and time. Of each layer: the types that it multiplies, its error (the
graphs are run with every product's value as an output), the distributions of its weights and values
before and after, its time and size before and after, and its sensitivity to pruning.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from qcompiler import plugins
from qcompiler.artifact.artifact import Artifact
from qcompiler.data.activations import tapped
from qcompiler.data.calibrate import Calibration
from qcompiler.data.columns import rows, takes
from qcompiler.data.samples import Sample
from qcompiler.driver import Compilation, here
from qcompiler.ir import Array, Graph, Node
from qcompiler.ops.kinds import MEASURED
from qcompiler.ops.registry import Numbers
from qcompiler.pruning.sparsity import Pattern, as_taps, curves
from qcompiler.quality.metrics import labels_of, metric, outputs_of
from qcompiler.quality.mixed_precision import Found
from qcompiler.quantization.reconstruct import moments
from qcompiler.rewrite.matching import input_at
from qcompiler.runtime import Model, load
from qcompiler.tune import timing

SAMPLES = 16
"""Samples used for errors and distributions."""
BINS = 48
_ENERGY = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Judge:
    """How outputs are scored: labels of the samples (as `--labels` takes them) and a metric's name;
    without labels, by agreement with the float network. held_out: score only every second sample.
    """

    labels: object = None
    metric: str = ""
    held_out: bool = False


@dataclass(frozen=True)
class Spread:
    """Histograms of a tensor's values before and after, in BINS equal bins from low to high."""

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
class Stage:
    """The network after a step of its compilation, as an artifact: its score in points (NaN: no
    metric), the SQNR in decibels and the cosine similarity of its first output with the float
    network's, its size in bytes, and the milliseconds of a run on this machine.
    """

    name: str
    score: float
    sqnr: float
    cosine: float
    bytes: int
    ms: float


@dataclass(frozen=True)
class Sensitivity:
    """The fraction of a product's output energy that is lost if it alone loses a fraction of its
    weights (each of sparsity.LEVELS), the smallest first, and the other weights are unchanged.
    """

    name: str
    lost: tuple[float, ...]


@dataclass(frozen=True)
class LayerReport:
    """One product. Its errors are those of its value in the final network, including all errors of
    earlier layers: SQNR in decibels and cosine similarity (0 to 1), compared with the float network
    after pruning; `sqnr_original` compared with the one before pruning (None if channels were
    removed). Bytes are those of its weights.
    """

    name: str
    op: str
    dtype: str
    sqnr: float
    cosine: float
    sqnr_original: float | None
    float_us: float
    int8_us: float
    bytes_before: int
    bytes_after: int
    weights: Spread | None
    values: Spread | None


@dataclass(frozen=True)
class Report:
    """Everything about a compiled model. Times are medians in milliseconds on this machine."""

    model: str
    target: str
    threads: int
    quantization: str
    notes: Mapping[str, str]
    bytes_model: int
    stages: tuple[Stage, ...]
    """The float network, the pruned one (if it was pruned), and the compiled one."""
    metric: str
    layers: tuple[LayerReport, ...]
    sensitivity: tuple[Sensitivity, ...]
    skips: tuple[tuple[str, str, str], ...]
    energy: Mapping[str, float | str]
    """Millijoules per run of the first and the last stage, or why there is no number."""
    found: Found | None = field(default=None)


def examine(
    name: str,
    made: Compilation,
    data: Sequence[Sample],
    *,
    judge: Judge | None = None,
    calibration: Calibration | None = None,
    model_bytes: int = 0,
    skips: Sequence[tuple[str, str, str]] = (),
    found: Found | None = None,
) -> Report:
    """Measure everything that the report shows.

    made: the compilation. data: samples; the first SAMPLES of them are used for layers, all are
    scored by `judge` (by default, agreement with the float network). calibration: the data to
    measure sensitivity curves on; None for no curves.
    """
    manifest = made.artifact.manifest
    (variant,) = manifest.variants
    device = plugins.device(variant.isa, variant.threads)
    label = made.quantized.notes.get("quantization", made.quantized.notes.get("weights", "none"))
    known = made.records
    artifacts = {"float32": Compilation.of(made.float_graph, device, records=known).artifact}
    if made.is_pruned and made.quantized is not made.calibrated:
        artifacts["pruned"] = Compilation.of(made.calibrated, device, records=known).artifact
    last = label if label != "none" else "pruned" if made.is_pruned else "compiled"
    artifacts[last] = made.artifact
    models = [load(a) for a in artifacts.values()]
    stages, metric = _stages(artifacts, models, data, judge)
    ends = (models[0], models[-1])
    return Report(
        model=name,
        target=variant.isa,
        threads=variant.threads,
        quantization=label,
        notes=dict(manifest.notes),
        bytes_model=model_bytes,
        stages=stages,
        metric=metric,
        layers=_layers(made, ends, data[:SAMPLES]),
        sensitivity=() if calibration is None else _sensitivity(made.float_graph, calibration),
        skips=tuple(dict.fromkeys(skips)),
        energy=_energy(ends, data[0]),
        found=found,
    )


def _stages(
    artifacts: Mapping[str, Artifact],
    models: Sequence[Model],
    data: Sequence[Sample],
    judge: Judge | None,
) -> tuple[tuple[Stage, ...], str]:
    seconds = timing.medians(*(partial(m.run, data[0]) for m in models))
    judge = judge or Judge()
    half = slice(1, None, 2) if judge.held_out and len(data) > 1 else slice(None)
    outputs = [outputs_of(m, data[half]) for m in models]
    rows = len(next(iter(outputs[0].values()))) // len(data[half])
    labels = labels_of(judge.labels, len(data), rows)
    flat = None if labels is None else np.concatenate(list(labels[half]))
    name, score = metric(judge.metric, labels is not None, outputs[0])
    made = []
    for (stage, artifact), found, taken in zip(artifacts.items(), outputs, seconds, strict=True):
        first, last = (next(iter(o.values())).astype(np.float64) for o in (outputs[0], found))
        errors = _errors(_sums(first, last))
        points = score(found, outputs[0], flat)
        made.append(Stage(stage, points, **errors, bytes=artifact.bytes, ms=taken * 1e3))
    return tuple(made), name


def _layers(
    made: Compilation, models: tuple[Model, Model], data: Sequence[Sample]
) -> tuple[LayerReport, ...]:
    graphs = [_products(g) for g in (made.float_graph, made.calibrated, made.quantized)]
    original, before, after = graphs
    names = [n for n in original if n in before and n in after]
    pairs = list(zip((made.float_graph, made.calibrated, made.quantized), graphs, strict=True))
    if not made.is_pruned:
        del pairs[0]
    compiled = here(records=made.records)
    runs = [tapped(g, [p[n] for n in names], compiled) for g, p in pairs]
    sums: dict[str, Numbers] = {n: np.zeros(4) for n in names}
    wide: dict[str, Numbers] = {n: np.zeros(4) for n in names}
    first: dict[str, tuple[Array, Array]] = {}
    for sample in data:
        found = [run(sample) for run in runs]
        for n, a, b, c in zip(names, found[0], found[-2], found[-1], strict=True):
            sums[n] = sums[n] + _sums(b, c)
            if a.shape == c.shape:
                wide[n] = wide[n] + _sums(a, c)
            first.setdefault(n, (a, c))
    times = [timing.of_steps(m, data[0]) for m in models]
    return tuple(
        LayerReport(
            name=n,
            op=original[n].op,
            dtype=_dtype(after[n]),
            **_errors(sums[n]),
            sqnr_original=_errors(wide[n])["sqnr"] if wide[n].any() else None,
            float_us=times[0].get(n, 0.0) * 1e6,
            int8_us=times[1].get(n, 0.0) * 1e6,
            bytes_before=_weight_bytes(original[n]),
            bytes_after=_weight_bytes(after[n]),
            weights=_weights(original[n], after[n]),
            values=Spread.of(*first[n]) if n in first else None,
        )
        for n in names
    )


def _sensitivity(graph: Graph, data: Calibration) -> tuple[Sensitivity, ...]:
    """Sensitivity curves of the products that can be pruned, each alone."""
    made = []
    products = [n for n in _products(graph).values() if takes(n)]
    for node, seen in moments(graph, products, data):
        w = rows(node, node.operands[1].array)
        lost = curves(node, seen.second, as_taps(node, w * w), Pattern())
        made.append(Sensitivity(node.name, tuple(float(v) for v in lost)))
    places = {n.name: i for i, n in enumerate(products)}
    return tuple(sorted(made, key=lambda s: places[s.name]))


def _sums(a: Array, b: Array) -> Numbers:
    """Two values -> the sums that SQNR and cosine are computed from."""
    x, y = (v.astype(np.float64).ravel() for v in (a, b))
    return np.array([x @ x, y @ y, x @ y, np.square(x - y).sum()])


def _products(graph: Graph) -> dict[str, Node]:
    """Products by name; only those with a unique name."""
    found: dict[str, Node] = {}
    twice: set[str] = set()
    for node in graph.nodes:
        if node.op in MEASURED and node.name:
            twice |= {node.name} & found.keys()
            found[node.name] = node
    return {n: node for n, node in found.items() if n not in twice}


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
    """The value in memory that a DequantizeLinear reads."""
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


def _energy(models: tuple[Model, Model], sample: Sample) -> dict[str, float | str]:
    """Millijoules per run, from the energy counters of the processor package (Intel's RAPL; AMD's
    Linux driver has them too), if Linux exposes them.
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
        return dict.fromkeys(names, "not available: this machine exposes no energy counters")
    found: dict[str, float | str] = {}
    for name, model in zip(names, models, strict=True):
        start, count, end = read(), 0, time.perf_counter() + 0.5
        while time.perf_counter() < end:
            model.run(sample)
            count += 1
        found[name] = (read() - start) / count / 1e3
    return found
