"""A graph and samples -> statistics of its float values, in memory that does not grow with the
number of samples.

For every value the extremes are kept and, for methods that need the whole distribution, a histogram
of fixed size whose range doubles (neighbouring bins merge exactly) when a larger value arrives.
`Statistics.range` turns these into the range to quantize, by the calibration method (histogram.py).
For the method "output", some of the columns that each product multiplies are kept too (columns.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.data.columns import Read, reads
from qcompiler.data.histogram import BINS, Floats, Histogram, best_range, divergence, squared_error
from qcompiler.errors import Error
from qcompiler.files import contents, parsed, write_text
from qcompiler.ir import SIZE, Array, Graph, Node, text
from qcompiler.ops import evaluate
from qcompiler.options import METHODS

if TYPE_CHECKING:
    from qcompiler.data.padded import Sampled

Observe = Callable[[str, Array], None]
"""Called with a value's name (from `value_names`) and its array for one sample."""
Run = Callable[[Mapping[str, Array], Observe], None]
"""Runs one sample {input name: array} and calls `observe` for every value."""

CANDIDATES = ("mse", "percentile", "minmax")
"""The methods among which "output" chooses for each tensor: each is the best one somewhere."""
_MOST = 1 << 18  # elements per value and sample that a histogram counts, evenly spaced
_FORMAT = 1


def value_names(graph: Graph) -> dict[Node, str]:
    """Every single-output node that is not a constant, or the memory of a loop, -> a unique name,
    which is the same for every run over this graph.

    This is the node's name if that is unique; else the name, or the operator, with a number.
    """
    names: dict[Node, str] = {}
    taken: set[str] = set()
    for node in graph.nodes:
        if node.is_constant or node.op == "room" or len(node.types) != 1:
            continue
        stem = node.name or node.op
        name, count = stem, 1
        while name in taken or (not node.name and count == 1):
            name, count = f"{stem}#{count}", count + 1
        taken.add(name)
        names[node] = name
    return names


