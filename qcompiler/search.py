"""Model, data and how much may be lost -> the fastest artifact that keeps to it, and every trial.

Every product (convolution, matrix product) may be int8 or float. One artifact, the trial model,
holds both of every product and a switch that says whose result goes on: thousands of choices are
tried without compiling again. First all products are int8; when that loses too much, each is tried
alone (its sensitivity), and those that cost most accuracy for the least time go back to float until
the loss is within the limit. The samples that decide this are never those that judge it: what is
found is compiled, and checked on the other half of the data.

Layer-wise sensitivity as in Dong et al., "HAWQ" (ICCV 2019), here measured, not estimated from
Hessians; ranked by loss over time saved, as the greedy solution of a knapsack.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from qcompiler import driver, plugins, timing
from qcompiler.artifact import Artifact
from qcompiler.calibrate import Statistics, fingerprint
from qcompiler.driver import Made, Options, Watch
from qcompiler.errors import Error
from qcompiler.files import contents, write_text
from qcompiler.ir import Array, Graph, Node, Type, placeholder
from qcompiler.metrics import Outputs, labels_of, loss, metric, outputs_of
from qcompiler.ops import make
from qcompiler.plan import plan
from qcompiler.rewrite import PASSES, stage_of
from qcompiler.runtime import load
from qcompiler.samples import Sample, samples
from qcompiler.stages import Choice, build, choose, run_stage
from qcompiler.storage import MEASURED

log = logging.getLogger(__name__)

HEADROOM = 0.8
"""Of the allowed loss, so much may be used up while tuning: other data will differ a little."""
SENSITIVITY_SAMPLES = 32
HALVES = ("tuning", "held-out")
_LEAST_SECONDS = 1e-9
_MOST_BYTES = 4 << 30
_FLOAT = "/float"
_SWITCH = "switch/"


@dataclass(frozen=True)
class Demand:
    """How much may be lost, and on what that is measured.

    drop: points of the metric; relative: per cent of the float model's score. data: labelled
    or unlabelled samples, of any kind that calibration takes. labels: [samples, ...], a .npy file,
    or None. metric: see `metrics.metric`. state: a file that keeps what was measured, so that an
    interrupted search goes on where it stopped; it is removed at the end.
    """

    drop: float
    data: object
    relative: bool = False
    labels: object = None
    metric: str = ""
    count: int = 1000
    state: Path | None = None

    def floor(self, exact: float) -> float:
        """The least score that is good enough."""
        return exact * (1 - self.drop / 100) if self.relative else exact - self.drop


@dataclass(frozen=True)
class Trial:
    """One choice that was tried: which products stayed float, what it scored and took.

    `on` says on which half of the data ("tuning" or "held-out"), `score` in points; `seconds` is
    measured where the choice was compiled, else predicted from the products' own times.
    """

    method: str
    floats: tuple[str, ...]
    on: str
    score: float
    loss: float
    seconds: float
    measured: bool


@dataclass(frozen=True)
class Layer:
    """One product: its seconds in float and in int8, and the loss when it alone is int8."""

    name: str
    op: str
    float_seconds: float
    int8_seconds: float
    sensitivity: float = math.nan

    @property
    def saved(self) -> float:
        """Seconds that int8 saves."""
        return self.float_seconds - self.int8_seconds


@dataclass(frozen=True)
class Found:
    """The artifact that was chosen, and the way to it."""

    made: Made
    metric: str
    exact: Mapping[str, float]
    """The float model's score on each half, before anything was pruned."""
    floor: float
    layers: tuple[Layer, ...]
    trials: tuple[Trial, ...]
    chosen: Trial


