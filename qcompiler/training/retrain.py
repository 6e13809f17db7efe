"""A model and samples without labels -> the same model with weights tuned for quantization or
pruning.

The float model is the teacher, the quantized or pruned model the student. Both see the same images,
with the same augmentation (Beyer et al., "Knowledge distillation: A good teacher is patient and
consistent", 2022; Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; Mishra &
Marr, "Apprentice", 2018). The student runs with rounded weights and values, and gradients ignore
the rounding (quantization-aware training, Jacob et al., "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", 2018). The result is a float model:
compile it like the original. Needs torch (`pip install 'qcompiler-tvm[retrain]'`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.data.samples import Sample, samples
from qcompiler.driver import Compilation
from qcompiler.errors import Error
from qcompiler.hardware.isa import Device
from qcompiler.ir import Array, Graph, Node, constant, substitute
from qcompiler.ops.kinds import PRODUCTS
from qcompiler.ops.registry import Numbers
from qcompiler.options import Options, Watch
from qcompiler.pruning.request import pruning
from qcompiler.pruning.sparsity import Pattern
from qcompiler.rewrite.matching import input_at
from qcompiler.stages import build
from qcompiler.training.reopen import reopened
from qcompiler.training.request import Training

if TYPE_CHECKING:
    import onnx
    import torch

    from qcompiler.training.weights import Weight

log = logging.getLogger(__name__)

HELD_OUT = 8
"""One of this many batches is held out for evaluation."""
AUGMENTATIONS = ("flip", "shift", "mix")
_WARM = 0.05
"""Fraction of all steps in which the learning rate rises; then it falls along a cosine (Loshchilov
& Hutter, "SGDR", 2017).
"""
_LEAST_SIZE = 1e-3
"""Smallest assumed size of a tensor, so that tensors of zeros (as biases may be) can change."""
_PRUNING = 0.6
"""Fraction of all steps after which a gradual schedule has removed everything."""


@dataclass(frozen=True)
class Retrained:
    """The model with tuned weights, and the loss on held-out batches: before training, then after
    every epoch. The weights of the best epoch are kept, which may be the initial ones; with a
    gradual schedule, the best epoch after its end.
    """

    graph: Graph
    losses: tuple[float, ...]
    best: int


def retrain(
    model: str | Path | onnx.ModelProto, options: Options, training: Training, watch: Watch
) -> Retrained:
    """ONNX model, how it will be compiled, and data -> the tuned float model.

    Raises Error if torch is not installed, or if an operator has no gradient.
    """
    if not 0 < training.rate < math.inf:
        raise Error(f"a learning rate of {training.rate}", hint="a small number above 0: 1e-3")
    for kind in training.augment:
        if kind not in AUGMENTATIONS:
            raise Error(f"augmentation {kind!r}", hint=f"one of {', '.join(AUGMENTATIONS)}")
    try:
        import torch  # noqa: F401
    except ImportError:
        hint = "pip install 'qcompiler-tvm[retrain]'"
        raise Error("retraining needs torch, which is not installed", hint=hint) from None
    return _Retraining(model, options, training, watch).run()


class _Retraining:
    """The training of one model."""

    def __init__(
        self,
        model: str | Path | onnx.ModelProto,
        options: Options,
        training: Training,
        watch: Watch,
    ) -> None:
        from qcompiler.training import torch_graph

        self.torch_graph = torch_graph
        self.training, self.watch = training, watch
        compiled = partial(Compilation, watch=watch, one_batch=False, rolls=False)
        made = compiled(model, options)
        levels: dict[str, float] = {}
        self.pattern = Pattern()
        if training.gradual:
            self.pattern, kept = _gradual(options, made.device)
            levels = _zeros(made.pruned)
            left = compiled(model, replace(options, prune=kept))
            made = left.having(float_graph=made.float_graph)
        self.made, self.exact = made, made.calibrated
        self.teacher = made.float_graph
        if training.teacher is not None:
            plain = Options(input_shapes=options.input_shapes)
            self.teacher = compiled(training.teacher, plain).float_graph
        wanted = {n.name: (n.dtype, n.shape) for n in self.exact.inputs}
        self.teacher = _before_softmax(self.teacher)
        self.batches = list(samples(training.data, wanted, training.count))
        if len(self.batches) < 2:
            raise Error("one batch cannot both teach and judge", hint="give more data")
        student, self.weights = _students(made)
        self.student = _before_softmax(student)
        self.levels = {n: s for n, s in levels.items() if n in self.weights and s > 0}
        self.random = np.random.default_rng(training.seed)

    def run(self) -> Retrained:
        """Train; keep the best weights."""
        import torch

        torch.manual_seed(self.training.seed)
        parameters = [p for w in self.weights.values() for p in w.parameters]
        sizes = [max(float(p.detach().square().mean().sqrt()), _LEAST_SIZE) for p in parameters]
        each = zip(parameters, sizes, strict=True)
        optimizer = torch.optim.Adam([{"params": [p], "size": size} for p, size in each])
        teach = [b for i, b in enumerate(self.batches) if i % HELD_OUT]
        judge = self.batches[::HELD_OUT]
        known = [self.taught(b) for b in judge]
        steps, done = self.training.epochs * len(teach), 0
        losses = [self.judged(judge, known)]
        log.info("at first: loss %.6g", losses[0])
        best, kept = 0, self.snapshot()
        for epoch in range(1, self.training.epochs + 1):
            settled = not self.levels or done >= _PRUNING * steps
            for i in self.random.permutation(len(teach)):
                self.say(done, steps, losses[-1])
                self.prune(done, steps)
                for group in optimizer.param_groups:
                    group["lr"] = group["size"] * self.training.rate * _pace(done / steps)
                self.step(optimizer, teach[i])
                done += 1
            losses.append(self.judged(judge, known))
            log.info("epoch %d: loss %.6g", epoch, losses[-1])
            over = not self.levels or done >= _PRUNING * steps
            if over and (not settled or losses[-1] < losses[best]):
                best, kept = epoch, self.snapshot()
        return Retrained(self.with_weights(kept), tuple(losses), best)

    def step(self, optimizer: torch.optim.Optimizer, batch: Sample) -> None:
        """Take one training step on a batch."""
        seen = self.augmented(batch)
        optimizer.zero_grad()
        self.loss(seen, self.taught(seen)).backward()
        optimizer.step()
        for weight in self.weights.values():
            weight.keep_zeros()

    def prune(self, done: int, steps: int) -> None:
        """Remove as many weights as the schedule says by now."""
        from qcompiler.training.weights import REFRESH, cubic

        if done % REFRESH == 0 or done == int(_PRUNING * steps) + 1:
            share = cubic(done / (_PRUNING * steps))
            for name, level in self.levels.items():
                self.weights[name].prune(self.pattern, level * share)

    def augmented(self, batch: Sample) -> Sample:
        """A batch with images flipped, shifted and mixed; other inputs unchanged."""
        made = dict(batch)
        for name, array in batch.items():
            if array.ndim == 4 and array.dtype.kind == "f":
                for kind in self.training.augment:
                    made[name] = _AUGMENT[kind](made[name], self.random)
        return made

    def taught(self, batch: Sample) -> list[torch.Tensor]:
        """The teacher's outputs for a batch."""
        import torch

        with torch.no_grad():
            return self.torch_graph.run(self.teacher, _tensors(batch), {})

    def loss(self, batch: Sample, wanted: Sequence[torch.Tensor]) -> torch.Tensor:
        """The student's distance from the teacher."""
        given = {n: t for w in self.weights.values() for n, t in w.stand_ins().items()}
        made = self.torch_graph.run(self.student, _tensors(batch), given)
        losses = [_distance(a, b) for a, b in zip(made, wanted, strict=True)]
        return sum(losses[1:], losses[0])

    def judged(self, batches: Sequence[Sample], known: Sequence[list[torch.Tensor]]) -> float:
        """The mean loss on held-out batches."""
        import torch

        with torch.no_grad():
            found = [float(self.loss(b, w)) for b, w in zip(batches, known, strict=True)]
        return float(np.mean(found))

    def snapshot(self) -> dict[str, tuple[Array, Array | None]]:
        """The current weights and biases, by product."""
        return {n: w.arrays() for n, w in self.weights.items()}

    def with_weights(self, found: Mapping[str, tuple[Array, Array | None]]) -> Graph:
        """The model with tuned weights, its shapes as open as before if possible."""
        graph = self.made.open_graph
        products = {n.name: n for n in graph.nodes if n.op in PRODUCTS}
        if not all(_fits(products.get(name), *arrays) for name, arrays in found.items()):
            graph = reopened(self.exact, graph) or self.exact  # channels were removed

        def change(node: Node) -> Node:
            if node.op not in PRODUCTS or node.name not in found:
                return node
            weights, bias = found[node.name]
            inputs = [node.inputs[0], constant(weights, node.operands[1].name)]
            if bias is not None:
                inputs.append(constant(bias, node.operands[2].name))
            return node.with_inputs(inputs)

        return substitute(graph, change).note(retrained=f"{self.training.epochs} epochs")

    def say(self, done: int, count: int, loss: float) -> None:
        """Report progress."""
        if self.watch.progress is not None:
            self.watch.progress("retraining", done, count, f"loss {loss:.4g}")


