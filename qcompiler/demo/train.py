"""scikit-learn's handwritten digits -> digits.onnx, a trained network, and digits.npz, its images.

Run `python -m qcompiler.demo.train` from a checkout with the test extra installed (half a minute on
two cores). The network has one of each construct that the compiler optimizes: convolutions followed
by batch norms, a residual block, a depthwise convolution, both kinds of pooling and a matrix
product. It is trained directly as an ONNX graph, with the few gradients in autograd.py, so that no
training framework is needed to reproduce it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TypeAlias, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from qcompiler.demo import DATA, MODEL
from qcompiler.demo.autograd import Floats, Tape

log = logging.getLogger(__name__)

Attribute: TypeAlias = int | float | Sequence[int]

SEED = 1
TEST_IMAGES, CALIBRATION_IMAGES = 500, 256
EPOCHS, BATCH = 60, 64
RATE, DECAY = 3e-3, 1e-4
"""Adam's initial step size (it falls to 0 along a cosine), and the weight decay."""


class Network:
    """A graph under construction: nodes in order, and the weights they read."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Floats] = {}

    def node(self, op: str, name: str, *inputs: str, **attributes: Attribute) -> str:
        """Append a node whose output has the node's name."""
        node = helper.make_node(op, inputs, [name], name=name)
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(node)
        return name

    def weight(self, name: str, *shape: int, deviation: float = 0.0, mean: float = 0.0) -> str:
        """Add a weight of random numbers."""
        values = self.random.standard_normal(shape) * deviation + mean
        self.weights[name] = values.astype(np.float32)
        return name

    def conv_norm(
        self, block: str, x: str, channels: tuple[int, int], *, kernel: int = 3, group: int = 1
    ) -> str:
        """A convolution that preserves the image size, and a batch norm."""
        inputs, outputs = channels
        fan_in = inputs // group * kernel * kernel
        shape = (outputs, inputs // group, kernel, kernel)
        w = self.weight(f"{block}/conv.weight", *shape, deviation=(2 / fan_in) ** 0.5)
        window = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4}
        y = self.node("Conv", f"{block}/conv", x, w, group=group, **window)
        norm = f"{block}/norm"
        statistics = [
            self.weight(f"{norm}.{part}", outputs, mean=mean)
            for part, mean in (("scale", 1.0), ("bias", 0.0), ("mean", 0.0), ("var", 1.0))
        ]
        return self.node("BatchNormalization", norm, y, *statistics, epsilon=1e-5)

    def conv_norm_relu(
        self, block: str, x: str, channels: tuple[int, int], *, kernel: int = 3, group: int = 1
    ) -> str:
        """The same, followed by a Relu."""
        y = self.conv_norm(block, x, channels, kernel=kernel, group=group)
        return self.node("Relu", f"{block}/relu", y)


