"""Trained models and labelled data -> how many points int8 costs, beside onnxruntime's and NNCF's
static int8 with the same calibration data.

    python -m benchmarks.accuracy FOLDER
    python -m benchmarks.accuracy FOLDER --models resnet8_cifar10 --samples 500 --execute numpy
    python -m benchmarks.accuracy FOLDER --method percentile --pass 'quantize_static{weight_bits=7}'
    python -m benchmarks.accuracy FOLDER --calibrate 50,100,300 --seeds 3

FOLDER is described in labelled.py. `--execute` says what runs our graphs: `onnxruntime` runs the
QDQ form (quick), `numpy` the exact meaning of the integer operators (slow), `compiled` the
artifact. `--calibrate` takes so many samples by chance instead of all, `--seeds` times, for us and
for the others alike: a score on a few hundred samples scatters more than these methods differ.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import version_converter

from benchmarks.labelled import TASKS, Task, tasks
from benchmarks.subjects import Array, Feed
from qcompiler import ops
from qcompiler.data.calibrate import Calibration, Observe, Run, value_names
from qcompiler.driver import Compilation
from qcompiler.ir import Graph
from qcompiler.onnx_io.writer import write
from qcompiler.options import METHODS, PRECISIONS, Options
from qcompiler.stages import Choice, build, choose, run_stage

MARGIN = 0.1
"""Points that the better peer may be ahead."""

RunBatch = Callable[[Feed], Array]
"""One batch -> the first output."""


@dataclass(frozen=True)
class Result:
    """One row of the table. Scores are per cent, of `samples`; NaN: not measured.

    `peers`: others' int8. `decibels`: how much stronger the float outputs are than int8's error
    (SQNR). `agrees`: per cent of samples (rows of [N, C] outputs) with float32's largest class.
    """

    model: str
    samples: int
    float32: float
    int8: float
    peers: dict[str, float]
    decibels: float
    agrees: float
    limit: float
    seconds: float

    @property
    def drop(self) -> float:
        """Points that int8 costs."""
        return self.float32 - self.int8

    @property
    def good(self) -> bool:
        """Within the limit, and no more than `MARGIN` behind the better peer."""
        best = max(self.peers.values(), default=self.int8)
        return self.drop <= self.limit and self.int8 >= best - MARGIN


@dataclass(frozen=True)
class Settings:
    """How to quantize, what runs it, how much data. Zero samples: all there are."""

    precision: str = "int8"
    method: str = "output"
    percentile: float = 99.99
    passes: tuple[str, ...] = ()
    execute: str = "onnxruntime"
    samples: int = 0
    peers: tuple[str, ...] = ("onnxruntime", "nncf")
    calibrate: tuple[int, ...] = ()
    seeds: int = 1


def drawn(task: Task, settings: Settings) -> Iterator[Task]:
    """The task with as many calibration samples as asked for, each draw by its name."""
    if not settings.calibrate:
        yield task
    for count in settings.calibrate:
        for seed in range(settings.seeds):
            name = f"{task.name}, {count} samples, draw {seed + 1}"
            batch = min(task.batch, count)
            yield replace(task.calibrated_with(count, seed), name=name, batch=batch)


def measure(task: Task, settings: Settings) -> Result:
    """Read, fuse, calibrate, quantize and score one model."""
    started = time.perf_counter()
    model = task.model()
    graph = prepared(model, task)
    exact = outputs_of(task, settings, in_onnxruntime(write(graph)))
    lossy = outputs_of(task, settings, EXECUTE[settings.execute](quantized(graph, task, settings)))
    peers = {
        name: task.score(outputs_of(task, settings, in_onnxruntime(PEERS[name](model, task))))
        for name in settings.peers
    }
    return Result(
        task.name,
        len(exact),
        task.score(exact),
        task.score(lossy),
        peers,
        float(10 * np.log10(np.square(exact).sum() / np.square(exact - lossy).sum())),
        float(100 * np.mean(exact.argmax(-1) == lossy.argmax(-1))) if exact.ndim == 2 else np.nan,
        task.limit,
        time.perf_counter() - started,
    )


def quantized(graph: Graph, task: Task, settings: Settings) -> Graph:
    """A fused graph -> in the precision asked for; as QDQ where onnxruntime is to run it."""
    name = PRECISIONS[settings.precision][0]
    options = dict(choose(settings.passes).options.get(name, {}))
    options = {**PRECISIONS[settings.precision][1], **options}
    batches = list(task.batches(task.calibration))
    data = Calibration(batches, observing, settings.method, settings.percentile)
    if settings.execute != "onnxruntime":
        asked = {**choose(settings.passes).options, name: options}
        return run_stage(graph, "quantize", None, Choice(asked), None, data)
    for before in ("quantize_equalize", "quantize_smooth"):
        if before in choose(settings.passes).options:
            graph = build(before, choose(settings.passes).options[before], data=data)(graph)
    return build(name, options, data=data)(graph)


def prepared(model: onnx.ModelProto, task: Task) -> Graph:
    """ONNX -> graph after folding and fusing, for the task's batch."""
    feed = next(task.batches(task.calibration))
    shapes = {name: array.shape for name, array in feed.items()}
    return Compilation(model, Options(input_shapes=shapes)).float_graph


def outputs_of(task: Task, settings: Settings, run: RunBatch) -> Array:
    """Run all batches -> the first output of every sample."""
    return np.concatenate([run(feed) for feed in task.batches(task.inputs, settings.samples)])


# What runs a graph.


