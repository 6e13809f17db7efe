"""Model, data and how much may be lost -> the fastest artifact that keeps to it, and every trial.

Every product (convolution, matrix product) may be int8, bfloat16 or float32, tried from cheap to
dear. First all are int8, compiled as they would be without a search, by one calibration method
after another: the first that keeps to the limit is the answer. When none does, one artifact, the
trial model, holds every product in all forms, with switches that say whose result goes on:
thousands of choices are tried without compiling again. Each product is tried alone, with the range
of each calibration method for what it reads; where all with their best ranges are good enough, that
is the answer. Else those that disturb the outputs most for the least time go to bfloat16, where the
device multiplies that, or float32, until the loss is within the limit.

What is tuned is smooth, the divergence of outputs from the float model's: a score moves by whole
samples, and whoever tunes on it follows chance. What judges is the score on all data, by a paired
test where it is a share of rows; it says when the data is too small for the limit.

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
from qcompiler.files import contents, write_text
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
"""Products, and the calibration method for what they read."""
_MOST_BYTES = 4 << 30


@dataclass(frozen=True)
class Found:
    """The artifact that was chosen, and the way to it."""

    made: Compilation
    metric: str
    exact: float
    """The float model's score, before anything was pruned."""
    floor: float
    layers: tuple[Layer, ...]
    trials: tuple[Trial, ...]
    chosen: Trial
    unsure: str = ""
    """Why the data cannot tell whether the limit is kept, if it cannot."""


