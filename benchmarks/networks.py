"""A network's name -> its ONNX file with random weights: real shapes and exporters' spellings.

    python -m benchmarks.networks resnet50 resnet50.onnx

Nothing here is trained: they are for speed only. The weights are seeded and scaled so that
activations keep their size from the first layer to the last, and no engine gains by zeros,
denormals or saturation. The batch is the symbolic dimension "batch", so the vision transformer has
the Shape -> Expand chain that exporters write for its class token.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Attribute: TypeAlias = int | float | Sequence[int] | onnx.TensorProto
Value: TypeAlias = onnx.ValueInfoProto


class Builder:
    """A graph as it grows: each method appends nodes and returns the name of what they make."""

    def __init__(self, opset: int, seed: int = 0) -> None:
        self.opset = opset
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}

    def op(
        self, op: str, name: str, *inputs: str, outputs: int = 1, **attributes: Attribute
    ) -> str:
        """Append a node; its output is called as it is, several are called name.0, name.1, ..."""
        names = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        node = helper.make_node(op, inputs, names, name=name)
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(node)
        return name

    def weight(self, name: str, *shape: int, deviation: float, mean: float = 0.0) -> str:
        """Add normal random numbers."""
        values = self.random.standard_normal(shape, np.float32)
        values *= np.float32(deviation)
        values += np.float32(mean)
        return self.constant(name, values)

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Add a weight of given numbers; the same name twice is the same weight."""
        if name not in self.weights:
            self.weights[name] = numpy_helper.from_array(value, name)
        return name

    def scalar(self, value: float) -> str:
        """A float32 number."""
        return self.constant(f"value_{value:.9g}", np.array(value, np.float32))

    def indices(self, *values: int) -> str:
        """A vector of int64: a shape, axes, sizes."""
        return self.constant("indices_" + "_".join(map(str, values)), np.array(values, np.int64))

    def conv(
        self,
        name: str,
        x: str,
        ins: int,
        outs: int,
        k: int,
        *,
        stride: int = 1,
        group: int = 1,
        pad: int | None = None,
        bias: bool = False,
    ) -> str:
        """A k x k convolution; He's scale keeps the size of what comes out of a ReLU."""
        deviation = math.sqrt(2 / (ins // group * k * k))
        inputs = [x, self.weight(f"{name}.weight", outs, ins // group, k, k, deviation=deviation)]
        if bias:
            inputs.append(self.weight(f"{name}.bias", outs, deviation=0.1))
        return self.op(
            "Conv",
            name,
            *inputs,
            dilations=[1, 1],
            group=group,
            kernel_shape=[k, k],
            pads=[k // 2 if pad is None else pad] * 4,
            strides=[stride, stride],
        )

    def batch_norm(self, name: str, x: str, channels: int, *, scale: float = 1.0) -> str:
        """A batch norm as after training: no two channels alike, every variance positive."""
        variance = self.random.uniform(0.5, 1.5, channels).astype(np.float32)
        inputs = [
            self.weight(f"{name}.weight", channels, deviation=0.1 * scale, mean=scale),
            self.weight(f"{name}.bias", channels, deviation=0.1),
            self.weight(f"{name}.running_mean", channels, deviation=0.1),
            self.constant(f"{name}.running_var", variance),
        ]
        return self.op("BatchNormalization", name, x, *inputs, epsilon=1e-5)

    def linear(self, name: str, x: str, ins: int, outs: int, *, gain: float = 1.0) -> str:
        """MatMul and Add, as a linear layer on [batch, tokens, features] is exported."""
        w = self.weight(f"{name}.weight", ins, outs, deviation=gain / math.sqrt(ins))
        bias = self.weight(f"{name}.bias", outs, deviation=0.02)
        return self.op("Add", f"{name}/Add", bias, self.op("MatMul", f"{name}/MatMul", x, w))

    def gemm(self, name: str, x: str, ins: int, outs: int) -> str:
        """A linear layer on [batch, features]."""
        w = self.weight(f"{name}.weight", outs, ins, deviation=1 / math.sqrt(ins))
        bias = self.weight(f"{name}.bias", outs, deviation=0.02)
        return self.op("Gemm", name, x, w, bias, transB=1)

    def gelu(self, name: str, x: str) -> str:
        """x * (1 + erf(x / sqrt(2))) * 0.5, in the five nodes that exporters write."""
        inner = self.op("Div", f"{name}/Div", x, self.scalar(math.sqrt(2)))
        inner = self.op("Erf", f"{name}/Erf", inner)
        inner = self.op("Add", f"{name}/Add", inner, self.scalar(1))
        inner = self.op("Mul", f"{name}/Mul", x, inner)
        return self.op("Mul", f"{name}/Mul_1", inner, self.scalar(0.5))

    def rename(self, old: str, new: str) -> None:
        """Call a value by the name that the model's user knows."""
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [new if n == old else n for n in names]

    def model(
        self, name: str, inputs: Sequence[Value], outputs: Sequence[Value]
    ) -> onnx.ModelProto:
        """The graph -> a model."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, list(self.weights.values()))
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=8, producer_name="benchmarks"
        )


def floats(name: str, *shape: int | str) -> Value:
    """A float32 input or output."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


# (expansion, outputs, repeats, first stride): table 2 of arXiv 1801.04381
INVERTED_RESIDUALS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
IMAGES, CLASSES = floats("input", "batch", 3, 224, 224), floats("output", "batch", 1000)


def resnet50() -> onnx.ModelProto:
    """ResNet-50 v1.5 (strides on the 3x3), `input` [batch,3,224,224] -> `output` [batch,1000]."""
    return resnet("resnet50", (3, 4, 6, 3))


def resnet101() -> onnx.ModelProto:
    """The same with 23 blocks instead of 6 in the third stage."""
    return resnet("resnet101", (3, 4, 23, 3))


def resnet(name: str, blocks: Sequence[int]) -> onnx.ModelProto:
    """A ResNet of bottlenecks, so many in each stage."""
    b = Builder(opset=17)
    x = b.op("Relu", "relu", b.batch_norm("bn1", b.conv("conv1", "input", 3, 64, 7, stride=2), 64))
    x = b.op("MaxPool", "maxpool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    ins = 64
    for stage, (count, width) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), start=1):
        for i in range(count):
            stride = 2 if i == 0 and stage > 1 else 1
            x = _bottleneck(b, f"layer{stage}.{i}", x, ins, width, stride)
            ins = width * 4
    x = b.op("Flatten", "flatten", b.op("GlobalAveragePool", "avgpool", x))
    b.rename(b.gemm("fc", x, 2048, 1000), "output")
    return b.model(name, [IMAGES], [CLASSES])


def _bottleneck(b: Builder, name: str, x: str, ins: int, width: int, stride: int) -> str:
    outs = width * 4
    y = b.batch_norm(f"{name}/bn1", b.conv(f"{name}/conv1", x, ins, width, 1), width)
    y = b.op("Relu", f"{name}/relu1", y)
    y = b.conv(f"{name}/conv2", y, width, width, 3, stride=stride)
    y = b.op("Relu", f"{name}/relu2", b.batch_norm(f"{name}/bn2", y, width))
    # A small last scale, as training leaves it, keeps the sum of the block and its input in size.
    y = b.batch_norm(f"{name}/bn3", b.conv(f"{name}/conv3", y, width, outs, 1), outs, scale=0.4)
    if ins != outs:
        x = b.conv(f"{name}/downsample.0", x, ins, outs, 1, stride=stride)
        x = b.batch_norm(f"{name}/downsample.1", x, outs)
    return b.op("Relu", f"{name}/relu3", b.op("Add", f"{name}/add", y, x))


def mobilenetv2() -> onnx.ModelProto:
    """MobileNetV2 1.0, `input` [batch,3,224,224] -> `output` [batch,1000]; relu6 is a Clip."""
    b = Builder(opset=17)
    limits = [
        b.op("Constant", f"relu6_{side}", value=numpy_helper.from_array(np.array(v, np.float32)))
        for side, v in (("min", 0.0), ("max", 6.0))
    ]

    def conv(
        name: str, x: str, ins: int, outs: int, k: int, stride: int = 1, group: int = 1
    ) -> str:
        x = b.conv(f"{name}/0", x, ins, outs, k, stride=stride, group=group)
        return b.op("Clip", f"{name}/2", b.batch_norm(f"{name}/1", x, outs), *limits)

    x = conv("features.0", "input", 3, 32, 3, stride=2)
    ins, index = 32, 1
    for expand, outs, repeats, first in INVERTED_RESIDUALS:
        for i in range(repeats):
            name, wide, stride = f"features.{index}", ins * expand, first if i == 0 else 1
            y = conv(f"{name}/expand", x, ins, wide, 1) if expand != 1 else x
            y = conv(f"{name}/depthwise", y, wide, wide, 3, stride=stride, group=wide)
            y = b.conv(f"{name}/project", y, wide, outs, 1)
            y = b.batch_norm(f"{name}/norm", y, outs)
            x = b.op("Add", f"{name}/add", x, y) if stride == 1 and ins == outs else y
            ins, index = outs, index + 1
    x = conv(f"features.{index}", x, ins, 1280, 1)
    x = b.op("Flatten", "flatten", b.op("GlobalAveragePool", "avgpool", x))
    b.rename(b.gemm("classifier", x, 1280, 1000), "output")
    return b.model("mobilenetv2", [IMAGES], [CLASSES])


def vit_s16(layers: int = 12) -> onnx.ModelProto:
    """ViT-S/16, `input` [batch,3,224,224] -> `output` [batch,1000]; q, k and v are one product."""
    b, width, tokens = Builder(opset=17), 384, 197

    def norm(name: str, x: str) -> str:
        scale = b.weight(f"{name}.weight", width, deviation=0.1, mean=1)
        shift = b.weight(f"{name}.bias", width, deviation=0.1)
        return b.op("LayerNormalization", name, x, scale, shift, axis=-1, epsilon=1e-6)

    x = b.conv("patch_embed", "input", 3, width, 16, stride=16, pad=0, bias=True)
    x = b.op("Reshape", "patch_embed/Reshape", x, b.indices(0, width, tokens - 1))
    x = b.op("Transpose", "patch_embed/Transpose", x, perm=[0, 2, 1])
    x = b.op("Concat", "cat", _class_token(b, width), x, axis=1)
    x = b.op("Add", "pos_add", x, b.weight("pos_embed", 1, tokens, width, deviation=0.1))
    for i in range(layers):
        block, deep = f"blocks.{i}", 1 / math.sqrt(2 * layers)
        y = _attention_at_once(b, f"{block}/attn", norm(f"{block}/norm1", x), width, tokens, deep)
        x = b.op("Add", f"{block}/Add", x, y)
        y = b.linear(f"{block}/mlp.fc1", norm(f"{block}/norm2", x), width, 4 * width)
        y = b.linear(f"{block}/mlp.fc2", b.gelu(f"{block}/mlp.act", y), 4 * width, width, gain=deep)
        x = b.op("Add", f"{block}/Add_1", x, y)
    first = b.constant("first", np.array(0, np.int64))
    x = b.op("Gather", "pool", norm("norm", x), first, axis=1)
    b.rename(b.gemm("head", x, width, 1000), "output")
    return b.model("vit_s16", [IMAGES], [CLASSES])


def _class_token(b: Builder, width: int) -> str:
    """One learned token, once for each image of a batch whose size only the input knows."""
    shape = b.op("Shape", "cls/Shape", "input")
    batch = b.op("Gather", "cls/Gather", shape, b.constant("first", np.array(0, np.int64)), axis=0)
    batch = b.op("Unsqueeze", "cls/Unsqueeze", batch, b.indices(0))
    whole = b.op("Concat", "cls/Concat", batch, b.indices(-1, -1), axis=0)
    ones = b.op("ConstantOfShape", "cls/ConstantOfShape", b.indices(3), value=_ones())
    whole = b.op(
        "Where", "cls/Where", b.op("Equal", "cls/Equal", whole, b.indices(-1)), ones, whole
    )
    return b.op("Expand", "cls/Expand", b.weight("cls_token", 1, 1, width, deviation=0.1), whole)


def _ones() -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(1, np.int64))


def _attention_at_once(b: Builder, name: str, x: str, width: int, tokens: int, gain: float) -> str:
    """Six heads of 64 as timm writes them: q, k and v out of one product, q scaled before q k'."""
    heads, size = width // 64, 64
    x = b.linear(f"{name}.qkv", x, width, 3 * width)
    x = b.op("Reshape", f"{name}/Reshape", x, b.indices(0, tokens, 3, heads, size))
    x = b.op("Transpose", f"{name}/Transpose", x, perm=[2, 0, 3, 1, 4])
    b.op("Split", f"{name}/Split", x, b.indices(1, 1, 1), axis=0, outputs=3)
    q, k, v = (
        b.op("Squeeze", f"{name}/Squeeze_{i}", f"{name}/Split.{i}", b.indices(0)) for i in range(3)
    )
    q = b.op("Mul", f"{name}/Mul", q, b.scalar(size**-0.5))
    k = b.op("Transpose", f"{name}/Transpose_1", k, perm=[0, 1, 3, 2])
    y = b.op("Softmax", f"{name}/Softmax", b.op("MatMul", f"{name}/MatMul", q, k), axis=-1)
    y = b.op("MatMul", f"{name}/MatMul_1", y, v)
    y = b.op("Transpose", f"{name}/Transpose_2", y, perm=[0, 2, 1, 3])
    y = b.op("Reshape", f"{name}/Reshape_1", y, b.indices(0, tokens, width))
    return b.linear(f"{name}.proj", y, width, width, gain=gain)


def bert_base(layers: int = 12) -> onnx.ModelProto:
    """BERT-base, three int64 [batch,128] -> `last_hidden_state` [batch,128,768], `pooler_output`.

    Opset 13, as exporters wrote it before LayerNormalization was an operator; a mask that is added.
    """
    b, tokens, width = Builder(opset=13), 128, 768
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", tokens]) for n in names]
    x = _embeddings(b, tokens, width)
    mask = b.op("Unsqueeze", "mask/Unsqueeze", "attention_mask", b.indices(1, 2))
    mask = b.op("Cast", "mask/Cast", mask, to=int(TensorProto.FLOAT))
    mask = b.op("Sub", "mask/Sub", b.scalar(1), mask)
    mask = b.op("Mul", "mask/Mul", mask, b.scalar(-10000))
    for i in range(layers):
        layer = f"encoder.layer.{i}"
        y = _attention_by_parts(b, f"{layer}/attention", x, mask, width, tokens)
        x = _layer_norm(
            b, f"{layer}/attention.output.LayerNorm", b.op("Add", f"{layer}/Add", y, x), width
        )
        y = b.gelu(f"{layer}/intermediate.act", b.linear(f"{layer}/intermediate", x, width, 3072))
        y = b.linear(f"{layer}/output", y, 3072, width, gain=0.5)
        x = _layer_norm(b, f"{layer}/output.LayerNorm", b.op("Add", f"{layer}/Add_1", y, x), width)
    first = b.op("Gather", "pooler/Gather", x, b.constant("first", np.array(0, np.int64)), axis=1)
    b.op("Tanh", "pooler_output", b.gemm("pooler.dense", first, width, width))
    b.rename(x, "last_hidden_state")
    outputs = [
        floats("last_hidden_state", "batch", tokens, width),
        floats("pooler_output", "batch", width),
    ]
    return b.model("bert_base", inputs, outputs)


def _embeddings(b: Builder, tokens: int, width: int) -> str:
    words = b.weight("word_embeddings.weight", 30522, width, deviation=0.02)
    kinds = b.weight("token_type_embeddings.weight", 2, width, deviation=0.02)
    places = b.weight("position_embeddings", 1, tokens, width, deviation=0.02)
    x = b.op("Gather", "embeddings/Gather", words, "input_ids")
    x = b.op(
        "Add", "embeddings/Add", x, b.op("Gather", "embeddings/Gather_1", kinds, "token_type_ids")
    )
    return _layer_norm(b, "embeddings.LayerNorm", b.op("Add", "embeddings/Add_1", x, places), width)


def _attention_by_parts(b: Builder, name: str, x: str, mask: str, width: int, tokens: int) -> str:
    """Twelve heads of 64 as transformers wrote them: three products, then an added mask."""
    heads, size = width // 64, 64

    def part(which: str, perm: Sequence[int]) -> str:
        y = b.linear(f"{name}.{which}", x, width, width)
        y = b.op("Reshape", f"{name}/Reshape_{which}", y, b.indices(0, tokens, heads, size))
        return b.op("Transpose", f"{name}/Transpose_{which}", y, perm=perm)

    q, k, v = part("query", [0, 2, 1, 3]), part("key", [0, 2, 3, 1]), part("value", [0, 2, 1, 3])
    y = b.op(
        "Div", f"{name}/Div", b.op("MatMul", f"{name}/MatMul", q, k), b.scalar(math.sqrt(size))
    )
    y = b.op("Softmax", f"{name}/Softmax", b.op("Add", f"{name}/Add", y, mask), axis=-1)
    y = b.op("MatMul", f"{name}/MatMul_1", y, v)
    y = b.op("Transpose", f"{name}/Transpose", y, perm=[0, 2, 1, 3])
    y = b.op("Reshape", f"{name}/Reshape", y, b.indices(0, tokens, width))
    return b.linear(f"{name}.output", y, width, width, gain=0.5)


def _layer_norm(b: Builder, name: str, x: str, width: int) -> str:
    """(x - mean) / sqrt(variance + epsilon) * scale + shift in nine nodes."""
    mean = b.op("ReduceMean", f"{name}/ReduceMean", x, axes=[-1], keepdims=1)
    centred = b.op("Sub", f"{name}/Sub", x, mean)
    square = b.op("Pow", f"{name}/Pow", centred, b.scalar(2))
    variance = b.op("ReduceMean", f"{name}/ReduceMean_1", square, axes=[-1], keepdims=1)
    deviation = b.op("Add", f"{name}/Add", variance, b.scalar(1e-12))
    deviation = b.op("Sqrt", f"{name}/Sqrt", deviation)
    y = b.op("Div", f"{name}/Div", centred, deviation)
    y = b.op("Mul", f"{name}/Mul", y, b.weight(f"{name}.weight", width, deviation=0.1, mean=1))
    return b.op("Add", f"{name}/Add_1", y, b.weight(f"{name}.bias", width, deviation=0.1))


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet50": resnet50,
    "mobilenetv2": mobilenetv2,
    "vit_s16": vit_s16,
    "bert_base": bert_base,
}


def main() -> None:
    """Write one network's file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=main.__doc__)
    parser.add_argument("network", choices=sorted(NETWORKS))
    parser.add_argument("file", metavar="out.onnx")
    arguments = parser.parse_args()
    onnx.save(NETWORKS[arguments.network](), arguments.file)


if __name__ == "__main__":
    main()
