"""Whole models from ONNX file to outputs, against onnxruntime."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from oracles import onnxruntime_outputs, refusals, session

import qcompiler
from benchmarks.labelled import TASKS, tasks
from qcompiler import Error
from qcompiler.demo import DATA, MODEL
from qcompiler.ir import Array
from qcompiler.onnx_io.reader import read

RTOL, ATOL = 1e-3, 1e-4
"""Of each number, and of the range (largest - smallest) of the output it is in."""

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
LARGE = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "vgg19",
    "zfnet512",
)
"""Their weights or their many kernels take too long for every run of the tests."""

Shapes = Mapping[str, tuple[int, ...]]
Feed = dict[str, Array]

REAL: dict[str, Shapes] = {
    "cifar10/resnet20_cifar10": {"input": (3, 3, 32, 32)},
    "cifar10/resnet8_cifar10": {"input": (1, 3, 32, 32)},
    "speech_commands/dscnn_kws": {"mfcc": (1, 1, 49, 10)},
    "imagenet/mobilenetv2_1.0_224": {"input": (1, 3, 224, 224)},
    "imagenet/squeezenet1.1": {"input": (1, 3, 224, 224)},
    "super_resolution/supres3x": {"input": (1, 1, 37, 50)},
    "llama260k/aidreams260k": {"ids": (1, 19)},
    "silero_vad/silero_vad_op18_ifless": {"input": (1, 576), "state": (2, 1, 128)},
    "speech_enhance/dtln_1": {},
    "speech_enhance/dtln_2": {},
    "detection/yolox_nano": {},
    "deeplab/deeplabv3_mnv2_dm05_voc": {},
    "ppocr/ch_PP-OCRv3_det_infer": {"x": (1, 3, 96, 160)},
}
"""Model -> the shapes of its open inputs."""

QUICK = ("dscnn_kws", "resnet8_cifar10", "dtln_1", "dtln_2", "silero_vad_op18_ifless")


def random_feed(model: onnx.ModelProto | Path, shapes: Shapes) -> Feed:
    """Floats as images have them after scaling, token ids and switches as small integers."""
    rng = np.random.default_rng(0)
    feed: Feed = {}
    for node in read(model, dict(shapes)).inputs:
        dims, dtype = node.type.dims, np.dtype(node.dtype)
        floats = dtype.kind == "f"
        drawn = rng.standard_normal(dims) if floats else rng.integers(0, 2, dims)
        feed[node.name] = np.asarray(drawn).astype(dtype)
    return feed


def demand_close(ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> None:
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype
        assert ours[name].shape == expected.shape
        spread = float(np.ptp(expected.astype(np.float64)))
        np.testing.assert_allclose(
            ours[name], expected, rtol=RTOL, atol=ATOL * spread, err_msg=name
        )


def cosine(a: Array, b: Array) -> float:
    x, y = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


# The network inside the package


@pytest.fixture(scope="module")
def digits() -> dict[str, Array]:
    with np.load(DATA, allow_pickle=False) as data:
        return dict(data)


def scores(digits: dict[str, Array], precision: str) -> Array:
    """The digits network, compiled -> its outputs for all test images."""
    artifact = qcompiler.compile(
        MODEL,
        precision=precision,
        calibration=[{"image": image[None]} for image in digits["calibration"]],
        input_shapes={"image": (1, 1, 8, 8)},
    )
    model = qcompiler.load(artifact)
    return np.concatenate([model(image[None]) for image in digits["test_images"]])


@pytest.fixture(scope="module")
def reference(digits: dict[str, Array]) -> Array:
    return onnxruntime_outputs(Path(MODEL), {"image": digits["test_images"]})["scores"]


def accuracy(outputs: Array, digits: dict[str, Array]) -> float:
    return float(np.mean(outputs.argmax(1) == digits["test_labels"]))


def test_the_digits_network_in_float32(digits: dict[str, Array], reference: Array) -> None:
    demand_close({"scores": scores(digits, "float32")}, {"scores": reference})


@pytest.mark.parametrize(
    ("precision", "least"),
    [("int8", 0.995), ("bfloat16", 0.9999), ("float16", 0.999999), ("int8-dynamic", 0.999)],
)
def test_the_digits_network_in_few_bits(
    precision: str, least: float, digits: dict[str, Array], reference: Array
) -> None:
    found = scores(digits, precision)
    assert accuracy(found, digits) >= accuracy(reference, digits) - 0.01
    assert cosine(found, reference) > least


def test_a_batch_is_its_images_one_by_one(digits: dict[str, Array], reference: Array) -> None:
    artifact = qcompiler.compile(MODEL, input_shapes={"image": (3, 1, 8, 8)})
    found = qcompiler.load(artifact)(digits["test_images"][:3])
    demand_close({"scores": found}, {"scores": reference[:3]})


# The graphs that ONNX ships


def light(name: str) -> onnx.ModelProto:
    """A well-known network with random weights, its scores before the Softmax an output too.

    As it is shipped every weight is the same number, so that any mistake yields the same outputs.
    """
    model = onnx.load(LIGHT / f"light_{name}.onnx")
    graph = model.graph
    rng = np.random.default_rng(0)
    shapes = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            weights = random_weights(tuple(map(int, shapes[node.input[0]])), rng)
            graph.initializer.append(numpy_helper.from_array(weights, node.output[0]))
        else:
            kept.append(node)
        if node.op_type == "Softmax":
            graph.output.append(helper.make_tensor_value_info(node.input[0], 1, None))
    del graph.node[:]
    graph.node.extend(kept)
    return model


def random_weights(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Weights that keep activations in size; vectors (biases, norms) around one, so that no
    variance is near zero."""
    if len(shape) < 2:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    fan_in = np.prod(shape[1:])
    drawn = rng.standard_normal(shape, np.float32)
    return np.asarray(drawn * np.float32(np.sqrt(2 / fan_in)))


