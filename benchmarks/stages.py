"""Networks bound by their weights (one row at a time) -> requests a second as replicas, as one
stream on all cores, and as a pipeline.

    python -m benchmarks.stages --seconds 10
    python -m benchmarks.stages model.onnx --precision int8

All setups take turns in one process. A pipeline can gain where one core's cache does not hold the
weights and the cores' caches together do: the names say how many MiB there are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import qcompiler
from benchmarks.executor import Contender, executor_of, measure, table
from benchmarks.subjects import prepare
from qcompiler.hardware import cpu


def dense(width: int, layers: int) -> onnx.ModelProto:
    """relu(x w) again and again, of one row."""
    rng, nodes, held = np.random.default_rng(0), [], []
    names = ["x", *(f"v{i}" for i in range(layers))]
    for i in range(layers):
        weights = rng.standard_normal((width, width)) / np.sqrt(width / 2)
        held.append(numpy_helper.from_array(weights.astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("MatMul", [names[i], f"w{i}"], [f"p{i}"]))
        nodes.append(helper.make_node("Relu", [f"p{i}"], [names[i + 1]]))
    return _model(nodes, held, [1, width], names[-1])


def lstm(width: int, layers: int, steps: int = 16) -> onnx.ModelProto:
    """LSTM layers of one sequence."""
    rng, nodes, held = np.random.default_rng(0), [], []
    names = ["x", *(f"v{i}" for i in range(layers))]
    for i in range(layers):
        for side in "wr":
            weights = rng.standard_normal((1, 4 * width, width)) / np.sqrt(width)
            held.append(numpy_helper.from_array(weights.astype(np.float32), f"{side}{i}"))
        inputs, outputs = [names[i], f"w{i}", f"r{i}"], [f"y{i}"]
        nodes.append(helper.make_node("LSTM", inputs, outputs, hidden_size=width))
        nodes.append(helper.make_node("Squeeze", [f"y{i}", "axis"], [names[i + 1]]))
    held.append(numpy_helper.from_array(np.array([1]), "axis"))
    return _model(nodes, held, [steps, 1, width], names[-1])


def _model(
    nodes: Sequence[onnx.NodeProto],
    held: Sequence[onnx.TensorProto],
    shape: Sequence[int],
    last: str,
) -> onnx.ModelProto:
    taken, made = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in ("x", last)
    )
    graph = helper.make_graph(list(nodes), "layers", taken, made, list(held))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


NETWORKS: Mapping[str, tuple[str, Callable[[], onnx.ModelProto]]] = {
    "dense 1.5 MiB, float32": ("float32", lambda: dense(256, 6)),
    "dense 1.5 MiB, int8": ("int8", lambda: dense(512, 6)),
    "dense 12 MiB, int8": ("int8", lambda: dense(1024, 12)),
    "lstm 1.5 MiB, float32": ("float32", lambda: lstm(128, 3)),
}


def contenders(model: onnx.ModelProto, precision: str, folder: Path) -> list[Contender]:
    """The setups of one model."""
    cores = cpu.cores()
    subject = prepare(model, folder, batch=1, sizes={}, given={})
    data = subject.samples() if precision == "int8" else None
    made = qcompiler.compile(subject.model, precision=precision, calibration=data, threads=cores)
    path = made.save(folder / "model.qc")
    feed = subject.samples()[0]
    replicas, one = {"streams": cores, "threads": 1}, {"streams": 1, "threads": cores}
    setups: list[dict[str, int]] = [replicas, one, {"pipeline": cores}]
    return [executor_of(path, feed, **setup) for setup in setups]


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    p.add_argument("models", nargs="*", type=Path, help="files instead of the built-in networks")
    p.add_argument("--precision", default="float32", help="of the files")
    p.add_argument("--seconds", type=float, default=10, help="for each setup")
    p.add_argument("--turns", type=int, default=10)
    a = p.parse_args(words)
    known = {m.stem: (a.precision, lambda m=m: onnx.load(m)) for m in a.models} or NETWORKS
    results: dict[str, list[Contender]] = {}
    with tempfile.TemporaryDirectory(prefix="stages-") as work:
        for i, (name, (precision, make)) in enumerate(known.items()):
            results[name] = contenders(make(), precision, Path(work) / str(i))
            measure(results[name], a.seconds, a.turns)
    sys.stdout.write(table(results, rates=False))


if __name__ == "__main__":
    main()