def compile(
    model: str | Path | onnx.ModelProto, options: Options, demand: Demand, watch: Watch
) -> Found:
    """ONNX file or model -> the fastest artifact whose score on held-out data is at most `drop`
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
        self.device = plugins.device(options.target, options.threads)
        self.here = plugins.device("host")
        self.choice = choose(options.passes, options.disabled_passes)
        later = {n: v for n, v in self.choice.options.items() if stage_of(n) != "quantize"}
        self.after = Choice(later, self.choice.disabled)
        self.original = driver.fused(model, options, self.choice, self.device, watch)
        if driver.is_quantized(self.original):
            hint = "give the float model it was made of, or compile this one as it is"
            raise Error("the model is quantized already", where="--max-drop", hint=hint)
        self.graph = driver.pruned(self.original, options, self.choice, self.device, watch)
        self.pruned = self.graph is not self.original
        wanted = {n.name: (n.dtype, n.shape) for n in self.graph.inputs}
        self.data = list(_counted(samples(demand.data, wanted, demand.count)))
        if len(self.data) < 2:
            raise Error("one sample cannot both tune and judge", hint="give more data")
        histograms = replace(options, calibration_method="mse")  # they serve all methods
        self.graph, self.calibration = driver.calibration(self.graph, histograms, watch)
        assert self.calibration is not None, "int8 was asked for"
        self.graph = self.transformed(self.graph)
        self.statistics = self.calibration.statistics(self.graph)
        self.floating = self.made("float32", "", ())
        whole = load(self.compiled(self.original) if self.pruned else self.floating.artifact)
        self.references = {on: outputs_of(whole, self.half(on)) for on in HALVES}
        rows = len(next(iter(self.references["tuning"].values()))) // len(self.half("tuning"))
        self.labels = labels_of(demand.labels, len(self.data), rows)
        given = self.labels is not None
        self.metric, self.score = metric(demand.metric, given, self.references["tuning"])
        self.exact = {on: self.scored(self.references[on], on) for on in HALVES}
        self.floats = dict(self.exact)
        if self.pruned:
            self.floats = self.left()
        self.trials: list[Trial] = []
        self.known = _State(demand.state, self.mark())

    def compiled(self, graph: Graph) -> Artifact:
        """A float graph -> its artifact."""
        lowered = driver.lowered(graph, self.after, self.device, self.watch)
        return driver.build(plan(lowered, self.device), self.watch)

    def left(self) -> dict[str, float]:
        """What the pruned network scores in float; an Error if that is less than may be lost."""
        model = load(self.floating.artifact)
        scores = {on: self.scored(outputs_of(model, self.half(on)), on) for on in HALVES}
        floor = self.demand.floor(self.exact["held-out"])
        if scores["held-out"] < floor:
            raise Error(
                f"pruning alone leaves {scores['held-out']:.2f} of {self.exact['held-out']:.2f}, "
                f"at least {floor:.2f} was asked for",
                where="--max-drop",
                hint="prune less, give more calibration data, or `qcompiler retrain` first",
            )
        return scores

    def mark(self) -> str:
        """What measurements depend on besides the choice itself."""
        d, o = self.demand, self.options
        parts = [fingerprint(self.graph), d.metric, len(self.data), o.passes, o.disabled_passes]
        parts += [o.exclude, self.statistics.graph, self.device.isa.name, o.calibration_samples]
        parts += [(n, s.low, s.high, s.samples) for n, s in self.statistics.values.items()]
        parts += list(self.exact.values())  # what the metric says, if it is a file
        digest = hashlib.sha256(repr(parts).encode())
        for sample in self.data:
            for name in sorted(sample):
                digest.update(np.ascontiguousarray(sample[name]).tobytes())
        digest.update(b"" if self.labels is None else repr(self.labels.tolist()).encode())
        return digest.hexdigest()

    def run(self) -> Found:
        """Everything, in order."""
        best = self.best_method()
        layers = self.layers(best)
        order = [x.name for x in layers]
        count = self.fewest(best, order)
        while (found := self.judged(best.method, layers, order[:count])) is None:
            count = min(count + max(1, len(order) // 16), len(order))
        self.known.forget()
        return found

    def best_method(self) -> _Trier:
        """The trial model of the first calibration method that loses little enough with all
        products in int8; of the one that loses least, where none does.
        """
        triers = []
        for method in dict.fromkeys((self.options.calibration_method, "mse", "minmax")):
            triers.append(self.trier(method))
            if self.tried(triers[-1], (), "tuning").score >= self.aim:
                return triers[-1]
        return min(triers, key=lambda t: self.tried(t, (), "tuning").loss)

    def transformed(self, graph: Graph) -> Graph:
        """The graph after the passes that were asked for to make it easier to quantize."""
        asked = {n: v for n, v in self.choice.options.items() if stage_of(n) == "quantize"}
        usual = {n for n, p in PASSES.items() if getattr(p, "default", True)}
        only = Choice(asked, self.choice.disabled | usual | {"quantize_static"})
        return run_stage(graph, "quantize", None, only, self.device, self.calibration)

    # What one choice costs.

    def trier(self, method: str) -> _Trier:
        """The trial model of a calibration method."""
        self.say("trial model", 0, 1, method)
        statistics = replace(self.statistics, method=method)
        return _Trier(self, method, *switched(self.graph, statistics, self.quantized))

    def quantized(self, graph: Graph, statistics: Statistics, **more: object) -> Graph:
        """A graph -> the same in int8, in the open."""
        given = {"exclude": tuple(self.options.exclude)}
        asked = self.choice.options.get("quantize_static", {})
        options = {**given, **asked, "statistics": statistics, **more}
        return build("quantize_static", options, self.device, None, self.calibration)(graph)

    def tried(self, trier: _Trier, floats: Sequence[str], on: str, few: int = 0) -> Trial:
        """A choice -> what it scores on one half, measured once."""

        def measure() -> tuple[float, float]:
            outputs = trier.outputs(floats, self.half(on, few))
            if few:
                return math.nan, loss(outputs, {n: v[: len(outputs[n])] for n, v in exact.items()})
            return self.scored(outputs, on), loss(outputs, exact)

        exact = self.references[on]
        method = trier.method
        key = json.dumps([method, sorted(floats), on, few])
        score, lost = self.known.get(key, measure)
        trial = Trial(method, tuple(floats), on, score, lost, math.nan, False)
        if not few and trial.floats not in {t.floats for t in self.trials if t.method == method}:
            self.trials.append(trial)
        return trial

    def half(self, on: str, few: int = 0) -> list[Sample]:
        """Every other sample."""
        found = self.data[on == "held-out" :: 2]
        return found[:few] if few else found

    def labels_on(self, on: str) -> Array | None:
        """The labels of a half's rows, in order."""
        if self.labels is None:
            return None
        found: Array = np.concatenate(list(self.labels[on == "held-out" :: 2]))
        return found

    def scored(self, outputs: Outputs, on: str) -> float:
        """Outputs of a half -> points, a finite number."""
        with np.errstate(all="ignore"):
            points = self.score(outputs, self.references[on], self.labels_on(on))
        if not math.isfinite(points):
            raise Error(f"the score of the {on} samples is {points}", where=self.metric)
        return points

    @property
    def aim(self) -> float:
        """The score to reach while tuning."""
        exact = self.exact["tuning"]
        return exact - HEADROOM * (exact - self.demand.floor(exact))

    # Which products go back to float.

    def layers(self, trier: _Trier) -> tuple[Layer, ...]:
        """Every product, those that lose most for the least time first."""
        quantized = self.made("int8", trier.method, ())
        slow, fast = (
            timing.of_steps(load(m.artifact), self.data[0]) for m in (self.floating, quantized)
        )
        made = []
        everything = frozenset(trier.units)
        for i, (name, op) in enumerate(trier.units.items()):
            self.say("sensitivity", i, len(trier.units), name)
            others = sorted(everything - {name})
            alone = self.tried(trier, others, "tuning", SENSITIVITY_SAMPLES)
            made.append(Layer(name, op, slow.get(name, 0.0), fast.get(name, 0.0), alone.loss))
        return tuple(sorted(made, key=lambda x: -x.sensitivity / max(x.saved, _LEAST_SECONDS)))

    def fewest(self, trier: _Trier, order: Sequence[str]) -> int:
        """How many of them must be float for the tuning half, by bisection."""
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            self.say("search", len(self.trials), 0, f"{middle} of {len(order)} products in float")
            if self.tried(trier, order[:middle], "tuning").score >= self.aim:
                high = middle
            else:
                low = middle + 1
        return low

    def judged(self, method: str, layers: tuple[Layer, ...], floats: Sequence[str]) -> Found | None:
        """A choice, compiled -> what was found, if held-out data agree; all float always does."""
        floor = self.demand.floor(self.exact["held-out"])
        made = self.made("int8", method, floats)
        data = self.half("held-out")
        model, exact = load(made.artifact), load(self.floating.artifact)
        seconds, plain = timing.medians(lambda: model.run(data[0]), lambda: exact.run(data[0]))
        outputs = outputs_of(model, data)
        score, lost = self.scored(outputs, "held-out"), loss(outputs, self.references["held-out"])
        chosen = measured = Trial(method, tuple(floats), "held-out", score, lost, seconds, True)
        self.trials.append(chosen)
        if seconds > plain or (score < floor and len(floats) == len(layers)):
            made, best = self.floating, self.floats["held-out"]
            chosen = Trial("float32", (), "held-out", best, 0.0, plain, True)
            self.trials.append(chosen)
        elif score < floor:
            return None
        return Found(
            made=made,
            metric=self.metric,
            exact=self.exact,
            floor=floor,
            layers=layers,
            trials=tuple(_predicted(t, measured, layers) for t in self.trials),
            chosen=chosen,
        )

    def made(self, precision: str, method: str, floats: Sequence[str]) -> Made:
        """A choice, compiled for the device."""
        graph = self.graph
        if precision == "int8":
            statistics = replace(self.statistics, method=method)
            keep = (*self.options.exclude, *map(re.escape, floats))
            graph = self.quantized(graph, statistics, exclude=keep)
            graph = graph.note(kept_in_float=str(len(floats)))
        lowered = driver.lowered(graph, self.after, self.device, self.watch)
        made = plan(lowered, self.device)
        artifact = driver.build(made, self.watch)
        return Made(self.original, self.graph, graph, made, artifact)

    def say(self, what: str, done: int, count: int, item: str) -> None:
        """Tell whoever waits."""
        if self.watch.progress is not None:
            self.watch.progress(what, done, count, item)