def _gradual(options: Options, device: Device) -> tuple[Pattern, tuple[str, ...]]:
    """Pruning options -> the pattern of weights to remove, and the other requests."""
    kept = tuple(w for w in options.prune if "prune_weights" not in pruning([w], (), ()))
    asked = pruning(options.prune, (), ()).get("prune_weights")
    if asked is None:
        raise Error("nothing is to be pruned little by little", hint="--prune magnitude:0.8")
    return Pattern.read(str(asked.get("pattern", "element")), device), kept


def _zeros(graph: Graph) -> dict[str, float]:
    """The fraction of zeros in the weights of each product, by name."""
    products = [n for n in graph.nodes if n.op in PRODUCTS and n.operands[1].is_constant]
    return {n.name: float(np.mean(n.operands[1].array == 0)) for n in products}


def _students(made: Compilation) -> tuple[Graph, dict[str, Weight]]:
    """The graph to train, and its products that have float weights of their own, by name.

    If only weights are quantized, that is the float graph itself, with rounded weights.
    """
    from qcompiler.training.weights import Rounder, Weight, of_grid, of_integers

    alone: Any = None
    asked = made.choice.options.get("quantize_weights")
    if asked is not None:
        alone = build("quantize_weights", asked, made.device)
    exact = made.calibrated
    student = exact if alone else made.quantized
    after = {n.name: n for n in student.nodes if n.op in PRODUCTS}
    found: dict[str, Weight] = {}
    for n in exact.nodes:
        if n.op not in PRODUCTS or n.name not in after or not n.operands[1].is_constant:
            continue
        bias = input_at(n, 2)
        own = all(exact.readers[i] == 1 for i in n.operands[1:])
        if n.operands[1].dtype != "float32" or not own or not (bias is None or bias.is_constant):
            continue
        rounder: Rounder | None = of_integers(after[n.name].operands[1])
        if alone is not None and alone.wants(n):
            rounder = of_grid(alone.grid)
        found[n.name] = Weight(n, after[n.name], rounder)
    if not found:
        raise Error("no product has float weights to train")
    return student, found


