"""What networks take on GPUs: as predicted, on any machine; and as measured, where one is at hand.

    python -m benchmarks.gpu predict --gpus l4,a100 --networks resnet50:float16,resnet50:int8
    python -m benchmarks.gpu measure --seconds 300

`measure` compiles for the GPU of this machine, compares results with the CPU's, and prints measured
beside predicted times, and those of onnxruntime where it is installed and sees the GPU. It begins
nothing new after so many seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

import qcompiler
from benchmarks.networks import NETWORKS
from qcompiler import driver, plugins
from qcompiler.emit.program import forecast
from qcompiler.errors import Error
from qcompiler.hardware.gpu import Gpu
from qcompiler.hardware.isa import family
from qcompiler.ir import Array, numpy_dtype
from qcompiler.options import Options, Watch
from qcompiler.plan.plan import Plan, Step
from qcompiler.runtime.cuda import CudaModel
from qcompiler.runtime.cuda import driver as drivers
from qcompiler.runtime.cuda.model import number_of
from qcompiler.tune.timing import medians

USUAL = "resnet50:float16,resnet50:int8,mobilenetv2:float16,bert_base:float16"
_SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "i8", "uint8": "i8"}
_BOUNDS = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1, "int8": 1e-1}
"""Of the largest output."""


@dataclass(frozen=True)
class Prediction:
    """Seconds of a network on a GPU: by the model of its kernels, and at least, by the rates of its
    data sheet; and how much of the former is launches, memory and arithmetic.
    """

    network: str
    gpu: str
    seconds: float
    least: float
    bounds: Mapping[str, float]


def options_of(model: onnx.ModelProto, precision: str, targets: str) -> Options:
    """For a batch of one."""
    shapes = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else 1 for d in dims)
    made = Options(target=targets, precision=precision, input_shapes=shapes)
    if "int8" in precision:
        made = replace(made, calibration="synthetic", calibration_samples=2)
    return made


def predictions(networks: str, gpus: str) -> Iterator[Prediction]:
    """Names of networks with precisions, of GPUs -> a prediction of each on each."""
    for word in networks.split(","):
        name, _, precision = word.partition(":")
        model = NETWORKS[name]()
        for made in driver.compilations(model, options_of(model, precision, gpus), Watch()):
            yield prediction(word, made.plan)


def prediction(network: str, plan: Plan) -> Prediction:
    """What a plan for a GPU takes."""
    device = plan.device
    if not isinstance(device, Gpu):
        raise Error(f"{device.name} is no GPU")
    bounds: dict[str, float] = {}
    least = 0.0
    for step in plan.steps:
        found = forecast(step, device)
        bounds[found.bound] = bounds.get(found.bound, 0.0) + found.seconds
        least += least_seconds(step, device)
    return Prediction(network, device.name, sum(bounds.values()), least, bounds)


def least_seconds(step: Step, device: Gpu) -> float:
    """The longer of a step's products and its bytes, at the data sheet's rates."""
    root = step.region.root
    dtype = root.operands[0].dtype if root is not None and root.operands else "float32"
    products = device.multiply_seconds(step.kernel.macs, _SHORT.get(dtype, "f32"))
    return max(products, step.bytes / device.memory_bytes_per_second)


def predict(a: argparse.Namespace) -> None:
    """Print a table, as docs/cuda.md has it."""
    print("| network | GPU | predicted ms | least ms | most of it |")
    print("|---|---|---|---|---|")
    for found in predictions(a.networks, a.gpus):
        shares = sorted(found.bounds.items(), key=lambda b: -b[1])
        told = ", ".join(f"{n} {s / found.seconds:.0%}" for n, s in shares)
        times = f"{1e3 * found.seconds:.3f} | {1e3 * found.least:.3f}"
        print(f"| {found.network} | {found.gpu} | {times} | {told} |", flush=True)


def measure(a: argparse.Namespace) -> None:
    """Check and time networks on the GPU of this machine."""
    end = time.monotonic() + a.seconds
    with tempfile.TemporaryDirectory() as folder:
        for word in a.networks.split(","):
            if time.monotonic() > end:
                print(f"{word}: no time is left")
                continue
            name, _, precision = word.partition(":")
            path = Path(folder) / f"{name}.onnx"
            onnx.save(NETWORKS[name](), path)
            print(f"{word}: {measured(path, precision, a)}", flush=True)


def measured(path: Path, precision: str, a: argparse.Namespace) -> str:
    """A network's file -> what was found, as a line."""
    options = options_of(onnx.load(str(path)), precision, a.target)
    start = time.monotonic()
    made = driver.Compilation(path, options, Watch()).artifact
    compiled = time.monotonic() - start
    (prediction_,) = predictions(f"{path.stem}:{precision}", a.target)
    loaded = qcompiler.load(made, device=a.device)
    assert isinstance(loaded, CudaModel)
    feed = inputs(loaded)
    error = _error(loaded.run(feed), feed, path, options)
    (seconds,) = medians(lambda: loaded.run(feed))
    steps = sum(loaded.profile(feed))
    peers = "".join(f", {n} {1e3 * s:.3f} ms" for n, s in _peers(path, feed).items())
    verdict = "right" if error <= _BOUNDS[precision] else "WRONG"
    return (
        f"{verdict} (error {error:.2g} of the largest output), {1e3 * seconds:.3f} ms a call with"
        f" copies, {1e3 * steps:.3f} ms in its steps, predicted {1e3 * prediction_.seconds:.3f},"
        f" least {1e3 * prediction_.least:.3f}{peers}; compiled in {compiled:.1f} s"
    )


