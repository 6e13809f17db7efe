"""Equal layers with other constants in one model: what one kernel computes for the first must be
right for all that share it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from kernel_harness import compare, device, isas, normal
from onnx import TensorProto, helper, numpy_helper

import qcompiler
from qcompiler.emit.assemble import assemble
from qcompiler.errors import Error
from qcompiler.hardware.isa import Isa
from qcompiler.ir import Array, Graph, Node, Type, constant, placeholder
from qcompiler.onnx_io.reader import read
from qcompiler.ops import OPERATORS, evaluate, make
from qcompiler.options import Watch
from qcompiler.plan.plan import plan

ISAS = pytest.mark.parametrize("isa", isas(), ids=lambda i: i.name)

CONSTANTS: dict[str, Sequence[float]] = {
    "float32": (0, 0.5, 2, -1, -0.0, 3e9),
    "int32": (0, 1, -3, 200),
    "uint8": (0, 1, 7, 255),
    "bool": (0, 1),
}


def outputs_agree(
    inputs: Sequence[Node],
    outputs: Sequence[Node],
    isa: Isa,
    *feeds: Array,
    atol: float = 0,
) -> None:
    """All outputs, compiled as one model without any pass, are what numpy makes of them."""
    names = tuple(f"y{i}" for i in range(len(outputs)))
    graph = Graph(tuple(inputs), tuple(outputs), names)
    given = {n.name: a for n, a in zip(inputs, feeds, strict=True)}
    got = qcompiler.load(assemble(plan(graph, device(isa)))).run(given)
    with np.errstate(all="ignore"):
        want = evaluate(graph, given)
    for name, output in zip(names, outputs, strict=True):
        try:
            compare(got[name], want[name], ulp=4, atol=atol)
        except AssertionError as e:
            constants = [n.array.ravel()[:4].tolist() for n in output.operands if n.is_constant]
            raise AssertionError(f"{output.op} by {constants}: {e}") from e


def with_constants(op: str, x: Node, dtype: str) -> list[Node]:
    """An operator's nodes with each constant in each place but one, which reads x."""
    least, most = OPERATORS[op].arity
    attrs = {"direction": "LEFT"} if op == "BitShift" else {}
    found = []
    for count in range(max(least, 2), int(min(most, 3)) + 1):
        for place in range(count):
            for number in CONSTANTS[dtype]:
                read: list[Node] = [constant(np.array(number, dtype)) for _ in range(count)]
                read[place] = x
                try:
                    found.append(make(op, *read, **attrs))
                except Error:
                    continue  # not of this dtype
    return [n for n in found if n.shape == x.shape]


