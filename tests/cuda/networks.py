"""Networks of well-known shapes, small enough for the emulator."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from benchmarks.networks import Builder, floats


def resnet(blocks: int, pixels: int) -> onnx.ModelProto:
    """ResNet-(6 * blocks + 2) as for CIFAR-10: `image` [1,3,pixels,pixels] -> `logits` [1,10]."""
    b = Builder(opset=17)

    def conv(name: str, x: str, ins: int, outs: int, stride: int, k: int = 3) -> str:
        x = b.conv(name, x, ins, outs, k, stride=stride)
        return b.batch_norm(f"{name}.norm", x, outs)

    x, ins = b.op("Relu", "stem.relu", conv("stem", "image", 3, 16, 1)), 16
    for stage, outs in enumerate((16, 32, 64)):
        for block in range(blocks):
            name, stride = f"stage{stage}.{block}", 2 if stage and not block else 1
            y = b.op("Relu", f"{name}.relu", conv(f"{name}.first", x, ins, outs, stride))
            y = conv(f"{name}.second", y, outs, outs, 1)
            side = conv(f"{name}.side", x, ins, outs, stride, 1) if ins != outs else x
            x, ins = b.op("Relu", f"{name}.out", b.op("Add", f"{name}.add", y, side)), outs
    x = b.op("Flatten", "flatten", b.op("GlobalAveragePool", "pool", x))
    b.rename(b.gemm("classifier", x, 64, 10), "logits")
    return b.model(
        f"resnet{6 * blocks + 2}",
        [floats("image", 1, 3, pixels, pixels)],
        [floats("logits", 1, 10)],
    )


def mobilenet(pixels: int) -> onnx.ModelProto:
    """Inverted residuals of MobileNetV2, a quarter as wide, with every kind of block once."""
    b = Builder(opset=17)
    limits = [b.scalar(0.0), b.scalar(6.0)]

    def conv(
        name: str, x: str, ins: int, outs: int, k: int, stride: int = 1, group: int = 1
    ) -> str:
        x = b.conv(name, x, ins, outs, k, stride=stride, group=group)
        return b.op("Clip", f"{name}.clip", b.batch_norm(f"{name}.norm", x, outs), *limits)

    x, ins = conv("stem", "image", 3, 8, 3, 2), 8
    for i, (expand, outs, stride) in enumerate(((1, 8, 1), (6, 16, 2), (6, 16, 1), (6, 24, 2))):
        name, wide = f"block{i}", ins * expand
        y = conv(f"{name}.expand", x, ins, wide, 1) if expand != 1 else x
        y = conv(f"{name}.depthwise", y, wide, wide, 3, stride, wide)
        y = b.batch_norm(f"{name}.norm", b.conv(f"{name}.project", y, wide, outs, 1), outs)
        x = b.op("Add", f"{name}.add", x, y) if stride == 1 and ins == outs else y
        ins = outs
    x = conv("last", x, ins, 64, 1)
    x = b.op("Flatten", "flatten", b.op("GlobalAveragePool", "pool", x))
    b.rename(b.gemm("classifier", x, 64, 10), "logits")
    return b.model("mobilenet", [floats("image", 1, 3, pixels, pixels)], [floats("logits", 1, 10)])


def encoder(layers: int, tokens: int, width: int, heads: int) -> onnx.ModelProto:
    """Layers of MiniLM: `ids` and `mask` int64 [1,tokens] -> `state` [1,tokens,width]."""
    b, size = Builder(opset=17), width // heads

    def norm(name: str, x: str) -> str:
        scale = b.weight(f"{name}.weight", width, deviation=0.1, mean=1)
        shift = b.weight(f"{name}.bias", width, deviation=0.1)
        return b.op("LayerNormalization", name, x, scale, shift, axis=-1, epsilon=1e-6)

    def split(name: str, x: str, perm: list[int]) -> str:
        y = b.linear(name, x, width, width)
        y = b.op("Reshape", f"{name}.heads", y, b.indices(0, tokens, heads, size))
        return b.op("Transpose", f"{name}.turned", y, perm=perm)

    words = b.weight("words", 100, width, deviation=1.0)
    x = norm("embeddings", b.op("Gather", "words.of", words, "ids"))
    mask = b.op("Unsqueeze", "mask.wide", "mask", b.indices(1, 2))
    mask = b.op("Cast", "mask.float", mask, to=int(TensorProto.FLOAT))
    mask = b.op("Mul", "mask.low", b.op("Sub", "mask.not", b.scalar(1), mask), b.scalar(-10000))
    for i in range(layers):
        name = f"layer{i}"
        q, v = (split(f"{name}.{n}", x, [0, 2, 1, 3]) for n in "qv")
        k = split(f"{name}.k", x, [0, 2, 3, 1])
        y = b.op("Div", f"{name}.scaled", b.op("MatMul", f"{name}.qk", q, k), b.scalar(size**0.5))
        y = b.op("Softmax", f"{name}.soft", b.op("Add", f"{name}.masked", y, mask), axis=-1)
        y = b.op("MatMul", f"{name}.attended", y, v)
        y = b.op("Transpose", f"{name}.back", y, perm=[0, 2, 1, 3])
        y = b.op("Reshape", f"{name}.flat", y, b.indices(0, tokens, width))
        y = b.linear(f"{name}.proj", y, width, width)
        x = norm(f"{name}.norm1", b.op("Add", f"{name}.add1", y, x))
        y = b.gelu(f"{name}.gelu", b.linear(f"{name}.up", x, width, 4 * width))
        y = b.linear(f"{name}.down", y, 4 * width, width, gain=0.5)
        x = norm(f"{name}.norm2", b.op("Add", f"{name}.add2", y, x))
    b.rename(x, "state")
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.INT64, [1, tokens]) for n in ("ids", "mask")
    ]
    return b.model("encoder", inputs, [floats("state", 1, tokens, width)])