def session(model: onnx.ModelProto, *, optimize: bool = True) -> object:
    """A model in onnxruntime; every core, no spinning."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )


def in_onnxruntime(model: onnx.ModelProto, *, optimize: bool = True) -> RunBatch:
    """The first output of an ONNX model."""
    made = session(model, optimize=optimize)

    def run(feed: Feed) -> Array:
        result: Array = made.run(None, feed)[0]  # type: ignore[attr-defined]
        return result

    return run


def as_written(graph: Graph) -> RunBatch:
    """QuantizeLinear and DequantizeLinear just as they stand: no fusion of onnxruntime's own."""
    return in_onnxruntime(write(graph), optimize=False)


def in_numpy(graph: Graph) -> RunBatch:
    """The meaning of every operator."""

    def run(feed: Feed) -> Array:
        return ops.evaluate(graph, feed)[graph.output_names[0]]

    return run


def compiled(graph: Graph) -> RunBatch:
    """The artifact for this machine."""
    from qcompiler import plugins
    from qcompiler.runtime import load

    model = load(Compilation.of(graph, plugins.device("host")).artifact)

    def run(feed: Feed) -> Array:
        result: Array = model.run(feed)[graph.output_names[0]]
        return result

    return run


EXECUTE: dict[str, Callable[[Graph], RunBatch]] = {
    "onnxruntime": as_written,
    "numpy": in_numpy,
    "compiled": compiled,
}


def observing(graph: Graph) -> Run:
    """A float graph in onnxruntime that reports every activation."""
    names = {n: name for n, name in value_names(graph).items() if n.dtype == "float32"}
    inner = {n: name for n, name in names.items() if n.op != "input"}
    tapped = replace(
        graph, outputs=tuple(inner), output_names=tuple(f"v{i}" for i in range(len(inner)))
    )
    made = session(write(tapped))

    def run(feed: Mapping[str, Array], observe: Observe) -> None:
        for node in graph.inputs:
            if node in names:
                observe(names[node], feed[node.name])
        for name, array in zip(inner.values(), made.run(None, feed), strict=True):  # type: ignore[attr-defined]
            observe(name, array)

    return run


def static_int8(model: onnx.ModelProto, task: Task) -> onnx.ModelProto:
    """onnxruntime's own static quantization with the same calibration data."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    feeds = task.batches(task.calibration)

    class Reader:
        """What onnxruntime calls a CalibrationDataReader."""

        def get_next(self) -> Feed | None:
            """The next batch, None after the last."""
            return next(feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        source, ready, made = (Path(folder) / f"{n}.onnx" for n in ("source", "ready", "made"))
        onnx.save(recent(model), source)
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            made,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(made)


def recent(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model in at least opset 13, the first with a scale for each channel."""
    version = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return version_converter.convert_version(model, 13) if version < 13 else model


def nncf_int8(model: onnx.ModelProto, task: Task) -> onnx.ModelProto:
    """NNCF's post-training quantization with the same calibration data, its usual settings."""
    import nncf

    feeds = list(task.batches(task.calibration))
    made: onnx.ModelProto = nncf.quantize(model, nncf.Dataset(feeds), subset_size=len(feeds))
    return made


PEERS = {"onnxruntime": static_int8, "nncf": nncf_int8}


# The command.


def table(results: Sequence[Result]) -> str:
    """Results -> Markdown."""
    peers = list(dict.fromkeys(p for r in results for p in r.peers))
    heads = [
        "model",
        "samples",
        "float32",
        "int8",
        "drop",
        "limit",
        "SQNR dB",
        "agrees",
        *peers,
        "good",
        "s",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for r in results:
        drop = f"{r.drop:.2f}" if r.drop <= r.limit else f"**{r.drop:.2f}**"
        theirs = [f"{r.peers[p]:.2f}" if p in r.peers else "" for p in peers]
        scores = [f"{r.float32:.2f}", f"{r.int8:.2f}", drop, f"{r.limit}", f"{r.decibels:.1f}"]
        scores.append("" if np.isnan(r.agrees) else f"{r.agrees:.1f}")
        end = ["yes" if r.good else "**no**", f"{r.seconds:.0f}"]
        lines.append(f"| {' | '.join([r.model, str(r.samples), *scores, *theirs, *end])} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """1 if any model loses more than its limit, or is behind a peer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default="", help=", ".join(TASKS))
    parser.add_argument(
        "--precision", choices=[p for p in PRECISIONS if p != "float32"], default=Settings.precision
    )
    parser.add_argument("--method", choices=METHODS, default=Settings.method)
    parser.add_argument("--percentile", type=float, default=Settings.percentile)
    parser.add_argument("--pass", dest="passes", action="append", default=[])
    parser.add_argument("--execute", choices=EXECUTE, default=Settings.execute)
    parser.add_argument("--samples", type=int, default=0, help="score at most this many")
    parser.add_argument("--peers", default=",".join(PEERS), help="whose int8 to measure as well")
    parser.add_argument("--calibrate", default="", help="with so many samples: 50,100,300")
    parser.add_argument("--seeds", type=int, default=1, help="draws of calibration samples")
    parser.add_argument("--json", type=Path, help="also write the results here")
    given = parser.parse_args(argv)
    settings = Settings(
        precision=given.precision,
        method=given.method,
        percentile=given.percentile,
        passes=tuple(given.passes),
        execute=given.execute,
        samples=given.samples,
        peers=tuple(p for p in given.peers.split(",") if p),
        calibrate=tuple(int(n) for n in given.calibrate.split(",") if n),
        seeds=given.seeds,
    )
    names = [n for n in given.models.split(",") if n]
    wanted = (t for task in tasks(given.folder, names) for t in drawn(task, settings))
    results = [measure(task, settings) for task in wanted]
    print(table(results))
    if given.json:
        given.json.write_text(json.dumps([asdict(r) for r in results], indent=2))
    return int(not all(r.good for r in results))


if __name__ == "__main__":
    raise SystemExit(main())
