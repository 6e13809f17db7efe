"""A maker's name -> how its engine for 64-bit ARM gets a model, and the program that runs it there.

Models are converted on this machine, for LiteRT by onnx2tf, for others by the makers' own commands,
from one virtual environment:

    python -m venv TOOLS && TOOLS/bin/pip install mnn pnnx onnx2tf tensorflow-cpu tf_keras onnxsim

A program gets the model, a file of inputs, how many runs, and the precision; one thread.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.engines import Job, Settings, Unavailable
from benchmarks.engines.ort import static_int8
from benchmarks.subjects import Subject


@dataclass(frozen=True)
class Maker:
    """`convert(subject, folder, precision, tools)` -> what `program` is told to load; it raises
    Unavailable where the maker's packages offer no such thing.
    """

    convert: Callable[[Subject, Path, str, Path], Path]
    program: str


def command(tools: Path, folder: Path, name: str, *words: object) -> None:
    """Run a maker's command in a folder; raises Unavailable with what it said last."""
    told = [str(tools / "bin" / name), *map(str, words)]
    done = subprocess.run(told, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(
            f"{name} ended with {done.returncode}: {(done.stderr or done.stdout)[-300:]}"
        )


def only(precision: str, offered: Sequence[str], why: str = "") -> None:
    """Raise Unavailable for a precision that is not offered."""
    if precision not in offered:
        raise Unavailable(why or f"no {precision}")


# -- onnxruntime

_ONNXRUNTIME = """
import sys, numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feed = dict(np.load(sys.argv[2]))
for _ in range(int(sys.argv[3])):
    session.run(None, feed)
"""


def _onnxruntime(subject: Subject, folder: Path, precision: str, tools: Path) -> Path:
    """Its own static quantization: QDQ, weights per channel."""
    only(precision, ("float32", "int8"))
    if precision == "float32":
        return subject.model
    made = folder / "int8.onnx"
    return made if made.exists() else static_int8(Job(subject, folder, Settings(1)))


# -- MNN

_MNN = """
import sys, numpy as np, MNN
net = MNN.Interpreter(sys.argv[1])
precision = "low" if sys.argv[4] == "float16" else "high"
session = net.createSession({"numThread": 1, "backend": "CPU", "precision": precision})
for name, array in np.load(sys.argv[2]).items():
    kind = MNN.Halide_Type_Float if array.dtype.kind == "f" else MNN.Halide_Type_Int
    array = array if array.dtype.kind == "f" else array.astype(np.int32)
    given = MNN.Tensor(array.shape, kind, array, MNN.Tensor_DimensionType_Caffe)
    net.getSessionInput(session, name).copyFrom(given)
for _ in range(int(sys.argv[3])):
    net.runSession(session)
"""


def _mnn(subject: Subject, folder: Path, precision: str, tools: Path) -> Path:
    """A float32 model serves float16, too, which a session asks for. Its quantizer of 3.6.1 ends
    with std::length_error, whatever images it gets.
    """
    only(precision, ("float32", "float16"), "its quantizer crashes")
    made = subject.folder / "model.mnn"
    if not made.exists():
        words = ("-f", "ONNX", "--modelFile", subject.model, "--MNNModel", made, "--bizCode", "x")
        command(tools, folder, "mnnconvert", *words)
    return made


# -- ncnn

_NCNN = """
import sys, numpy as np, ncnn
net = ncnn.Net()
half = sys.argv[4] == "float16"
net.opt.num_threads = 1
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = half
net.load_param(sys.argv[1] + ".ncnn.param")
net.load_model(sys.argv[1] + ".ncnn.bin")
feed = [ncnn.Mat(array[0]).clone() for array in np.load(sys.argv[2]).values()]
for _ in range(int(sys.argv[3])):
    with net.create_extractor() as extractor:
        for name, array in zip(net.input_names(), feed, strict=True):
            extractor.input(name, array)
        status, _ = extractor.extract(net.output_names()[0])
        assert status == 0, status
"""


def _ncnn(subject: Subject, folder: Path, precision: str, tools: Path) -> Path:
    """By pnnx; what quantizes to int8 is in neither package."""
    only(precision, ("float32", "float16"), "its quantizer is in no package")
    made = subject.folder / "model"
    if not made.with_suffix(".ncnn.param").exists():
        shapes = ",".join(f"[{','.join(map(str, s))}]" for s in subject.shapes().values())
        command(tools, subject.folder, "pnnx", "model.onnx", f"inputshape={shapes}", "fp16=0")
    return made


# -- LiteRT

_LITERT = """
import sys, numpy as np
from ai_edge_litert.interpreter import Interpreter
net = Interpreter(sys.argv[1], num_threads=1)
net.allocate_tensors()
feed = dict(np.load(sys.argv[2]))
for given in net.get_input_details():
    (name,) = [n for n in feed if n in given["name"]] if len(feed) > 1 else feed
    array = feed[name]
    if tuple(given["shape"]) != array.shape:
        array = np.moveaxis(array, 1, -1)
    net.set_tensor(given["index"], array.astype(given["dtype"]))
for _ in range(int(sys.argv[3])):
    net.invoke()
"""


_IMAGES = "calibration_image_sample_data_20x128x128x3_float32.npy"


def _litert(subject: Subject, folder: Path, precision: str, tools: Path) -> Path:
    """By onnx2tf, channels last; int8 by TensorFlow's converter, weights per channel, inputs and
    outputs float. What makes its XNNPACK compute in float16 is not offered to Python.
    """
    only(precision, ("float32", "int8"))
    made = folder / f"model_{'integer_quant' if precision == 'int8' else 'float32'}.tflite"
    if made.exists():
        return made
    images = np.random.default_rng(0).random((20, 128, 128, 3), np.float32)
    np.save(folder / _IMAGES, images)  # which it would download, to compare results with
    words: list[object] = ["-i", subject.model, "-o", folder, "-n"]
    if precision == "int8":
        words.append("-oiqt")
        samples = subject.samples()
        for i, name in enumerate(samples[0]):
            path = folder / f"{i}.npy"
            rows = np.concatenate([sample[name] for sample in samples])
            np.save(path, np.moveaxis(rows, 1, -1) if rows.ndim > 2 else rows)
            words += ["-cind", name, path, "[0]", "[1]"]
    command(tools, folder, "onnx2tf", *words)
    return made


MAKERS = {
    "litert": Maker(_litert, _LITERT),
    "onnxruntime": Maker(_onnxruntime, _ONNXRUNTIME),
    "ncnn": Maker(_ncnn, _NCNN),
    "mnn": Maker(_mnn, _MNN),
}