def inputs(model: CudaModel) -> dict[str, Array]:
    """Random values of a model's inputs; integers are ones."""
    rng = np.random.default_rng(0)
    return {
        v.name: rng.standard_normal(v.shape).astype(numpy_dtype(v.dtype))
        if "float" in v.dtype
        else np.ones(v.shape, numpy_dtype(v.dtype))
        for v in model.inputs
    }


def _error(
    made: Mapping[str, Array], feed: Mapping[str, Array], path: Path, options: Options
) -> float:
    """The largest difference from the CPU's results, by the largest of them."""
    here = driver.Compilation(path, replace(options, target="host"), Watch()).artifact
    want = qcompiler.load(here).run(feed)
    return max(
        float(np.abs(np.asarray(made[n], np.float64) - v).max() / np.abs(v).max())
        for n, v in want.items()
    )


def _peers(path: Path, feed: Mapping[str, Array]) -> dict[str, float]:
    """Seconds of others that are installed and see a GPU, in float32, with copies."""
    try:
        import onnxruntime
    except ImportError:
        return {}
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return {}
    session = onnxruntime.InferenceSession(str(path), providers=["CUDAExecutionProvider"])
    (seconds,) = medians(lambda: session.run(None, dict(feed)))
    return {"onnxruntime (CUDA, float32)": seconds}


def main() -> None:
    """Predict or measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("do", choices=("predict", "measure"))
    parser.add_argument("--networks", default=USUAL, help="NAME:PRECISION, separated by commas")
    parser.add_argument("--gpus", default="t4,a100,l4,h100", help="of different architectures")
    parser.add_argument("--target", default="", help="to compile for; measure only")
    parser.add_argument("--device", default="cuda", help="the GPU to measure")
    parser.add_argument("--seconds", type=float, default=300.0, help="to measure for")
    a = parser.parse_args()
    plugins.load_all()
    if a.do == "predict":
        predict(a)
        return
    a.target = a.target or _architecture(a.device)
    measure(a)


def _architecture(device: str) -> str:
    """The target whose code fits the GPU at hand best."""
    found = drivers.Gpu(drivers.driver(), number_of(device))
    names = [i.name for i in family("cuda")]
    fitting = found.fitting(names)
    if fitting is None:
        major, minor = found.capability
        raise Error(f"no target fits a GPU of compute capability {major}.{minor}")
    return fitting


if __name__ == "__main__":
    main()
