"""Weight-only quantization: every number system against numpy, and the sizes of files."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from oracles import onnxruntime_outputs

import qcompiler
from qcompiler import ops
from qcompiler.data.calibrate import Calibration
from qcompiler.driver import Compilation
from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Type, constant, placeholder
from qcompiler.onnx_io.writer import write
from qcompiler.ops import evaluate, make
from qcompiler.options import PRECISIONS, Options
from qcompiler.quantization.codebooks import as_float, table_of
from qcompiler.stages import Choice, build, run_stage

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def network() -> Graph:
    """A convolution with a bias, one without, a product."""
    random = np.random.default_rng(5)

    def floats(*shape: int) -> Array:
        return random.standard_normal(shape).astype(np.float32)

    x = placeholder("x", Type("float32", (2, 8, 10, 10)))
    spread = np.logspace(-2, 1, 16, dtype=np.float32).reshape(-1, 1, 1, 1)
    w = floats(16, 8, 3, 3) * spread / np.float32(8)
    bias = constant(floats(16) * spread.ravel())
    a = make("Conv", x, constant(w), bias, pads=(1,) * 4, name="a")
    a = make("Relu", make("Div", a, constant(spread[:, 0])))
    b = make("Conv", a, constant(floats(16, 16, 1, 1) / np.float32(4)), name="b")
    flat = make("Reshape", make("Tanh", b), constant(np.array([2, 1600], np.int64)))
    c = make("MatMul", flat, constant(floats(1600, 40)), name="c")
    return Graph((x,), (make("Add", c, constant(floats(40))),), ("y",))


def samples(count: int = 6) -> list[dict[str, Array]]:
    random = np.random.default_rng(6)
    shape = (2, 8, 10, 10)
    return [{"x": random.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def distance(graph: Graph, other: Graph) -> float:
    """The relative error of an output."""
    feed = samples(1)[0]
    a, b = (ops.evaluate(g, feed)["y"].astype(np.float64) for g in (graph, other))
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def lowered(graph: Graph) -> Graph:
    for stage in ("fold", "fuse", "quantize", "integer", "layout"):
        graph = run_stage(graph, stage)
    return graph


BOUNDS = {
    "integer": 0.35,
    "log2": 0.4,
    "codebook": 0.3,
    "binary": 1.2,
    "ternary": 0.9,
    "float8_e4m3fn": 0.06,
    "float8_e5m2": 0.12,
    "float16": 1e-3,
    "bfloat16": 1e-2,
}


@pytest.mark.parametrize("scheme", BOUNDS)
def test_every_scheme_costs_its_rounding_only_and_lowers_exactly(scheme: str) -> None:
    graph = network()
    made = build("quantize_weights", {"scheme": scheme})(graph)
    assert 1e-6 < distance(graph, made) < BOUNDS[scheme]
    assert distance(made, lowered(made)) < 1e-5
    assert build("quantize_weights", {"scheme": scheme})(made) is made


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("group", [0, 32, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_integers_of_any_bits_and_groups(bits: int, group: int, symmetric: bool) -> None:
    graph = network()
    options = {"bits": bits, "group": group, "symmetric": symmetric}
    made = build("quantize_weights", options)(graph)
    error = {2: 1.2, 3: 0.6, 4: 0.35, 5: 0.18, 8: 0.02}[bits]
    assert distance(graph, made) < error
    ready = lowered(made)
    assert distance(made, ready) < 1e-5
    (node,) = (n for n in ready.nodes if n.op == "matmul_narrow")
    assert node.int("bits") == (bits if bits == 2 else 4 if bits <= 4 else 8)
    assert node.int("group") == (group or 1600)
    assert node.operands[1].array.max() < 1 << bits


@pytest.mark.parametrize("scheme", ["integer", "codebook", "ternary"])
def test_compensation_makes_up_for_some_of_the_rounding(scheme: str) -> None:
    graph, data = network(), Calibration(samples(12))
    options = {"scheme": scheme, "bits": 3, "include": ("a", "b")}
    near = distance(graph, build("quantize_weights", options)(graph))
    better = build("quantize_weights", {**options, "rounding": "gptq"}, data=data)(graph)
    assert distance(graph, better) < 0.95 * near


def test_single_layers_have_bits_of_their_own() -> None:
    made = build("quantize_weights", {"layers": ("a=8", "c=2"), "exclude": ("b",)})(network())
    stored = {n.name: n.operands[1] for n in made.nodes if n.op in ("Conv", "MatMul")}
    assert stored["a"].operands[0].dtype == "int8"
    assert stored["b"].is_constant
    assert stored["c"].operands[0].array.astype(int).max() <= 3


def test_the_schemes_that_onnx_can_write_run_in_onnxruntime() -> None:
    made = build("quantize_weights", {"bits": 4, "group": 32})(network())
    feed = samples(1)[0]
    # Its optimizer would quantize the activations too.
    got = onnxruntime_outputs(write(made), feed, plain=True, ours=True)["y"]
    wanted = ops.evaluate(made, feed)["y"]
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


# Number systems, against their papers.


def ones(w: Array) -> Array:
    return np.ones(w.shape)


def test_log2_numbers_are_powers_of_two() -> None:
    w = floats(5, 300).astype(np.float64)
    made = table_of(w, "log2", 4, ones(w))
    assert len(made.table) == 15
    powers = np.log2(np.abs(made.table[made.table != 0]))
    np.testing.assert_array_equal(powers, np.rint(powers))
    near = made.values(made.nearest(w))
    every = made.table[None, None] * made.scale[..., None]
    best = np.abs(every - w[..., None]).min(-1)
    np.testing.assert_allclose(np.abs(near - w), best, atol=1e-12)


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_a_codebook_is_as_good_as_that_of_plain_k_means(bits: int) -> None:
    w = floats(6, 500).astype(np.float64)
    made = table_of(w, "codebook", bits, ones(w))
    error = np.square(made.values(made.nearest(w)) - w).sum()
    size = np.sqrt(np.square(w).mean(1, keepdims=True))
    flat = (w / size).ravel()
    centers = np.linspace(flat.min(), flat.max(), 1 << bits)
    for _ in range(40):
        nearest = np.abs(flat[:, None] - centers).argmin(1)
        centers = np.array(
            [
                flat[nearest == i].mean() if (nearest == i).any() else c
                for i, c in enumerate(centers)
            ]
        )
    nearest = np.abs(flat[:, None] - centers).argmin(1)
    plain = np.square((centers[nearest].reshape(w.shape) - w / size) * size).sum()
    assert error <= plain * 1.02


def test_binary_weights_have_the_scale_of_least_error() -> None:
    w = floats(4, 200).astype(np.float64)
    made = table_of(w, "binary", 1, ones(w))
    np.testing.assert_allclose(made.scale[:, 0], np.abs(w).mean(1), rtol=1e-6)
    signs = np.sign(w)
    best = (w * signs).sum(1) / (signs * signs).sum(1)  # regression of w on its signs
    np.testing.assert_allclose(made.scale[:, 0], best, rtol=1e-6)


def test_ternary_weights_are_those_of_the_paper() -> None:
    w = floats(4, 2000).astype(np.float64)
    made = table_of(w, "ternary", 2, ones(w))
    limit = 0.7 * np.abs(w).mean(1, keepdims=True)
    for row in range(4):
        large = np.abs(w[row]) > limit[row]
        assert made.scale[row, 0] == pytest.approx(np.abs(w[row, large]).mean(), rel=1e-6)


@pytest.mark.parametrize("scheme", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_uses_its_whole_range(scheme: str) -> None:
    w = floats(3, 100).astype(np.float64)
    real, scale = as_float(w, scheme)
    dtype = np.dtype(getattr(ml_dtypes, scheme))
    np.testing.assert_array_equal(real, real.astype(dtype).astype(np.float64))
    np.testing.assert_allclose(np.abs(real).max(1), float(ml_dtypes.finfo(dtype).max))
    mantissa = 2.0 ** -(4 if scheme == "float8_e4m3fn" else 3)
    wrong = np.abs(real * scale[:, None] - w)
    assert np.all(wrong <= mantissa * np.abs(w) + scale[:, None] * 2.0**-9)


def test_rows_of_zeros_stay_zeros_or_nearly() -> None:
    w = np.zeros((3, 40))
    w[1] = floats(40)
    for scheme in ("log2", "codebook", "ternary", "binary"):
        made = table_of(w, scheme, 3, ones(w))
        assert np.abs(made.values(made.nearest(w))[0]).max() < 1e-6 or scheme == "codebook"


# Artifacts.


@pytest.mark.parametrize(
    ("scheme", "bits", "ratio"), [("codebook", 4, 0.2), ("ternary", 2, 0.15), ("float16", 0, 0.55)]
)
def test_files_hold_as_few_bits_as_there_are_numbers(
    scheme: str, bits: int, ratio: float, tmp_path: Path
) -> None:
    x = placeholder("x", Type("float32", (4, 256)))
    y = make("MatMul", x, constant(floats(256, 256)))
    model = write(Graph((x,), (y,), ("y",)))
    plain = qcompiler.compile(model, threads=1)
    option = f"quantize_weights{{scheme={scheme},bits={bits or 4}}}"
    small = qcompiler.compile(model, threads=1, passes=[option])
    sizes = [a.save(tmp_path / f"{i}.qc").stat().st_size for i, a in enumerate((plain, small))]
    weights = 256 * 256 * 4
    assert sizes[0] - sizes[1] > (1 - ratio) * weights - 16384
    feed = {"x": floats(4, 256)}
    made = qcompiler.load(tmp_path / "1.qc").run(feed)["y"]
    wanted = qcompiler.load(small).run(feed)["y"]
    np.testing.assert_array_equal(made, wanted)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"scheme": "hqq"}, "hqq"),
        ({"bits": 9}, "9 bits"),
        ({"rounding": "adaround", "scheme": "log2"}, "adaround"),
        ({"rounding": "gptq", "scheme": "float16"}, "gptq"),
        ({"rounding": "gptq"}, "needs calibration data"),
        ({"group": -1}, "groups"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(options: dict[str, object], what: str) -> None:
    with pytest.raises(Error, match=what):
        build("quantize_weights", options)(network())


def test_no_weights_at_all_stay_as_they_are() -> None:
    x = placeholder("x", Type("float32", (4, 0)))
    y = make("MatMul", x, constant(np.zeros((0, 8), np.float32)))
    graph = Graph((x,), (y,), ("y",))
    assert [n.op for n in build("quantize_weights", {})(graph).nodes] == [n.op for n in graph.nodes]


def test_every_precision_names_a_pass_and_its_options() -> None:
    for name, options in PRECISIONS.values():
        if name:
            build(name, options)
    choice = Choice({"quantize_weights": PRECISIONS["int4-weights"][1]})
    made = run_stage(run_stage(network(), "quantize", None, choice), "integer")
    assert any(n.op == "matmul_narrow" for n in made.nodes)


FINITE = (1e35, 1e-25, 1e-42)
CASES = [
    *(("int8", weight) for weight in FINITE),  # calibration refuses what is not finite
    *((p, w) for p in ("int8-dynamic", "int8-weights", "int4-weights") for w in (*FINITE, np.inf)),
]


@pytest.mark.parametrize(("precision", "weight"), CASES)
def test_weights_that_no_scale_suits_stay_float(precision: str, weight: float) -> None:
    """Not clipped to the largest scale, nor all rounded to zero."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[4, 16] x) => (float[4, 8] y, float[4, 8] z) {
            y = MatMul(x, odd)
            z = MatMul(x, w)
        }
    """)
    rng = np.random.default_rng(0)
    x, w, odd = (rng.standard_normal(s).astype(np.float32) for s in ((4, 16), (16, 8), (16, 8)))
    odd[3:] *= np.float32(weight)
    odd[:3] = 0
    for name, array in (("w", w), ("odd", odd)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    calibration = [{"x": x}] if precision == "int8" else None
    made = Compilation(model, Options(precision=precision, calibration=calibration))
    with np.errstate(invalid="ignore"):
        got = evaluate(made.lowered, {"x": x})
        np.testing.assert_allclose(got["y"], x @ odd, rtol=1e-4, atol=1e-44)
    assert 0 < np.abs(got["z"] - x @ w).max() < 0.5