@pytest.mark.parametrize("dtype", CONSTANTS)
def test_elementwise_operators_with_other_constants(dtype: str) -> None:
    """Every operator that reads more than one operand, with zeros and others, in both orders."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 37)) * 3 if dtype == "float32" else rng.integers(0, 9, (3, 37))
    x = placeholder("x", Type(dtype, (3, 37)))
    operators = [op for op, entry in OPERATORS.items() if entry.formula and entry.arity[1] > 1]
    if dtype == "bool":
        operators.remove("Pow")  # ONNX has it of numbers only
    outputs = [n for op in operators for n in with_constants(op, x, dtype)]
    assert (
        len({n.op for n in outputs}) >= {"float32": 14, "int32": 14, "uint8": 4, "bool": 4}[dtype]
    )
    outputs_agree([x], outputs, isas()[-1], values.astype(dtype))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@ISAS
def test_quantize_and_dequantize_by_other_scales_and_zero_points(dtype: str, isa: Isa) -> None:
    rng, limits = np.random.default_rng(1), np.iinfo(dtype)
    x, sums, stored = (
        placeholder(name, Type(kind, (6, 70)))
        for name, kind in (("x", "float32"), ("sums", "int32"), ("stored", dtype))
    )
    outputs = []
    for shape in ((), (70,)):
        for zero in (0, 1, 100, limits.min, limits.max):
            for scale in (1e-9, 0.01, 30.0, 1e9):
                scales = constant(np.full(shape, scale, np.float32))
                zeros = constant(np.full(shape, zero, np.int32))
                wide = make("Cast", sums, to="float32")
                outputs += [make("quantize", v, scales, zeros, dtype=dtype) for v in (x, wide)]
                outputs.append(make("dequantize", stored, scales, zeros))
    values = rng.integers(-(2**31), 2**31, (6, 70)).astype(np.int32)
    values[0] = (2**31 - 1, -(2**31)) * 35
    bytes_ = rng.integers(limits.min, limits.max + 1, (6, 70)).astype(dtype)
    outputs_agree([x, sums, stored], outputs, isa, normal((6, 70)) * 100, values, bytes_)


@ISAS
def test_products_of_bytes_whose_weights_saturate_and_others(isa: Isa) -> None:
    """Weights decide how bytes are multiplied where that can saturate: for each layer its own."""
    rng, outputs = np.random.default_rng(2), []
    x, rows = (
        placeholder("x", Type("uint8", (1, 6, 6, 64))),
        placeholder("r", Type("uint8", (5, 64))),
    )
    for most in (3, 20, 127):
        for _ in range(2):
            w = rng.integers(-most, most + 1, (3, 3, 1, 64)).astype(np.int8)
            w[0] = most  # neighbours of one sign
            outputs.append(make("conv", x, constant(w), pads=(1,) * 4, group=64))
            w = rng.integers(-most, most + 1, (3, 3, 64, 32)).astype(np.int8)
            w[..., :16] = most
            outputs.append(make("conv", x, constant(w), pads=(1,) * 4))
            outputs.append(make("matmul", rows, constant(w[0, 0])))
    feeds = [np.full(n.type.dims, 255, np.uint8) for n in (x, rows)]
    outputs_agree([x, rows], outputs, isa, *feeds)


def test_moves_and_windows_by_other_numbers() -> None:
    def ints(*numbers: int) -> Node:
        return constant(np.array(numbers, np.int64))

    x = placeholder("x", Type("float32", (1, 6, 6, 6)))
    outputs = [make("CumSum", x, constant(np.int64(axis))) for axis in (1, 2, 3)]
    for i in range(3):
        outputs += [
            make("Slice", x, ints(i), ints(i + 3), ints(1)),
            make("Slice", x, ints(0), ints(3), ints(i + 1)),
            make("Slice", x, ints(5 - i), ints(-7), ints(2), ints(-1 - i)),
            make("Pad", x, ints(0, i, 0, 0, 0, 2 - i, 0, 0), constant(np.float32(i))),
            make("ReduceSum", x, ints(i + 1), keepdims=0),
            make("ReduceLogSumExp", x, ints(i + 1), keepdims=0),
        ]
    sizes = [(1, 12, 12, 6), (1, 9, 16, 6)]
    outputs += [make("Resize", x, None, None, ints(*s), mode="linear") for s in sizes]
    scales = [(1, 2, 2, 1), (1, 2.1, 2.1, 1)]  # of one output size
    for s in scales:
        given = constant(np.array(s, np.float32))
        outputs.append(make("Resize", x, None, given, mode="linear"))
    outputs_agree([x], outputs, isas()[-1], normal((1, 6, 6, 6)), atol=1e-5)


def test_an_output_takes_no_memory_that_the_kernel_reads_through_another_view() -> None:
    """The sum is stored where nothing is read any more, though an addend of its size ends here."""
    x, shape = placeholder("x", Type("float32", (1, 64, 512))), constant(np.array([64, 512]))
    made = make("Relu", x)
    one, other = (make("Reshape", made, shape) for _ in range(2))
    w = constant(normal((512, 512)) / 32)
    total = make("Add", make("matmul", one, w), other)
    graph = Graph((x,), (make("Neg", total),), ("y",))
    feed = {"x": normal((1, 64, 512), 1)}
    got = qcompiler.load(assemble(plan(graph, device(isas()[-1])), Watch())).run(feed)["y"]
    compare(got, evaluate(graph, feed)["y"], rtol=1e-4, atol=1e-4)


# -- whole models


def model(nodes: list[onnx.NodeProto], weights: dict[str, Array], *shape: int) -> onnx.ModelProto:
    """ONNX nodes from x to the outputs called y..."""
    outputs = [n for node in nodes for n in node.output if n.startswith("y")]
    stored = [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()]
    graph = helper.make_graph(
        nodes,
        "equal_layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_four_equal_convolutions_in_int8_of_which_two_end_in_relu() -> None:
    """Zero points of 0 after Relu, others after the rest: cosine to float was 0.34."""
    rng, nodes, weights, at = np.random.default_rng(0), [], {}, "x"
    for i in range(4):
        weights[f"w{i}"] = (rng.standard_normal((32, 32, 3, 3)) / 17).astype(np.float32)
        name = "y" if i == 3 else f"conv{i}"
        nodes.append(helper.make_node("Conv", [at, f"w{i}"], [name], name, pads=[1, 1, 1, 1]))
        at = name
        if i < 2:
            nodes.append(helper.make_node("Relu", [at], [f"relu{i}"]))
            at = f"relu{i}"
    whole = model(nodes, weights, 1, 32, 16, 16)
    samples = [{"x": rng.standard_normal((1, 32, 16, 16)).astype(np.float32)} for _ in range(3)]
    exact = qcompiler.load(qcompiler.compile(whole)).run(samples[0])["y"].ravel()
    made = qcompiler.compile(whole, precision="int8", calibration=samples)
    coarse = qcompiler.load(made).run(samples[0])["y"].ravel()
    assert exact @ coarse / np.sqrt((exact @ exact) * (coarse @ coarse)) > 0.99


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("axis", [None, 1])
def test_pairs_of_quantize_and_dequantize_by_other_zero_points(
    dtype: str, axis: int | None
) -> None:
    nodes, weights = [], {}
    shape = () if axis is None else (16,)
    attrs = {} if axis is None else {"axis": axis}
    limits = np.iinfo(dtype)
    pairs = [(0.02, 0), (0.03, 100), (0.02, limits.max), (0.5, 0), (0.01, 1)]
    for i, (scale, zero) in enumerate(pairs):
        weights[f"s{i}"] = np.full(shape, scale, np.float32)
        weights[f"z{i}"] = np.full(shape, zero, dtype)
        names = [f"s{i}", f"z{i}"]
        nodes.append(helper.make_node("QuantizeLinear", ["x", *names], [f"q{i}"], **attrs))
        nodes.append(helper.make_node("DequantizeLinear", [f"q{i}", *names], [f"y{i}"], **attrs))
    whole, x = model(nodes, weights, 2, 16, 9), {"x": normal((2, 16, 9))}
    got, want = qcompiler.load(qcompiler.compile(whole)).run(x), evaluate(read(whole, {}), x)
    for i, (scale, _) in enumerate(pairs):
        assert np.abs(got[f"y{i}"] - want[f"y{i}"]).max() <= 1.01 * scale
        assert (got[f"y{i}"] != want[f"y{i}"]).mean() < 0.02  # quotients halfway between two