def _predicted(trial: Trial, measured: Trial, layers: Sequence[Layer]) -> Trial:
    """A trial that was not timed, with the time that its layers' own times make likely."""
    if trial.measured:
        return trial

    def products(floats: Sequence[str]) -> float:
        return sum(x.float_seconds if x.name in floats else x.int8_seconds for x in layers)

    own = products(trial.floats)
    likely = measured.seconds + own - products(measured.floats)
    return replace(trial, seconds=max(likely, own))


class _Trier:
    """The trial model: every product twice, and switches."""

    def __init__(
        self, search: _Search, method: str, graph: Graph, units: Mapping[str, str]
    ) -> None:
        self.method, self.units = method, units
        lowered = driver.lowered(graph, search.after, search.here, Watch())
        self.model = load(driver.build(plan(lowered, search.here), Watch()))

    def outputs(self, floats: Sequence[str], data: Sequence[Sample]) -> Outputs:
        """Samples -> outputs, with these products in float."""
        kept = frozenset(floats)
        switches = {_SWITCH + u: np.array(u not in kept) for u in self.units}
        return outputs_of(self.model, [{**sample, **switches} for sample in data])


def switched(
    graph: Graph, statistics: Statistics, quantize: Callable[..., Graph]
) -> tuple[Graph, dict[str, str]]:
    """A float graph -> one with every product that int8 is possible for twice, in int8 and float,
    the boolean inputs `switch/NAME` choosing; and {product: its operator}.
    """
    units = _units(graph, quantize(graph, statistics))
    new: dict[Node, Node] = {}
    switches: list[Node] = []
    integer: list[str] = []
    for node in graph.nodes:
        moved = node.with_inputs(None if i is None else new[i] for i in node.inputs)
        if node.name in units and node.op == units[node.name]:
            switch = placeholder(_SWITCH + node.name, Type("bool", ()))
            switches.append(switch)
            integer.append(f"{node.name}/int8")
            int8, exact = (replace(moved, name=f"{node.name}{x}") for x in ("/int8", _FLOAT))
            moved = make("Where", switch, int8, exact, name=node.name)
        new[node] = moved
    inputs = (*(new[i] for i in graph.inputs), *switches)
    doubled = replace(graph, inputs=inputs, outputs=tuple(new[o] for o in graph.outputs))
    known = replace(statistics, graph=fingerprint(doubled))
    chosen = "|".join(map(re.escape, integer)) or "(?!)"
    return quantize(doubled, known, include=(f"(?:{chosen})",), exclude=()), units