def compile(
    model: str | Path | onnx.ModelProto, options: Options, demand: Demand, watch: Watch
) -> Found:
    """ONNX file or model -> the fastest artifact whose score is at most `drop`
    below the float model's (as it was before pruning); the float model itself where nothing else
    is. Raises Error where pruning alone loses more.
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
        """A graph, quantized or not -> the compilation of it as it is."""
        return self.base.having(calibrated=self.graph, quantized=graph, agreement=None)

    def after_pruning(self) -> float:
        """What the pruned network scores in float; an Error if that is less than may be lost."""
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
        """What measurements depend on besides the choice itself."""
        d, o = self.demand, self.options
        parts = [fingerprint(self.graph), d.metric, len(self.data), o.passes, o.disabled_passes]
        parts += [o.exclude, self.statistics.graph, self.device.isa.name, o.calibration_samples]
        parts += [(n, s.low, s.high, s.samples) for n, s in self.statistics.values.items()]
        parts += [self.exact]  # what the metric says, if it is a file
        digest = hashlib.sha256(repr(parts).encode())
        for sample in self.data:
            for name in sorted(sample):
                digest.update(np.ascontiguousarray(sample[name]).tobytes())
        digest.update(b"" if self.labels is None else repr(self.labels.tolist()).encode())
        return digest.hexdigest()

    def run(self) -> Found:
        """Everything, in order."""
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
        """A mixture, compiled and judged on all data."""
        made = self.made("int8", method, mixture)
        outputs = outputs_of(load(made.artifact), self.data)
        trial = self.note(method, mixture, outputs)
        return _Attempt(made, trial.loss, self.passes(outputs))

    def note(self, method: str, mixture: Mixture, outputs: Outputs) -> Trial:
        """Keep what a choice gave."""
        lost = divergence(outputs, self.reference)
        made = untimed(method, mixture, self.scored(outputs), lost)
        self.trials.append(made)
        return made

    def passes(self, outputs: Outputs) -> bool:
        """Whether the loss of outputs is within the limit."""
        before = right(self.metric, self.reference, self.reference, self.labels)
        after = right(self.metric, outputs, self.reference, self.labels)
        if before is None or after is None:
            return self.scored(outputs) >= self.floor
        verdict = paired(before, after, self.exact - self.floor)
        self.unsure = verdict.unsure
        return verdict.passed

    def transformed(self) -> Graph:
        """The graph after the passes that were asked for to make it easier to quantize."""
        rest = Choice(self.choice.options, self.choice.disabled | {"quantize_static"})
        base = self.base
        return base.having(
            choice=rest,
            float_graph=self.original,
            pruned=base.pruned,
            calibration=self.calibration,
            calibrated=base.calibrated,
        ).quantized

    # What one choice costs.

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
        )

    @cached_property
    def half_seconds(self) -> dict[str, float]:
        """The products that can be bfloat16 where the device multiplies that, and the seconds that
        they take; none elsewhere, for there they are no faster than in float32.
        """
        if not multiplies_bfloat16(self.device):
            return {}
        names = sorted({n.name for n in self.graph.nodes if n.op in MEASURED and n.name})
        made = self.made("int8", "mse", Mixture(halves=tuple(names)))
        taken, steps = made.step_seconds(self.data[0]), made.artifact.manifest.steps
        return {s.name: taken.get(s.name, 0.0) for s in steps if s.operands == "bfloat16"}

    def quantized(self, graph: Graph, statistics: Statistics, **more: object) -> Graph:
        """A graph -> the same in int8, in the open."""
        asked = self.choice.options["quantize_static"]
        options = {**asked, "statistics": statistics, **more}
        return build("quantize_static", options, self.device, None, self.calibration)(graph)

    def tried(self, trier: Trier, mixture: Mixture) -> bool:
        """Whether a choice keeps to the limit on the trial model; measured once."""

        def measure() -> tuple[float, ...]:
            outputs = trier.outputs(mixture, self.data)
            lost = divergence(outputs, self.reference)
            return self.scored(outputs), lost, float(self.passes(outputs))

        score, lost, passed = self.known.get(mixture.key(trier.method), measure)
        self.trials.append(untimed(trier.method, mixture, score, lost))
        return bool(passed)

    def alone(self, trier: Trier, name: str, kind: str, ranges: Ranges = ()) -> float:
        """The divergence when one product alone is int8 or bfloat16, and all others are float32, on
        a few samples; measured once.
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
        """Products whose int8 disturbs less by the range of another calibration method, and that
        method. What two products read has one range: the losses of both count.
        """
        usual = {n: self.alone(trier, n, "int8") for n in trier.units}
        least = sum(usual.values()) / max(1, 4 * len(usual))
        sums: dict[frozenset[str], dict[str, float]] = {}
        for i, name in enumerate(trier.units):
            self.say("ranges", i, len(trier.units), name)
            by = sums.setdefault(trier.groups[name], {})
            by[trier.method] = by.get(trier.method, 0.0) + usual[name]
            for method in trier.others(name):
                lost = usual[name]  # what hardly disturbs is not worth trying
                if lost > least:
                    lost = self.alone(trier, name, "int8", ((name, method),))
                by[method] = by.get(method, 0.0) + lost
        best = {n: sums[trier.groups[n]] for n in trier.units}
        return tuple(chosen_ranges(best, trier.method).items())

    @cached_property
    def few(self) -> tuple[list[Sample], Outputs]:
        """Some samples, and what the float model makes of them."""
        found = self.data[:: -(-len(self.data) // SENSITIVITY_SAMPLES)]
        return found, outputs_of(load(self.floating.artifact), found)

    def scored(self, outputs: Outputs) -> float:
        """Outputs of all data -> points, a finite number."""
        with np.errstate(all="ignore"):
            points = self.score(outputs, self.reference, self.labels)
        if not math.isfinite(points):
            raise Error(f"the score of the samples is {points}", where=self.metric)
        return points

    # Which products go back to float.

    def layers(self, trier: Trier, quantized: Compilation, ranges: Ranges) -> tuple[Layer, ...]:
        """Every product, those that disturb most for the least time first."""
        slow, fast = (m.step_seconds(self.data[0]) for m in (self.floating, quantized))
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
        """How many steps out of int8 it takes, by bisection on the trial model."""
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
        """A choice that keeps to the limit -> what was found; float, where that is not slower."""
        model, exact = load(made.artifact), load(self.floating.artifact)
        first = self.data[0]
        seconds, plain = timing.medians(lambda: model.run(first), lambda: exact.run(first))
        if seconds > plain:
            return self.floated(layers, plain)
        chosen = replace(self.trials[-1], seconds=seconds, measured=True)
        return self.found(made, layers, chosen)

    def floated(self, layers: tuple[Layer, ...], seconds: float = math.nan) -> Found:
        """The float model, whose loss is that of pruning alone."""
        if math.isnan(seconds):
            model = load(self.floating.artifact)
            seconds, _ = timing.medians(lambda: model.run(self.data[0]), lambda: None)
        self.unsure = ""
        chosen = Trial("float32", (), self.left, 0.0, seconds, True)
        self.trials.append(chosen)
        return self.found(self.floating, layers, chosen)

    def found(self, made: Compilation, layers: tuple[Layer, ...], chosen: Trial) -> Found:
        """The end of the search."""
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
        """A choice, compiled for the device."""
        graph = self.graph
        if precision == "int8":
            statistics = replace(self.statistics, method=method)
            asked = self.choice.options["quantize_static"]
            graph = self.quantized(graph, statistics, **mixture.options(asked))
            graph = graph.note(kept_in_float=str(len(mixture.floats)))
        return self.of(graph)

    def say(self, what: str, done: int, count: int, item: str) -> None:
        """Tell whoever waits."""
        if self.watch.progress is not None:
            self.watch.progress(what, done, count, item)


@dataclass(frozen=True)
class _Attempt:
    """A mixture that was compiled: its loss, and whether that is within the limit."""

    made: Compilation
    loss: float
    passed: bool


class _State:
    """Measurements, kept in a file after each, so that none is made twice."""

    def __init__(self, path: Path | None, mark: str) -> None:
        self.path, self.mark = path, mark
        self.values: dict[str, tuple[float, ...]] = {}
        if path is not None and path.exists():
            self.values = self.read(path)
            log.info("%s: goes on after %d measurements", path, len(self.values))

    def read(self, path: Path) -> dict[str, tuple[float, ...]]:
        """A file's measurements; none if they are of another model, data or options."""
        try:
            whole = json.loads(contents(path))
            if whole["mark"] != self.mark:
                return {}
            return {str(k): tuple(map(float, v)) for k, v in whole["values"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            hint = "remove it to search anew"
            raise Error(f"not the state of a search ({e})", where=str(path), hint=hint) from e

    def get(self, key: str, measure: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
        """What is known under a key, else measured now."""
        if key not in self.values:
            self.values[key] = measure()
            if self.path is not None:
                write_text(self.path, json.dumps({"mark": self.mark, "values": self.values}))
        return self.values[key]

    def forget(self) -> None:
        """The search is over."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _counted(data: Iterable[Sample]) -> Iterable[Sample]:
    """Samples, refused when they would not fit into memory."""
    total = 0
    for sample in data:
        total += sum(a.nbytes for a in sample.values())
        if total > _MOST_BYTES:
            hint = "--evaluation-samples"
            raise Error(f"more than {_MOST_BYTES >> 30} GB of evaluation data", hint=hint)
        yield sample
