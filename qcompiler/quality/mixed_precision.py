"""Model, data and a limit on the loss of accuracy -> the fastest artifact within it, and all
trials.

Every product (convolution, matrix product) may be int8, bfloat16 or float32. The cheapest mixtures
are tried first. First all products are int8, compiled as without a search, with one calibration
method after another: the first result within the limit is the answer. If none is, a trial model is
compiled: one artifact that contains every product in all precisions, with switches that select
whose result is used, so that thousands of mixtures can be tried without compiling again. Each
product is tried alone in int8, with the range of each calibration method for its input; if all of
them with their best ranges are within the limit, that is the answer. Otherwise the products that
disturb the outputs most for the least time go to bfloat16, if the device multiplies it, or to
float32, until the loss is within the limit.

The tuning criterion is smooth, the divergence of the outputs from the float model's: a score
changes by whole samples, and tuning on it would follow chance. The final criterion is the score on
all data, with a paired test if it counts rows; the search reports if there is too little data for
the limit.

Layer-wise sensitivity as in Dong et al., "HAWQ" (ICCV 2019), here measured, not estimated from
Hessians; ranked by loss over time saved (see mixture.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from qcompiler import plugins
from qcompiler.data.calibrate import CANDIDATES, Statistics, fingerprint
from qcompiler.data.samples import Sample, samples
from qcompiler.driver import Compilation
from qcompiler.errors import Error
from qcompiler.files import contents, parsed, write_text
from qcompiler.ir import Graph
from qcompiler.ops.kinds import MEASURED
from qcompiler.options import Options, Watch
from qcompiler.quality.demand import Demand
from qcompiler.quality.metrics import (
    Outputs,
    divergence,
    labels_of,
    metric,
    outputs_of,
    paired,
    right,
)
from qcompiler.quality.mixture import (
    BFLOAT16,
    Layer,
    Mixture,
    Step,
    Trial,
    chosen_ranges,
    mixed,
    ordered,
    predicted,
    untimed,
)
from qcompiler.quality.trial import Trier
from qcompiler.quantization.scales import multiplies_bfloat16
from qcompiler.runtime import load
from qcompiler.stages import Choice, build
from qcompiler.tune import timing

log = logging.getLogger(__name__)

SENSITIVITY_SAMPLES = 32
Ranges = tuple[tuple[str, str], ...]
"""Products, and the calibration method for their inputs."""
_MOST_BYTES = 4 << 30


@dataclass(frozen=True)
class Found:
    """The chosen artifact, and how it was found."""

    made: Compilation
    metric: str
    exact: float
    """The float model's score, before pruning."""
    floor: float
    layers: tuple[Layer, ...]
    trials: tuple[Trial, ...]
    chosen: Trial
    unsure: str = ""
    """Why the data is too small to tell whether the loss is within the limit, if it is."""


def compile(
    model: str | Path | onnx.ModelProto, options: Options, demand: Demand, watch: Watch
) -> Found:
    """ONNX file or model -> the fastest artifact whose score is at most `drop` below that of the
    float model (before pruning); the float model itself if nothing else is. Raises Error if pruning
    alone loses more.
    """
    if options.precision != "int8":
        raise Error(f"--max-drop with {options.precision}", hint="it looks for int8 artifacts")
    if not demand.drop >= 0:
        raise Error(f"a loss of {demand.drop} points", where="--max-drop", hint="at least 0")
    return _Search(model, options, demand, watch).run()