LIGHT_NAMES = sorted(p.stem.removeprefix("light_") for p in LIGHT.glob("light_*.onnx"))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in LIGHT_NAMES],
)
def test_a_well_known_network_with_random_weights(name: str) -> None:
    model = light(name)
    feed = random_feed(model, {})
    ours = qcompiler.load(qcompiler.compile(model)).run(feed)
    demand_close(ours, onnxruntime_outputs(model, feed))
    assert any(np.ptp(v.astype(np.float64)) > 1e-3 for v in ours.values()), "nothing to see"


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT_NAMES)
def test_a_graph_as_onnx_ships_it(name: str) -> None:
    path = LIGHT / f"light_{name}.onnx"
    feed = random_feed(path, {})
    ours = qcompiler.load(qcompiler.compile(path)).run(feed)
    demand_close(ours, onnxruntime_outputs(path, feed))


# Trained networks


def real_feed(name: str, path: Path, material: Path) -> Feed:
    feed = random_feed(path, REAL[name])
    if name.startswith("llama260k"):
        feed["ids"] = np.load(material / "llama260k" / "sampled_ids.npy")[:1, :19].astype(np.int64)
    if name.startswith("ppocr"):
        feed["x"] = page()
    return feed


def page() -> Array:
    """Two lines of letters, as PP-OCR wants images.

    Where there is nothing to find all outputs are below 1e-6, too small for onnxruntime's Sigmoid.
    """
    rng = np.random.default_rng(0)
    ink = np.zeros((96, 160), np.float32)
    for row in (20, 60):
        for column in range(12, 148, 9):
            letter = rng.random((5, 3)) < 0.6
            ink[row : row + 15, column : column + 6] = np.kron(letter, np.ones((3, 2)))
    mean = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1)
    spread = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1)
    return np.asarray((1 - ink - mean) / spread)


def marks(name: str) -> list[pytest.MarkDecorator]:
    return [] if name.split("/")[1] in QUICK else [pytest.mark.slow]


@pytest.mark.parametrize("name", [pytest.param(n, marks=marks(n)) for n in REAL])
def test_a_trained_network_in_float32(name: str, material: Path) -> None:
    path = material / f"{name}.onnx"
    feed = real_feed(name, path, material)
    ours = qcompiler.load(qcompiler.compile(path, input_shapes=REAL[name])).run(feed)
    demand_close(ours, onnxruntime_outputs(path, feed))


@pytest.mark.slow
def test_a_sentence_encoder_in_float32(material: Path, tmp_path: Path) -> None:
    path = tmp_path / "minilm.onnx"
    subprocess.run([sys.executable, material / "minilm" / "expand.py", path], check=True)
    shapes = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (2, 32))
    rng = np.random.default_rng(0)
    feed = {n: rng.integers(0, 2, s) for n, s in shapes.items()}
    feed["input_ids"] = rng.integers(1000, 20000, (2, 32))
    feed["attention_mask"] = (np.arange(32) < [[32], [11]]).astype(np.int64)
    ours = qcompiler.load(qcompiler.compile(path, input_shapes=shapes)).run(feed)
    demand_close(ours, onnxruntime_outputs(path, feed))


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_labelled_accuracy_in_int8(name: str, material: Path) -> None:
    """Compared with float32, on labels; calibration never sees the scored samples."""
    (task,) = tasks(material, [name])
    model = task.model()
    count = 500
    shapes = {k: v.shape for k, v in next(task.batches(task.inputs)).items()}
    expected, found = [], []
    artifact = qcompiler.compile(
        model,
        precision="int8",
        calibration=list(task.batches(task.calibration)),
        input_shapes=shapes,
    )
    compiled = qcompiler.load(artifact)
    peer = session(model)
    for feed in task.batches(task.inputs, count):
        with refusals("onnxruntime"):
            expected.append(peer.run(None, feed)[0])
        found.append(next(iter(compiled.run(feed).values())))
    exact, lossy = task.score(np.concatenate(expected)), task.score(np.concatenate(found))
    assert lossy >= exact - task.limit


def test_operators_without_a_kernel_are_all_named() -> None:
    """Expand has a meaning, but how much it returns is known at run time only."""
    nodes = [
        helper.make_node("Expand", ["x", "s"], ["a"], "first"),
        helper.make_node("Expand", ["z", "s"], ["b"], "second"),
    ]
    shape = helper.make_tensor_value_info("s", 7, [2])
    graph = helper.make_graph(
        nodes,
        "g",
        [*(helper.make_tensor_value_info(n, 1, [2, 3]) for n in "xz"), shape],
        [helper.make_tensor_value_info(n, 1, None) for n in "ab"],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(Error, match="first") as caught:
        qcompiler.compile(model)
    assert "Expand" in str(caught.value)
    assert "second" in str(caught.value)
