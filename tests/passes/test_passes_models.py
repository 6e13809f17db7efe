"""Whole models through fold, fuse and layout: results match onnxruntime's, and no Transpose is left
between two convolutions.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from oracles import Model, onnxruntime_outputs

from benchmarks.networks import bert_base, vit_s16
from qcompiler.ir import Array, Graph, Node
from qcompiler.onnx_io.reader import read
from qcompiler.ops import evaluate
from qcompiler.stages import run_stage

Shapes = dict[str, tuple[int, ...]]

SPATIAL = frozenset({"conv", "max_pool", "average_pool"})

REAL: dict[str, tuple[Shapes, int]] = {
    "imagenet/mobilenetv2_1.0_224.onnx": ({"input": (1, 3, 224, 224)}, 1),
    "imagenet/squeezenet1.1.onnx": ({"input": (1, 3, 224, 224)}, 1),
    "cifar10/resnet20_cifar10.onnx": ({"input": (1, 3, 32, 32)}, 1),
    "cifar10/resnet8_cifar10.onnx": ({"input": (2, 3, 32, 32)}, 1),
    "speech_commands/dscnn_kws.onnx": ({"mfcc": (1, 1, 49, 10)}, 0),
    "super_resolution/supres3x.onnx": ({"input": (1, 1, 20, 24)}, 1),
    "ppocr/ch_PP-OCRv3_det_infer.onnx": ({"x": (1, 3, 64, 96)}, 3),
    "detection/yolox_nano.onnx": ({}, 1),
    "deeplab/deeplabv3_mnv2_dm05_voc.onnx": ({}, 1),
    "llama260k/aidreams260k.onnx": ({"ids": (1, 16)}, 0),
    "speech_enhance/dtln_1.onnx": ({}, 0),
    "speech_enhance/dtln_2.onnx": ({}, 0),
    "silero_vad/silero_vad_op18_ifless.onnx": ({"input": (1, 576), "state": (2, 1, 128)}, 0),
}
"""Model -> the shapes of its open inputs, and the number of Transposes left: where channels-first
data enters or leaves, and where a shuffle moves elements within the channels.
"""

LARGE = ("bvlc_alexnet", "vgg19", "zfnet512")
LIGHT = {
    "bvlc_alexnet": 1,
    "densenet121": 1,
    "inception_v1": 1,
    "inception_v2": 1,
    "resnet50": 1,
    "shufflenet": 17,  # 16 shuffles of channels
    "squeezenet": 1,
    "vgg19": 1,
    "zfnet512": 1,
}

TRANSFORMERS = {"vit_s16": (vit_s16, 1), "bert_base": (bert_base, 0)}
"""Network -> how to build it with a number of layers, and the number of Transposes left."""


def staged(graph: Graph) -> Graph:
    for stage in ("fold", "fuse", "layout"):
        graph = run_stage(graph, stage)
    return graph


def inputs_of(graph: Graph) -> dict[str, Array]:
    """Random inputs, valid for token models and a recorder."""
    random = np.random.default_rng(0)
    made: dict[str, Array] = {}
    for node in graph.inputs:
        if node.dtype.startswith("float"):
            made[node.name] = random.standard_normal(node.type.dims).astype(node.dtype)
        elif node.name == "sr":
            made[node.name] = np.full(node.type.dims, 16000, node.dtype)
        else:
            made[node.name] = random.integers(0, 2, node.type.dims).astype(node.dtype)
    return made


def same_as_onnxruntime(model: Model, made: Graph, values: dict[str, Array]) -> None:
    """rtol 1e-3, atol 1e-4 of the output's range."""
    found = evaluate(made, values)
    for name, array in onnxruntime_outputs(model, values, made.output_names).items():
        size = float(np.abs(array.astype(np.float64)).max(initial=1e-2))
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-4 * size)


def between_convolutions(graph: Graph) -> list[Node]:
    """Transposes between two convolutions or pools that move whole images."""
    after: set[Node] = set()
    for node in graph.nodes:
        if node.op in SPATIAL or any(i in after for i in node.operands):
            after.add(node)
    before: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op in SPATIAL or node in before:
            before.update(node.operands)
    return [n for n in graph.nodes if n.op == "Transpose" and n in after and n in before]


def counted(graph: Graph) -> Counter[str]:
    return Counter(n.op for n in graph.nodes)


@pytest.mark.parametrize("name", REAL)
def test_a_real_model_keeps_its_meaning_in_channels_last(name: str, material: Path) -> None:
    shapes, transposes = REAL[name]
    graph = read(material / name, shapes)
    made = staged(graph)
    same_as_onnxruntime(material / name, made, inputs_of(made))
    assert counted(made)["Transpose"] == transposes
    if "ppocr" not in name:  # its transposed convolutions shuffle their outputs
        assert not between_convolutions(made)
    assert staged(made) is made, "twice is not once"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in LIGHT]
)
def test_a_model_of_onnx_keeps_its_meaning_in_channels_last(name: str) -> None:
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    model = onnx.load(folder / f"light_{name}.onnx")
    if name == "squeezenet":
        # Its weights are all alike and make scores of 3e9, for which a single rounding decides
        # the softmax in any engine: so the scores themselves are compared.
        scores = model.graph.node.pop().input[0]
        model.graph.output[0].name = scores
    made = staged(read(model))
    same_as_onnxruntime(model, made, inputs_of(made))
    assert counted(made)["Transpose"] == LIGHT[name]
    assert name == "shufflenet" or not between_convolutions(made)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_is_attention_between_products_and_nothing_is_moved(name: str) -> None:
    build, transposes = TRANSFORMERS[name]
    model = build(2)
    sizes = {i.name: i.type.tensor_type.shape.dim for i in model.graph.input}
    made = staged(read(model, {n: tuple(d.dim_value or 1 for d in s) for n, s in sizes.items()}))
    ops = counted(made)
    assert (ops["Transpose"], ops["attention"], ops["Gelu"]) == (transposes, 2, 2)
    assert ops["LayerNormalization"] == 5
    assert not {"Split", "Softmax", "Erf", "ReduceMean", "Slice"} & set(ops)
    same_as_onnxruntime(model, made, inputs_of(made))


def test_minilm_is_attention_between_products(material: Path, tmp_path: Path) -> None:
    file = tmp_path / "minilm.onnx"
    script = material / "minilm" / "expand.py"
    subprocess.run([sys.executable, str(script), str(file)], check=True, timeout=120)
    names = ("input_ids", "attention_mask", "token_type_ids")
    made = staged(read(file, {n: (1, 32) for n in names}))
    ops = counted(made)
    assert (ops["Transpose"], ops["attention"], ops["Gelu"]) == (0, 6, 6)
    same_as_onnxruntime(file, made, inputs_of(made))


def test_a_layer_of_large_weights_whose_states_go_out_is_computed_once() -> None:
    """Each output makes a loop of its own; they are merged only by comparing weights."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        stateful (float[1,1,8] x, float[1,1,320] h, float[1,1,320] c)
            => (float[1,1,1,320] y, float[1,1,320] ho, float[1,1,320] co) {
            y, ho, co = LSTM <hidden_size = 320> (x, w, r, , , h, c)
        }
    """)
    random = np.random.default_rng(0)
    for name, size in (("w", 8), ("r", 320)):
        array = random.standard_normal((1, 4 * 320, size)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    graph = run_stage(read(model), "fold")
    counts = Counter(n.op for n in graph.nodes)
    assert counts["recurrent"] == counts["MatMul"] == 1