def _pace(done: float) -> float:
    """The fraction of training that is done, 0 to 1 -> the factor of the learning rate."""
    if done < _WARM:
        return (done + 1e-3) / _WARM
    return 0.5 + 0.5 * math.cos(math.pi * (done - _WARM) / (1 - _WARM))


def _flipped(x: Array, random: np.random.Generator) -> Array:
    turned = random.random(len(x)) < 0.5
    return np.where(turned[:, None, None, None], x[..., ::-1], x)


def _shifted(x: Array, random: np.random.Generator) -> Array:
    """Each image shifted by its own amount; the edge is repeated."""
    made = np.empty_like(x)
    height, width = x.shape[2:]
    far = max(height // 8, 1), max(width // 8, 1)
    rows, columns = np.arange(height), np.arange(width)
    for i, picture in enumerate(x):
        down, right = (int(random.integers(-n, n + 1)) for n in far)
        ys, xs = np.clip(rows + down, 0, height - 1), np.clip(columns + right, 0, width - 1)
        made[i] = picture[:, ys][:, :, xs]
    return made


def _mixed(x: Numbers, random: np.random.Generator) -> Array:
    """Zhang et al., "mixup" (2018); the teacher sees the same mixture."""
    share: Numbers = random.beta(1.0, 1.0, (len(x), 1, 1, 1)).astype(x.dtype)
    made: Numbers = share * x + (1 - share) * x[random.permutation(len(x))]
    return made


_AUGMENT: Mapping[str, Callable[[Array, np.random.Generator], Array]] = {
    "flip": _flipped,
    "shift": _shifted,
    "mix": _mixed,
}


def _fits(product: Node | None, weights: Array, bias: Array | None) -> bool:
    """Whether a product of the model as read has weights of these shapes."""
    if product is None or not product.operands[1].is_constant:
        return False
    have = product.operands[1].array.shape, input_at(product, 2) is None
    return have == (weights.shape, bias is None)


def _before_softmax(graph: Graph) -> Graph:
    """Replace outputs that are probabilities by their scores: near 0, probabilities have almost no
    gradient.
    """
    turned = {"Softmax", "LogSoftmax"}
    return graph.with_outputs(
        o.operands[0] if o.op in turned and o.type.rank == 2 else o for o in graph.outputs
    )


def _distance(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """For class scores, the Kullback-Leibler divergence of their distributions; else the squared
    error over the teacher's energy.
    """
    import torch

    if wanted.ndim == 2 and wanted.shape[1] >= 3:
        target = torch.log_softmax(wanted, 1)
        found = torch.log_softmax(made, 1)
        return torch.sum(target.exp() * (target - found)) / len(wanted)
    return torch.mean((made - wanted) ** 2) / (torch.mean(wanted**2) + 1e-12)


def _tensors(batch: Sample) -> dict[str, torch.Tensor]:
    from qcompiler.training.torch_graph import tensor_of

    return {name: tensor_of(array) for name, array in batch.items()}