def _units(graph: Graph, quantized: Graph) -> dict[str, str]:
    """The products that quantization made integer, by name: no other product may have it."""
    count = Counter(n.name for n in graph.nodes if n.op in MEASURED)
    return {
        n.name: n.op
        for n in quantized.nodes
        if n.op in MEASURED
        and n.name
        and count[n.name] == 1
        and n.operands[0].op == "DequantizeLinear"
    }


class _State:
    """Measurements, kept in a file after each, so that none is made twice."""

    def __init__(self, path: Path | None, mark: str) -> None:
        self.path, self.mark = path, mark
        self.values: dict[str, tuple[float, float]] = {}
        if path is not None and path.exists():
            self.values = self.read(path)
            log.info("%s: goes on after %d measurements", path, len(self.values))

    def read(self, path: Path) -> dict[str, tuple[float, float]]:
        """A file's measurements; none if they are of another model, data or options."""
        try:
            whole = json.loads(contents(path))
            if whole["mark"] != self.mark:
                return {}
            return {str(k): (float(a), float(b)) for k, (a, b) in whole["values"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            hint = "remove it to search anew"
            raise Error(f"not the state of a search ({e})", where=str(path), hint=hint) from e

    def get(self, key: str, measure: Callable[[], tuple[float, float]]) -> tuple[float, float]:
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