def fingerprint(graph: Graph) -> str:
    """A graph -> the SHA-256 of its text and its constants, to recognize statistics of another
    graph.
    """
    body, arrays = text.write(graph)
    digest = hashlib.sha256(body.encode())
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def _some(flat: Array, turn: int) -> Array:
    """Every n-th element, n odd, so that at most `_MOST` are left; `turn` varies the first one."""
    step = -(-flat.size // _MOST) | 1
    return flat[turn % step :: step] if step > 1 else flat


@dataclass
class Channels:
    """Statistics of each channel of a value, along `axis`. All arrays are [C]."""

    axis: int
    sums: Floats = field(default_factory=lambda: np.zeros(0))
    lows: Floats = field(default_factory=lambda: np.zeros(0))
    highs: Floats = field(default_factory=lambda: np.zeros(0))
    count: int = 0

    def add(self, values: Array) -> None:
        """Take in one sample's."""
        axis = self.axis % values.ndim
        rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        lows, highs = (f(axis=1).astype(np.float64) for f in (rows.min, rows.max))
        if self.count:
            lows, highs = np.minimum(lows, self.lows), np.maximum(highs, self.highs)
        else:
            self.sums = np.zeros(len(rows))
        self.sums = self.sums + rows.sum(axis=1, dtype=np.float64)
        self.lows, self.highs = lows, highs
        self.count += rows.shape[1]

    @property
    def mean(self) -> Floats:
        """The mean of each channel."""
        return self.sums / max(self.count, 1)


@dataclass
class Summary:
    """Statistics of one value over all samples; infinities are counted, not stored."""

    samples: int = 0
    low: float = 0.0
    high: float = 0.0
    sum_low: float = 0.0
    sum_high: float = 0.0
    infinite: int = 0
    histogram: Histogram | None = None
    channels: Channels | None = None

    def add(self, values: Array) -> None:
        """Take in one sample's."""
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            finite = np.isfinite(values)
            self.infinite += int(values.size - finite.sum())
            values = values[finite]
            if not values.size:
                return
            low, high = float(values.min()), float(values.max())
        self.low = min(self.low, low) if self.samples else low
        self.high = max(self.high, high) if self.samples else high
        self.samples += 1
        self.sum_low += low
        self.sum_high += high
        if self.histogram is not None:
            self.histogram.reach(max(-low, high))
            self.histogram.add(_some(values.reshape(-1), self.samples))
        if self.channels is not None and not self.infinite:
            self.channels.add(values)


@dataclass
class Statistics:
    """Value name -> its summary, for one graph. `range` uses `method`; `percentile` is for the
    method "percentile".
    """

    graph: str = ""
    method: str = "minmax"
    percentile: float = 99.99
    values: dict[str, Summary] = field(default_factory=dict)
    axes: dict[str, int] = field(default_factory=dict)
    """Values that products read -> the axis of their channels, for per-channel statistics."""
    synthetic: bool = False
    """Whether the samples were random, by explicit request; the artifact must say so."""
    reads: dict[str, list[Read]] = field(default_factory=dict)
    """Values -> some columns for each product with constant weights that reads them (for the method
    "output"; not written to files)."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise Error(
                f"unknown calibration method {self.method!r}", hint=f"one of {', '.join(METHODS)}"
            )
        if not 50 < self.percentile <= 100:
            raise Error(f"percentile {self.percentile} is not in (50, 100]")

    def observe(self, name: str, array: Array) -> None:
        """Add a value's array for one sample. NaN raises Error, which names the value."""
        if array.dtype.kind != "f" or not array.size:
            return
        if np.isnan(array.min()):
            raise Error("not a number (NaN) during calibration", where=name, hint=_HINT)
        if name not in self.values:
            histogram = Histogram() if self.method not in ("minmax", "average") else None
            channels = Channels(self.axes[name]) if name in self.axes else None
            self.values[name] = Summary(histogram=histogram, channels=channels)
        self.values[name].add(array)
        if np.isfinite(array).all():
            for read in self.reads.get(name, ()):
                read.add(array)

    def range(self, name: str, levels: int = 256) -> tuple[float, float] | None:
        """A value's name -> (low, high) to divide into `levels` steps; None if it was never seen.

        The choice of "output" needs the consumers of a value, so "mse" is used for it here.
        """
        seen = self.values.get(name)
        if seen is None or not seen.samples:
            return None
        if seen.infinite:
            raise Error("infinite during calibration", where=name, hint=_HINT)
        if self.method == "average":
            return seen.sum_low / seen.samples, seen.sum_high / seen.samples
        if self.method == "minmax" or seen.histogram is None or not seen.histogram.edge:
            return seen.low, seen.high
        if self.method == "percentile":
            low, high = seen.histogram.quantiles((100 - self.percentile) / 200)
        else:
            loss = divergence if self.method == "entropy" else squared_error
            low, high = best_range(seen.histogram, (seen.low, seen.high), loss, levels)
        return max(low, seen.low), min(high, seen.high)

    def channels(self, name: str) -> Channels | None:
        """A value's name -> the statistics of its channels; None if there are none."""
        seen = self.values.get(name)
        return seen.channels if seen and seen.channels and seen.channels.count else None

    def write(self, path: Path) -> None:
        """Save as JSON."""
        values = {name: _summary_to_json(s) for name, s in self.values.items()}
        whole = {
            "format": _FORMAT,
            "graph": self.graph,
            "method": self.method,
            "percentile": self.percentile,
            "synthetic": self.synthetic,
            "values": values,
        }
        write_text(path, json.dumps(whole))

    @staticmethod
    def read(path: Path) -> Statistics:
        """JSON that `write` made -> the statistics. Raises Error on anything else."""
        try:
            whole = parsed(contents(path))
            if whole["format"] != _FORMAT:
                raise ValueError(f"format {whole['format']}, not {_FORMAT}")
            values = {str(k): _summary_from_json(v) for k, v in whole["values"].items()}
            axes = {name: s.channels.axis for name, s in values.items() if s.channels}
            return Statistics(
                graph=str(whole["graph"]),
                method=str(whole["method"]),
                percentile=float(whole["percentile"]),
                values=values,
                axes=axes,
                synthetic=bool(whole["synthetic"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise Error(f"not a calibration cache: {e}", where=str(path)) from e


@dataclass(frozen=True)
class Calibration:
    """What passes calibrate with: samples, and a way to run a graph on them.

    `samples` can be iterated repeatedly, with one in memory at a time. `run_by` turns a float graph
    into a function that runs one sample and reports every value (default: the numpy meaning).
    """

    samples: Iterable[Mapping[str, Array]]
    run_by: Callable[[Graph], Run] | None = None
    method: str = "minmax"
    percentile: float = 99.99
    synthetic: bool = False
    progress: Callable[[int], None] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    """Notes about the samples, for graphs that are calibrated with them."""
    known: list[Statistics] = field(default_factory=list)
    """Statistics so far, whichever pass needed them: graphs of one fingerprint share them."""
    sampled: Sampled | None = None
    """How samples of any sizes are those of a graph of the largest ones; None if all have one."""

    def runner(self, graph: Graph) -> Run:
        """Float graph -> a function that runs one sample through it."""
        return _numpy_run(graph) if self.run_by is None else self.run_by(graph)

    def statistics(self, graph: Graph, method: str = "", percentile: float = 0.0) -> Statistics:
        """Float graph -> the statistics of its values; `method` and `percentile` override."""
        asked = (method or self.method, percentile or self.percentile)
        run, mark = self.runner(graph), fingerprint(graph) if self.known else ""
        for found in self.known:
            if (found.graph, found.method, found.percentile) == (mark, *asked):
                return replace(found, synthetic=self.synthetic)
        found = calibrate(
            graph,
            self.samples,
            method=asked[0],
            percentile=asked[1],
            run=run,
            progress=self.progress,
        )
        self.known.append(found)
        return replace(found, synthetic=self.synthetic)


_HINT = "look at the calibration data, or keep the node in float with --exclude"


def calibrate(
    graph: Graph,
    samples: Iterable[Mapping[str, Array]],
    *,
    method: str = "minmax",
    percentile: float = 99.99,
    run: Run | None = None,
    progress: Callable[[int], None] | None = None,
    resume: Statistics | None = None,
) -> Statistics:
    """Run samples {input name: array} through a graph -> statistics of every float value in it.

    `run` replaces the numpy meaning, for example by a compiled float model that passes its
    activations to `observe` under the names of `value_names(graph)`. `progress` is called with the
    number of samples done. `resume` continues from earlier statistics of the same graph. Memory:
    one sample's live activations, and one histogram per value.
    """
    mark = fingerprint(graph)
    if resume is not None and resume.graph != mark:
        raise Error("these statistics are of another graph", hint="calibrate anew")
    statistics = resume or Statistics(mark, method, percentile, axes=_channel_axes(graph))
    if statistics.method == "output" and resume is None:
        names = value_names(graph)
        statistics.reads = {names[n]: found for n, found in reads(graph).items() if n in names}
    execute = run or _numpy_run(graph)
    done = 0
    for done, sample in enumerate(samples, 1):
        _check_sample(graph, sample, done)
        execute(sample, statistics.observe)
        if progress is not None:
            progress(done)
    if not done and resume is None:
        raise Error(
            "no calibration samples", hint="give --calibration data, or --precision int8-dynamic"
        )
    return statistics


def _channel_axes(graph: Graph) -> dict[str, int]:
    """Inputs of products -> the axis they sum over, unless two products sum over different axes."""
    names = value_names(graph)
    reads = {"Conv": 1, "ConvTranspose": 1, "MatMul": -1}
    axes: dict[Node, dict[int, int]] = {}
    for product in (n for n in graph.nodes if n.op in reads):
        read = product.operands[0]
        if read in names and read.shape:
            axis = reads[product.op]
            axes.setdefault(read, {})[axis % read.type.rank] = axis
    return {names[n]: found.popitem()[1] for n, found in axes.items() if len(found) == 1}


def _numpy_run(graph: Graph) -> Run:
    names = value_names(graph)

    def run(sample: Mapping[str, Array], observe: Observe) -> None:
        def told(node: Node, array: Array) -> None:
            if node in names:
                observe(names[node], array)

        evaluate(graph, sample, told)

    return run


def _check_sample(graph: Graph, sample: Mapping[str, Array], number: int) -> None:
    """Raise Error unless every input is present and finite."""
    where = f"calibration sample {number}"
    for node in graph.inputs:
        if node.name.startswith(SIZE):
            continue
        if node.name not in sample:
            raise Error(f"input {node.name!r} is missing", where=where)
        array = np.asarray(sample[node.name])
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Error(f"input {node.name!r} holds NaN or infinity", where=where)


# ------------------------------------------------------------------------------------------ JSON

Json = dict[str, object]
_BY_CHANNEL = ("sums", "lows", "highs")


def _summary_to_json(summary: Summary) -> Json:
    made: Json = {
        key: getattr(summary, key)
        for key in ("samples", "low", "high", "sum_low", "sum_high", "infinite")
    }
    if summary.histogram is not None:
        used = np.flatnonzero(summary.histogram.counts)
        first, last = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        made["edge"] = summary.histogram.edge
        made["first_bin"] = first
        made["counts"] = summary.histogram.counts[first:last].tolist()
    if summary.channels is not None:
        kept = asdict(summary.channels)
        made["channels"] = {k: v.tolist() if k in _BY_CHANNEL else v for k, v in kept.items()}
    return made


def _summary_from_json(given: Mapping[str, object]) -> Summary:
    def number(key: str) -> float:
        value = given[key]
        if not isinstance(value, (int, float)):
            raise ValueError(f"{key} is not a number")
        return float(value)

    histogram = None
    if "edge" in given:
        counts = np.asarray(given["counts"], np.int64).reshape(-1)
        first = int(number("first_bin"))
        if first < 0 or first + counts.size > BINS or (counts < 0).any():
            raise ValueError("bins out of range")
        histogram = Histogram(number("edge"))
        histogram.counts[first : first + counts.size] = counts
    return Summary(
        samples=int(number("samples")),
        low=number("low"),
        high=number("high"),
        sum_low=number("sum_low"),
        sum_high=number("sum_high"),
        infinite=int(number("infinite")),
        histogram=histogram,
        channels=_channels_from_json(given.get("channels")),
    )


def _channels_from_json(given: object) -> Channels | None:
    if given is None:
        return None
    if not isinstance(given, dict):
        raise ValueError("channels are not an object")
    arrays = {k: np.asarray(given[k], np.float64).reshape(-1) for k in _BY_CHANNEL}
    return Channels(axis=int(given["axis"]), count=int(given["count"]), **arrays)