def network() -> Network:
    """-> the untrained network: `image` [N,1,8,8] in 0..1 -> `scores` [N,10]."""
    net = Network(np.random.default_rng(SEED))
    x = net.conv_norm_relu("block1", "image", (1, 32))
    y = net.conv_norm_relu("block2/first", x, (32, 32))
    y = net.conv_norm("block2/second", y, (32, 32))
    x = net.node("Add", "block2/add", y, x)
    x = net.node("Relu", "block2/relu", x)
    x = net.node("MaxPool", "pool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.conv_norm_relu("block3/depthwise", x, (32, 32), group=32)
    x = net.conv_norm_relu("block3/pointwise", x, (32, 64), kernel=1)
    x = net.node("GlobalAveragePool", "average", x)
    x = net.node("Flatten", "flatten", x)
    w = net.weight("classify.weight", 10, 64, deviation=0.1)
    net.node("Gemm", "scores", x, w, net.weight("classify.bias", 10), transB=1)
    return net


def model(net: Network) -> onnx.ModelProto:
    """A network -> the ONNX model, checked."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])
    weights = [numpy_helper.from_array(array, name) for name, array in net.weights.items()]
    graph = helper.make_graph(net.nodes, "digits", [image], [scores], weights)
    opset = helper.make_opsetid("", 17)
    made = helper.make_model(graph, opset_imports=[opset], ir_version=8, producer_name="qcompiler")
    onnx.checker.check_model(made, full_check=True)
    return made


def train(net: Network, images: Floats, labels: NDArray[np.int64]) -> None:
    """Fit the weights, in place, to images [N,1,8,8] and labels [N]: Adam on the cross entropy."""
    learned = [name for name in net.weights if not name.endswith((".mean", ".var"))]
    first = {name: np.zeros_like(net.weights[name]) for name in learned}
    second = {name: np.zeros_like(net.weights[name]) for name in learned}
    steps = EPOCHS * (len(images) // BATCH)
    for step, chosen in enumerate(_batches(net.random, len(images)), start=1):
        batch = _shifted(net.random, images[chosen])
        tape = Tape(net.nodes, {**net.weights, "image": batch})
        loss, gradient = _cross_entropy(tape.arrays["scores"], labels[chosen])
        gradients = tape.gradients("scores", gradient)
        rate = RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
        for name in learned:
            g = gradients[name] + DECAY * net.weights[name]
            first[name] += 0.1 * (g - first[name])
            second[name] += 0.001 * (g * g - second[name])
            mean, square = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
            net.weights[name] -= np.float32(rate) * mean / (np.sqrt(square) + np.float32(1e-8))
        if step % (steps // 10) == 0:
            log.info("step %d of %d: loss %.4f", step, steps, loss)


def split() -> dict[str, NDArray[np.generic]]:
    """-> training and test images and labels; `calibration` is a part of the training images."""
    import sklearn.datasets  # needed only here

    digits = sklearn.datasets.load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(images))
    test, rest = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return {
        "train_images": images[rest],
        "train_labels": labels[rest],
        "test_images": images[test],
        "test_labels": labels[test],
        "calibration": images[rest[:CALIBRATION_IMAGES]],
    }


def main() -> None:
    """Train, and write both files."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    data = split()
    net = network()
    log.info("%d parameters", sum(array.size for array in net.weights.values()))
    train(net, data["train_images"].astype(np.float32), data["train_labels"].astype(np.int64))
    trained = model(net)
    outputs = ReferenceEvaluator(trained).run(None, {"image": data["test_images"]})
    (scores,) = cast("list[Floats]", outputs)
    log.info("test accuracy %.1f%%", 100 * (scores.argmax(1) == data["test_labels"]).mean())
    kept = {name: data[name] for name in ("calibration", "test_images", "test_labels")}
    onnx.save(trained, MODEL)
    np.savez_compressed(DATA, allow_pickle=False, **kept)


def _batches(random: np.random.Generator, count: int) -> Iterator[NDArray[np.int64]]:
    for _ in range(EPOCHS):
        order = random.permutation(count)
        yield from (order[i : i + BATCH] for i in range(0, count - BATCH + 1, BATCH))


def _shifted(random: np.random.Generator, images: Floats) -> Floats:
    """Move each image by up to one pixel, so that the network learns shapes, not positions."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    corners = random.integers(0, 3, (len(images), 2))
    return np.stack([p[:, a : a + 8, b : b + 8] for p, (a, b) in zip(padded, corners, strict=True)])


def _cross_entropy(scores: Floats, labels: NDArray[np.int64]) -> tuple[float, Floats]:
    """Scores [N,10] and labels [N] -> the mean loss, and the gradient of the scores."""
    shifted = scores - scores.max(1, keepdims=True)
    share = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    rows = np.arange(len(labels))
    loss = float(-np.log(share[rows, labels]).mean())
    share[rows, labels] -= 1
    return loss, share / np.float32(len(labels))


if __name__ == "__main__":
    main()