class _Search:
    """One search, from reading the model to the artifact."""

    def __init__(
        self, model: str | Path | onnx.ModelProto, options: Options, demand: Demand, watch: Watch
    ) -> None:
        self.options, self.demand, self.watch = options, demand, watch
        self.here = plugins.device("host")
        histograms = replace(options, calibration_method="output")  # it serves all methods
        self.base = Compilation(model, histograms, watch)
        self.device, self.choice = self.base.device, self.base.choice
        self.original = self.base.float_graph
        if self.base.came_quantized:
            hint = "give the float model it was made of, or compile this one as it is"
            raise Error("the model is quantized already", where="--max-drop", hint=hint)
        self.pruned = self.base.pruned is not self.original
        wanted = {n.name: (n.dtype, n.shape) for n in self.base.pruned.inputs}
        self.data = list(_counted(samples(demand.data, wanted, demand.count)))
        if not self.data:
            raise Error("no samples to measure a loss on", where="--evaluation")
        assert self.base.calibration is not None, "int8 was asked for"
        self.calibration = self.base.calibration
        self.graph = self.transformed()
        self.statistics = self.calibration.statistics(self.graph)
        self.floating = self.made("float32", "", Mixture())
        whole = load((self.of(self.original) if self.pruned else self.floating).artifact)
        self.reference = outputs_of(whole, self.data)
        rows = len(next(iter(self.reference.values()))) // len(self.data)
        labels = labels_of(demand.labels, len(self.data), rows)
        self.labels = None if labels is None else np.concatenate(list(labels))
        self.metric, self.score = metric(demand.metric, labels is not None, self.reference)
        self.exact = self.scored(self.reference)
        self.floor = demand.floor(self.exact)
        self.unsure = ""
        self.left = self.exact
        if self.pruned:
            self.left = self.after_pruning()
        self.trials: list[Trial] = []
        self.known = _State(demand.state, self.mark())

    def of(self, graph: Graph) -> Compilation:
        """The compilation of a graph, quantized or not, as it is."""
        return self.base.having(calibrated=self.graph, quantized=graph, agreement=None)

    def after_pruning(self) -> float:
        """The float score of the pruned network; raises Error if that loses too much already."""
        score = self.scored(outputs_of(load(self.floating.artifact), self.data))
        if score < self.floor:
            raise Error(
                f"pruning alone leaves {score:.2f} of {self.exact:.2f}, "
                f"at least {self.floor:.2f} was asked for",
                where="--max-drop",
                hint="prune less, give more calibration data, or `qcompiler retrain` first",
            )
        return score

    def mark(self) -> str:
        """A digest of everything except the mixture that measurements depend on."""
        d, o = self.demand, self.options
        parts = [fingerprint(self.graph), d.metric, len(self.data), o.passes, o.disabled_passes]
        parts += [o.exclude, self.statistics.graph, self.device.isa.name, o.calibration_samples]
        parts += [(n, s.low, s.high, s.samples) for n, s in self.statistics.values.items()]
        parts += [self.exact]  # stands for the code of a metric from a file
        parts += [] if self.base.records is None else [self.base.records]
        digest = hashlib.sha256(repr(parts).encode())
        for sample in self.data:
            for name in sorted(sample):
                digest.update(np.ascontiguousarray(sample[name]).tobytes())
        digest.update(b"" if self.labels is None else repr(self.labels.tolist()).encode())
        return digest.hexdigest()

    def run(self) -> Found:
        """The whole search."""
        methods = tuple(dict.fromkeys((self.options.calibration_method, *CANDIDATES)))
        plain: list[tuple[float, str, Compilation]] = []
        for i, method in enumerate(methods):
            self.say("int8", i, len(methods), method)
            got = self.attempt(method, Mixture())
            if got.passed:
                return self.finished(got.made, ())
            plain.append((got.loss, method, got.made))
        lost, method, made = min(plain, key=lambda p: p[0])
        trier = self.trier(method)
        ranges = self.ranges(trier)
        if ranges:
            got = self.attempt(method, Mixture(ranges=ranges))
            if got.passed:
                return self.finished(got.made, ())
            if got.loss < lost:
                made = got.made
            else:
                ranges = ()
        layers = self.layers(trier, made, ranges)
        steps = ordered(layers)
        count = max(1, self.fewest(trier, steps, ranges)) if steps else 0
        while count < len(steps):
            got = self.attempt(method, mixed(steps[:count], ranges))
            if got.passed:
                return self.finished(got.made, layers)
            count += max(1, len(steps) // 16)
        return self.floated(layers)

    def attempt(self, method: str, mixture: Mixture) -> _Attempt:
        """Compile a mixture and judge it on all data."""
        made = self.made("int8", method, mixture)
        outputs = outputs_of(load(made.artifact), self.data)
        trial = self.note(method, mixture, outputs)
        return _Attempt(made, trial.loss, self.passes(outputs))

    def note(self, method: str, mixture: Mixture, outputs: Outputs) -> Trial:
        """Record the result of a mixture."""
        lost = divergence(outputs, self.reference)
        made = untimed(method, mixture, self.scored(outputs), lost)
        self.trials.append(made)
        return made

    def passes(self, outputs: Outputs) -> bool:
        """Whether the loss of these outputs is within the limit."""
        before = right(self.metric, self.reference, self.reference, self.labels)
        after = right(self.metric, outputs, self.reference, self.labels)
        if before is None or after is None:
            return self.scored(outputs) >= self.floor
        verdict = paired(before, after, self.exact - self.floor)
        self.unsure = verdict.unsure
        return verdict.passed

    def transformed(self) -> Graph:
        """The graph after the requested passes that make it easier to quantize."""
        rest = Choice(self.choice.options, self.choice.disabled | {"quantize_static"})
        base = self.base
        return base.having(
            choice=rest,
            float_graph=self.original,
            pruned=base.pruned,
            calibration=self.calibration,
            calibrated=base.calibrated,
        ).quantized

    # What a mixture loses.

    def trier(self, method: str) -> Trier:
        """The trial model of a calibration method."""
        self.say("trial model", 0, 1, method)
        statistics = replace(self.statistics, method=method)
        return Trier(
            method,
            self.graph,
            statistics,
            self.quantized,
            self.choice,
            self.here,
            self.half_seconds,
            CANDIDATES,
            self.base.records,
        )

    @cached_property
    def half_seconds(self) -> dict[str, float]:
        """The products that can be bfloat16, and the seconds that they take; empty if the device
        has no bfloat16 products, where they would be no faster than in float32.
        """
        if not multiplies_bfloat16(self.device):
            return {}
        names = sorted({n.name for n in self.graph.nodes if n.op in MEASURED and n.name})
        made = self.made("int8", "mse", Mixture(halves=tuple(names)))
        taken, (variant,) = self.step_seconds(made), made.artifact.manifest.variants
        return {s.name: taken.get(s.name, 0.0) for s in variant.steps if s.operands == "bfloat16"}

    def quantized(self, graph: Graph, statistics: Statistics, **more: object) -> Graph:
        """A graph -> the graph in int8, as explicit QDQ."""
        asked = self.choice.options["quantize_static"]
        options = {**asked, "statistics": statistics, **more}
        return build("quantize_static", options, self.device, None, self.calibration)(graph)

    def tried(self, trier: Trier, mixture: Mixture) -> bool:
        """Whether a mixture is within the limit on the trial model; measured once."""

        def measure() -> tuple[float, ...]:
            outputs = trier.outputs(mixture, self.data)
            lost = divergence(outputs, self.reference)
            return self.scored(outputs), lost, float(self.passes(outputs))

        score, lost, passed = self.known.get(mixture.key(trier.method), measure)
        self.trials.append(untimed(trier.method, mixture, score, lost))
        return bool(passed)

    def alone(self, trier: Trier, name: str, kind: str, ranges: Ranges = ()) -> float:
        """The divergence on a few samples if one product alone is int8 or bfloat16 and all others
        are float32; measured once.
        """
        few, exact = self.few
        floats = tuple(sorted(trier.units.keys() - {name}))
        halves = (name,) if kind == BFLOAT16 else ()
        mixture = Mixture(floats, halves, ranges)

        def measure() -> tuple[float, ...]:
            return (divergence(trier.outputs(mixture, few), exact),)

        key = json.dumps([trier.method, "alone", name, kind, ranges])
        return self.known.get(key, measure)[0]

    def ranges(self, trier: Trier) -> Ranges:
        """Products that lose less in int8 with the range of another calibration method, and that
        method. A value that two products read has one range: the losses of both count.
        """
        usual = {n: self.alone(trier, n, "int8") for n in trier.units}
        least = sum(usual.values()) / max(1, 4 * len(usual))
        sums: dict[frozenset[str], dict[str, float]] = {}
        for i, name in enumerate(trier.units):
            self.say("ranges", i, len(trier.units), name)
            by = sums.setdefault(trier.groups[name], {})
            by[trier.method] = by.get(trier.method, 0.0) + usual[name]
            for method in trier.others(name):
                lost = usual[name]  # small losses are not worth trying
                if lost > least:
                    lost = self.alone(trier, name, "int8", ((name, method),))
                by[method] = by.get(method, 0.0) + lost
        best = {n: sums[trier.groups[n]] for n in trier.units}
        return tuple(chosen_ranges(best, trier.method).items())

    @cached_property
    def few(self) -> tuple[list[Sample], Outputs]:
        """Some samples, and the float model's outputs for them."""
        found = self.data[:: -(-len(self.data) // SENSITIVITY_SAMPLES)]
        return found, outputs_of(load(self.floating.artifact), found)

    def scored(self, outputs: Outputs) -> float:
        """Outputs for all data -> points; raises Error if the score is not finite."""
        with np.errstate(all="ignore"):
            points = self.score(outputs, self.reference, self.labels)
        if not math.isfinite(points):
            raise Error(f"the score of the samples is {points}", where=self.metric)
        return points

    def step_seconds(self, made: Compilation) -> dict[str, float]:
        """The seconds that each step takes on this machine, by name."""
        return timing.of_steps(load(made.artifact), self.data[0])

    # Which products leave int8.

    def layers(self, trier: Trier, quantized: Compilation, ranges: Ranges) -> tuple[Layer, ...]:
        """All products, those with the largest loss for the least time first."""
        slow, fast = map(self.step_seconds, (self.floating, quantized))
        made = []
        for i, (name, op) in enumerate(trier.units.items()):
            self.say("sensitivity", i, len(trier.units), name)
            mine = tuple(r for r in ranges if r[0] == name)
            layer = Layer(name, op, slow.get(name, 0.0), fast.get(name, 0.0))
            layer = replace(layer, sensitivity=self.alone(trier, name, "int8", mine))
            if name in trier.halves:
                lost = self.alone(trier, name, BFLOAT16)
                layer = replace(layer, half_seconds=self.half_seconds[name], half_sensitivity=lost)
            made.append(layer)
        return tuple(sorted(made, key=lambda x: -x.steps()[0][0]))

    def fewest(self, trier: Trier, steps: Sequence[Step], ranges: Ranges) -> int:
        """The number of steps out of int8 that are needed, by bisection on the trial model."""
        low, high = 0, len(steps)
        while low < high:
            middle = (low + high) // 2
            self.say("search", len(self.trials), 0, f"{middle} of {len(steps)} steps out of int8")
            if self.tried(trier, mixed(steps[:middle], ranges)):
                high = middle
            else:
                low = middle + 1
        return low

    def finished(self, made: Compilation, layers: tuple[Layer, ...]) -> Found:
        """A compilation within the limit -> the result; the float model if that is faster."""
        model, exact = load(made.artifact), load(self.floating.artifact)
        first = self.data[0]
        seconds, plain = timing.medians(lambda: model.run(first), lambda: exact.run(first))
        if seconds > plain:
            return self.floated(layers, plain)
        chosen = replace(self.trials[-1], seconds=seconds, measured=True)
        return self.found(made, layers, chosen)

    def floated(self, layers: tuple[Layer, ...], seconds: float = math.nan) -> Found:
        """The float model as the result; its loss is that of pruning alone."""
        if math.isnan(seconds):
            model = load(self.floating.artifact)
            seconds, _ = timing.medians(lambda: model.run(self.data[0]), lambda: None)
        self.unsure = ""
        chosen = Trial("float32", (), self.left, 0.0, seconds, True)
        self.trials.append(chosen)
        return self.found(self.floating, layers, chosen)

    def found(self, made: Compilation, layers: tuple[Layer, ...], chosen: Trial) -> Found:
        """The result of the search."""
        self.known.forget()
        return Found(
            made=made,
            metric=self.metric,
            exact=self.exact,
            floor=self.floor,
            layers=layers,
            trials=tuple(predicted(t, chosen, layers) for t in (*self.trials[:-1], chosen)),
            chosen=chosen,
            unsure=self.unsure,
        )

    def made(self, precision: str, method: str, mixture: Mixture) -> Compilation:
        """The compilation of a mixture for the device."""
        graph = self.graph
        if precision == "int8":
            statistics = replace(self.statistics, method=method)
            asked = self.choice.options["quantize_static"]
            graph = self.quantized(graph, statistics, **mixture.options(asked))
            graph = graph.note(kept_in_float=str(len(mixture.floats)))
        return self.of(graph)

    def say(self, what: str, done: int, count: int, item: str) -> None:
        """Report progress."""
        if self.watch.progress is not None:
            self.watch.progress(what, done, count, item)


@dataclass(frozen=True)
class _Attempt:
    """A compiled mixture: its loss, and whether that is within the limit."""

    made: Compilation
    loss: float
    passed: bool


class _State:
    """Measurements, saved to a file after each, so that none is repeated."""

    def __init__(self, path: Path | None, mark: str) -> None:
        self.path, self.mark = path, mark
        self.values: dict[str, tuple[float, ...]] = {}
        if path is not None and path.exists():
            self.values = self.read(path)
            log.info("%s: goes on after %d measurements", path, len(self.values))

    def read(self, path: Path) -> dict[str, tuple[float, ...]]:
        """A file's measurements; none if they belong to another model, data or options."""
        try:
            whole = parsed(contents(path))
            if whole["mark"] != self.mark:
                return {}
            return {str(k): tuple(map(float, v)) for k, v in whole["values"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            hint = "remove it to search anew"
            raise Error(f"not the state of a search ({e})", where=str(path), hint=hint) from e

    def get(self, key: str, measure: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
        """The measurement stored under a key; measured now if there is none."""
        if key not in self.values:
            self.values[key] = measure()
            if self.path is not None:
                write_text(self.path, json.dumps({"mark": self.mark, "values": self.values}))
        return self.values[key]

    def forget(self) -> None:
        """Remove the file at the end of the search."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _counted(data: Iterable[Sample]) -> Iterable[Sample]:
    """Samples; raises Error if they would not fit into memory."""
    total = 0
    for sample in data:
        total += sum(a.nbytes for a in sample.values())
        if total > _MOST_BYTES:
            hint = "--evaluation-samples"
            raise Error(f"more than {_MOST_BYTES >> 30} GB of evaluation data", hint=hint)
        yield sample
