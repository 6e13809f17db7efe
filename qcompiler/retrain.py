"""A model and samples without labels -> the same model with weights tuned to what quantization or
pruning does to it.

The float model is the teacher, the model in few bits the student: it runs with rounded weights and
values, and gradients pass through rounding as if it were not there (quantization-aware training,
Jacob et al. 2018; distillation, Hinton et al. 2015, Mishra and Marr 2018). Weights that are zero
in a pruned model stay zero. What comes back is a float model: compile it as the one before. Needs
torch (`pip install 'qcompiler[retrain]'`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qcompiler import driver, plugins
from qcompiler.driver import Options, Watch
from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Node, constant, substitute
from qcompiler.matching import input_at
from qcompiler.onnx_reader import read
from qcompiler.samples import Sample, samples
from qcompiler.stages import choose, run_stage

if TYPE_CHECKING:
    import onnx
    import torch

log = logging.getLogger(__name__)

PRUNED = 0.1
"""Weights of which a larger share is zero were pruned; those zeros stay."""
HELD_OUT = 8
"""Every so manieth batch judges and does not teach."""
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul"})


@dataclass(frozen=True)
class Training:
    """How to train. data: samples, of any kind that calibration takes. teacher: another float model
    with the same inputs and outputs (a pruned model's original); by default the model itself.
    """

    data: object
    epochs: int = 5
    rate: float = 2e-5
    count: int = 2000
    teacher: str | Path | onnx.ModelProto | None = None
    seed: int = 0


@dataclass(frozen=True)
class Retrained:
    """The model with tuned weights, and the loss on held-out batches: at first, then of every
    epoch. The best epoch's weights are kept, which may be those from the start.
    """

    graph: Graph
    losses: tuple[float, ...]


def retrain(
    model: str | Path | onnx.ModelProto, options: Options, training: Training, watch: Watch
) -> Retrained:
    """ONNX model, how it will be compiled, and data -> the tuned float model.

    Raises Error where torch is not installed, or no gradient passes an operator.
    """
    if not 0 < training.rate < math.inf:
        raise Error(f"a learning rate of {training.rate}", hint="a small number above 0: 2e-5")
    try:
        import torch  # noqa: F401
    except ImportError:
        hint = "pip install 'qcompiler[retrain]'"
        raise Error("retraining needs torch, which is not installed", hint=hint) from None
    return _Retraining(model, options, training, watch).run()


class _Retraining:
    """One model's training."""

    def __init__(
        self,
        model: str | Path | onnx.ModelProto,
        options: Options,
        training: Training,
        watch: Watch,
    ) -> None:
        from qcompiler import torch_graph

        self.torch_graph = torch_graph
        self.model, self.options, self.training, self.watch = model, options, training, watch
        device = plugins.device(options.target, options.threads)
        choice = choose(options.passes, options.disabled_passes)
        exact = driver.fused(model, options, choice, device, watch)
        exact, data = driver.calibration(exact, options, watch)
        asked = driver.quantization(choice, options)
        self.student = driver.in_the_open(exact, asked, device, watch, data)
        self.teacher = exact
        whole = replace(options, prune=())  # who teaches has all weights
        given = model if training.teacher is None and options.prune else training.teacher
        if given is not None:
            self.teacher = driver.fused(given, whole, choice, device, watch)
        wanted = {n.name: (n.dtype, n.shape) for n in exact.inputs}
        self.batches = list(samples(training.data, wanted, training.count))
        if len(self.batches) < 2:
            raise Error("one batch cannot both teach and judge", hint="give more data")
        self.weights = _trained(exact, self.student)

    def run(self) -> Retrained:
        """Train; keep the best."""
        import torch

        torch.manual_seed(self.training.seed)
        parameters = [p for w in self.weights.values() for p in w.parameters]
        optimizer = torch.optim.Adam(parameters, lr=self.training.rate)
        teach = [b for i, b in enumerate(self.batches) if i % HELD_OUT]
        judge = self.batches[::HELD_OUT]
        known = [self.taught(b) for b in judge]
        losses = [self.judged(judge, known)]
        best = self.snapshot()
        order = np.random.default_rng(self.training.seed)
        for epoch in range(self.training.epochs):
            for done, i in enumerate(order.permutation(len(teach))):
                self.say(done + epoch * len(teach), self.training.epochs * len(teach), losses[-1])
                optimizer.zero_grad()
                loss = self.loss(teach[i], self.taught(teach[i]))
                loss.backward()
                optimizer.step()
                for weight in self.weights.values():
                    weight.keep_zeros()
            losses.append(self.judged(judge, known))
            log.info("epoch %d: loss %.6g", epoch + 1, losses[-1])
            if losses[-1] < min(losses[:-1]):
                best = self.snapshot()
        return Retrained(self.with_weights(best), tuple(losses))

    def taught(self, batch: Sample) -> list[torch.Tensor]:
        """What the teacher makes of a batch."""
        import torch

        with torch.no_grad():
            return self.torch_graph.run(self.teacher, _tensors(batch), {})

    def loss(self, batch: Sample, wanted: Sequence[torch.Tensor]) -> torch.Tensor:
        """How far the student is from the teacher."""
        given = {n: t for w in self.weights.values() for n, t in w.stand_ins().items()}
        made = self.torch_graph.run(self.student, _tensors(batch), given)
        pairs = zip(made, wanted, self.student.outputs, strict=True)
        losses = [_distance(a, b, o) for a, b, o in pairs]
        return sum(losses[1:], losses[0])

    def judged(self, batches: Sequence[Sample], known: Sequence[list[torch.Tensor]]) -> float:
        """The mean loss of batches that do not teach."""
        import torch

        with torch.no_grad():
            found = [float(self.loss(b, w)) for b, w in zip(batches, known, strict=True)]
        return float(np.mean(found))

    def snapshot(self) -> dict[str, tuple[Array, Array | None]]:
        """The weights and biases as they are, by product."""
        return {n: w.arrays() for n, w in self.weights.items()}

    def with_weights(self, found: Mapping[str, tuple[Array, Array | None]]) -> Graph:
        """The model, its shapes as open as they were where that can be, with tuned weights."""
        for shapes in ({}, dict(self.options.input_shapes)):
            graph = read(self.model, {k: tuple(v) for k, v in shapes.items()})
            for stage in ("fold", "fuse"):
                graph = run_stage(graph, stage)
            products = {n.name: n for n in graph.nodes if n.op in _PRODUCTS}
            if all(_fits(products.get(name), *arrays) for name, arrays in found.items()):
                break
        else:
            hint = "fewer channels (--prune channels) need a model that was written without them"
            raise Error("the tuned weights do not fit the model as it was read", hint=hint)
        changed = {products[name]: arrays for name, arrays in found.items()}
        by_name = {n.name: changed[n] for n in changed}

        def change(node: Node) -> Node:
            if node.op not in _PRODUCTS or node.name not in by_name:
                return node
            weights, bias = by_name[node.name]
            inputs = [node.inputs[0], constant(weights, node.operands[1].name)]
            if bias is not None:
                inputs.append(constant(bias, node.operands[2].name))
            return node.with_inputs(inputs)

        return substitute(graph, change).note(retrained=f"{self.training.epochs} epochs")

    def say(self, done: int, count: int, loss: float) -> None:
        """Tell whoever waits."""
        if self.watch.progress is not None:
            self.watch.progress("retraining", done, count, f"loss {loss:.4g}")


class _Weight:
    """One product's weights and bias: float ones to train, rounded ones for the student."""

    def __init__(self, exact: Node, student: Node) -> None:
        import torch

        from qcompiler.torch_graph import tensor_of

        self.student = student
        self.float_ = tensor_of(exact.operands[1].array).requires_grad_()
        bias = input_at(exact, 2)
        self.bias = None if bias is None else tensor_of(bias.array).requires_grad_()
        zeros = self.float_.detach() == 0
        self.zeros = zeros if float(zeros.float().mean()) > PRUNED else None
        coarse = student.operands[1]
        self.most = 0
        self.axes: tuple[int, ...] = ()
        if coarse.op == "DequantizeLinear":
            self.most = int(np.abs(coarse.operands[0].array.astype(np.int64)).max())
            axis = coarse.int("axis") % coarse.type.rank
            one = coarse.operands[1].array.size == 1
            axes = range(coarse.type.rank)
            self.axes = tuple(axes) if one else tuple(a for a in axes if a != axis)
        self.torch = torch

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What is trained."""
        return [p for p in (self.float_, self.bias) if p is not None]

    def stand_ins(self) -> dict[Node, torch.Tensor]:
        """The student's nodes of weights and bias -> their values."""
        made = self.float_
        if self.most:
            step = made.detach().abs().amax(self.axes, keepdim=True) / self.most
            step = self.torch.clamp(step, min=1e-12)
            rounded = self.torch.round(made / step) * step
            made = made + (rounded - made).detach()
        found = {self.student.operands[1]: made}
        if self.bias is not None:
            found[self.student.operands[2]] = self.bias
        return found

    def keep_zeros(self) -> None:
        """What was pruned stays so."""
        if self.zeros is not None:
            with self.torch.no_grad():
                self.float_[self.zeros] = 0

    def arrays(self) -> tuple[Array, Array | None]:
        """Copies."""
        bias = None if self.bias is None else self.bias.detach().numpy().copy()
        return self.float_.detach().numpy().copy(), bias


def _trained(exact: Graph, student: Graph) -> dict[str, _Weight]:
    """The products that both graphs have under one name, with float weights of their own."""
    after = {n.name: n for n in student.nodes if n.op in _PRODUCTS}
    read_by: dict[Node, int] = {}
    for n in exact.nodes:
        for i in n.operands:
            read_by[i] = read_by.get(i, 0) + 1
    found = {}
    for n in exact.nodes:
        if n.op not in _PRODUCTS or n.name not in after or not n.operands[1].is_constant:
            continue
        bias = input_at(n, 2)
        own = all(read_by[i] == 1 for i in n.operands[1:])
        if n.operands[1].dtype == "float32" and own and (bias is None or bias.is_constant):
            found[n.name] = _Weight(n, after[n.name])
    if not found:
        raise Error("no product has float weights to train")
    return found


def _fits(product: Node | None, weights: Array, bias: Array | None) -> bool:
    """Whether a product of the model as it was read can take these arrays."""
    if product is None or not product.operands[1].is_constant:
        return False
    have = product.operands[1].array.shape, input_at(product, 2) is None
    return have == (weights.shape, bias is None)


def _distance(made: torch.Tensor, wanted: torch.Tensor, output: Node) -> torch.Tensor:
    """Between distributions over classes the Kullback-Leibler divergence; else the squared error
    over the teacher's power.
    """
    import torch

    if wanted.ndim == 2 and wanted.shape[1] >= 3:
        if output.op == "Softmax":
            return torch.sum(wanted * torch.log((wanted + 1e-9) / (made + 1e-9))) / len(wanted)
        target = torch.log_softmax(wanted, 1)
        found = torch.log_softmax(made, 1)
        return torch.sum(target.exp() * (target - found)) / len(wanted)
    return torch.mean((made - wanted) ** 2) / (torch.mean(wanted**2) + 1e-12)


def _tensors(batch: Sample) -> dict[str, torch.Tensor]:
    from qcompiler.torch_graph import tensor_of

    return {name: tensor_of(array) for name, array in batch.items()}
