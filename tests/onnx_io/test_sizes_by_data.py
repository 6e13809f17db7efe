"""Sizes that data decide go through what follows them: each operator on what NonZero and Compress
select, as onnxruntime computes it; a whole detector's end; branches of unlike sizes.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

import qcompiler
from qcompiler.ir import Array, numpy_dtype
from qcompiler.onnx_io.reader import read
from qcompiler.ops import evaluate
from tests.oracles import session
from tests.rewrite.test_padding import behind_nan, opened

HEAD = """<ir_version: 8, opset_import: ["": 18]>
g (float[7,3] x, float[7] z) => ({kind} y) {{
  i0 = Constant<value = int64[1] {{0}}>()
  i1 = Constant<value = int64[1] {{1}}>()
  i2 = Constant<value = int64[1] {{2}}>()
  m1 = Constant<value = int64[1] {{-1}}>()
  big = Constant<value = int64[1] {{9223372036854775807}}>()
  c = Constant<value = float {{0.5}}>()
  picked = Greater(z, c)
  places = NonZero(picked)
  rows = Transpose<perm = [1, 0]>(places)
  v = GatherND(x, rows)
  s = Compress<axis = 0>(z, picked)
  at = Squeeze(places, i0)
  {lines}
}}"""

CASES = {
    "cut by data": """one = ReduceSum<keepdims = 1>(at, i0)
  seven = Constant<value = int64[1] {{7}}>()
  from = Mod(one, seven)
  w = Slice(x, from, m1, i0)
  y = ReduceSum<keepdims = 0>(w, i0)""",
    "cut by data, and returned": """one = ReduceSum<keepdims = 1>(at, i0)
  seven = Constant<value = int64[1] {{7}}>()
  to = Mod(one, seven)
  y = Slice(x, i1, to, i0)""",
    "sums": "y = ReduceSum<keepdims = 0>(v, i0)",
    "means": "y = ReduceMean<keepdims = 1>(v, i0)",
    "least": "y = ReduceMin<keepdims = 0>(v)",
    "of rows": "y = ReduceMax<keepdims = 0>(v, i1)",
    "soft": "y = Softmax<axis = 0>(v)",
    "soft rows": "y = Softmax<axis = 1>(v)",
    "flat": "y = Reshape(v, m1)",
    "flat and back": """f = Reshape(v, m1)
  three = Constant<value = int64[2] {{-1, 3}}>()
  y = Reshape(f, three)""",
    "by its own shape": """sh = Shape(v)
  n = Gather<axis = 0>(sh, i0)
  target = Concat<axis = 0>(n, m1, i1)
  y = Reshape(v, target)""",
    "filled": """sh = Shape(v)
  y = ConstantOfShape<value = float[1] {{3.0}}>(sh)""",
    "expanded": """sh = Shape(v)
  y = Expand(c, sh)""",
    "counted": """sh = Shape(v)
  zero = Constant<value = int64 {{0}}>()
  one = Constant<value = int64 {{1}}>()
  n = Gather<axis = 0>(sh, zero)
  r = Range(zero, n, one)
  y = Cast<to = 1>(r)""",
    "joined": "y = Concat<axis = 0>(v, x, v)",
    "joined beside": "y = Concat<axis = 1>(v, v)",
    "behind": "y = Concat<axis = 0>(x, v)",
    "cut": "y = Slice(v, i1, big, i0)",
    "cut short": "y = Slice(v, i0, i2, i0)",
    "all but the last": "y = Slice(v, i0, m1, i0)",
    "columns": "y = Slice(v, i1, i2, i1)",
    "from the end": "y = Gather<axis = 0>(s, m1)",
    "best": """sh = Shape(s)
  two = Concat<axis = 0>(i2, sh)
  k = ReduceMin<keepdims = 1>(two)
  y, j = TopK(s, k)""",
    "best rows": """sh = Shape(s)
  two = Concat<axis = 0>(i2, sh)
  k = ReduceMin<keepdims = 1>(two)
  t, j = TopK<largest = 0>(s, k)
  y = Gather<axis = 0>(v, j)""",
    "again": """less = Less(s, c)
  more = Not(less)
  y = Compress<axis = 0>(v, more)""",
    "product": "t = Transpose<perm = [1, 0]>(v)\n  y = MatMul(t, v)",
    "product of rows": "t = Transpose<perm = [1, 0]>(x)\n  y = MatMul(v, t)",
    "linear": "y = Gemm<transA = 1>(v, v)",
    "written": "y = ScatterElements<axis = 0>(z, at, s)",
    "written rows": "y = ScatterND(x, rows, v)",
    "with one another": "w = Mul(s, c)\n  u = Unsqueeze(w, i1)\n  y = Add(v, u)",
    "regions": """image_shape = Constant<value = int64[4] {{1, 1, 7, 3}}>()
  image = Reshape(x, image_shape)
  column = Unsqueeze(s, i1)
  corners = Concat<axis = 1>(v, column)
  none = Sub(at, at)
  y = RoiAlign<output_height = 2, output_width = 2, sampling_ratio = 2>(image, corners, none)""",
    "quantized": """scale = Constant<value_float = 0.05>()
  none = Constant<value = uint8 {{128}}>()
  bytes = QuantizeLinear(v, scale, none)
  y = DequantizeLinear(bytes, scale, none)""",
    "quantized by columns": """scales = Constant<value_floats = [0.05, 0.07, 0.11]>()
  nones = Constant<value = int8[3] {{1, 2, 3}}>()
  bytes = QuantizeLinear<axis = 1>(v, scales, nones)
  y = DequantizeLinear<axis = 1>(bytes, scales, nones)""",
    "quantized by its range": """bytes, scale, none = DynamicQuantizeLinear(v)
  y = DequantizeLinear(bytes, scale, none)""",
    "product of integers": """bytes, scale, none = DynamicQuantizeLinear(v)
  w = Constant<value = int8[3, 2] {{1, -2, 3, -4, 5, 6}}>()
  sums = MatMulInteger(bytes, w, none)
  y = Cast<to = 1>(sums)""",
    "product of quantized": """scale = Constant<value_float = 0.05>()
  none = Constant<value = uint8 {{128}}>()
  bytes = QuantizeLinear(v, scale, none)
  w = Constant<value = int8[3, 2] {{1, -2, 3, -4, 5, 6}}>()
  zero = Constant<value = int8 {{0}}>()
  p = QLinearMatMul(bytes, scale, none, w, c, zero, c, none)
  y = DequantizeLinear(p, c, none)""",
    "running": "y = CumSum<reverse = 1>(s, i0)",
    "first": "a = ArgMax<axis = 0>(v)\n  y = Cast<to = 1>(a)",
    "size": "n = Size(v)\n  y = Cast<to = 1>(n)",
    "parts": "y, w = Split<axis = 1>(v, parts)",
    "either": """n = Size(v)
  none = Constant<value = int64 {{0}}>()
  empty = Equal(n, none)
  y = If(empty) <
    then_branch = a () => (float[k, 3] p) {{ p = Identity(x) }},
    else_branch = b () => (float[k, 3] q) {{ q = Add(v, v) }}
  >""",
}


def _model(name: str) -> onnx.ModelProto:
    lines = CASES[name].replace("{{", "{").replace("}}", "}")
    if name == "parts":
        lines = "parts = Constant<value = int64[2] {1, 2}>()\n  " + lines
    model = onnx.parser.parse_model(HEAD.format(kind="float[?]", lines=lines))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def _samples() -> list[dict[str, Array]]:
    rng = np.random.default_rng(6)
    made = []
    for low in (0.6, 0.3, 0.0):  # all are picked, some, few
        z = rng.uniform(low, 0.4 + low, 7).astype(np.float32)
        made.append({"x": rng.standard_normal((7, 3)).astype(np.float32), "z": z})
    made[2]["z"][4] = 0.9
    hidden = [{**m, "x": np.where(m["z"][:, None] > 0.5, m["x"], np.float32(np.nan))} for m in made]
    return made + hidden  # what is not picked may be no number


@pytest.mark.parametrize("name", CASES)
def test_what_data_select_goes_through(name: str) -> None:
    model = _model(name)
    graph = read(model)
    engine = session(model)
    for given in _samples():
        (want,) = engine.run(None, given)
        found = evaluate(graph, given)["y"]
        assert found.shape == want.shape
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_machine_code_computes_the_same() -> None:
    """All but branches in one model, so that it is compiled once."""
    names = [n for n in CASES if n not in ("either", "parts")]
    lines = "\n  ".join(_renamed(CASES[n], f"_{i}") for i, n in enumerate(names))
    text = HEAD.format(kind="float[?]", lines=lines.replace("{{", "{").replace("}}", "}"))
    outputs = ", ".join(f"float[?] y_{i}" for i in range(len(names)))
    model = onnx.parser.parse_model(text.replace("float[?] y)", f"{outputs})"))
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    engine, compiled = session(model), qcompiler.load(qcompiler.compile(model, threads=2))
    for given in _samples():
        made = compiled.run(given)
        for name, i, want in zip(names, range(len(names)), engine.run(None, given), strict=True):
            assert made[f"y_{i}"].shape == want.shape, name
            np.testing.assert_allclose(made[f"y_{i}"], want, 1e-4, 1e-5, err_msg=name)


def _renamed(lines: str, suffix: str) -> str:
    """Lines whose own names end in a suffix."""
    own = {w.strip() for line in lines.splitlines() for w in line.split(" = ")[0].split(",")}
    pattern = "|".join(map(re.escape, own))
    return re.sub(rf"\b({pattern})\b", rf"\1{suffix}", lines)


@pytest.mark.parametrize("rows", ["256", "s"])
def test_rows_that_are_not_selected_do_not_show_in_others(rows: str) -> None:
    """Strassen's products mix two rows; they are chosen for the same product of all rows."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((512, 1536)).astype(np.float32)

    def artifact(line: str) -> qcompiler.Artifact:
        model = onnx.parser.parse_model(
            f"""<ir_version: 8, opset_import: ["": 18]>
            g (float[1,{rows},512] x, bool[{rows}] c) => (float[1,a,1536] y) {{ {line}
            y = MatMul(r, w) }}"""
        )
        model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
        model.graph.output[0].type.tensor_type.ClearField("shape")
        dims = {"s": "1..256"} if rows == "s" else None
        return qcompiler.compile(model, target="x86_avx2", threads=1, dims=dims)

    def strassen(made: qcompiler.Artifact) -> bool:
        (variant,) = made.manifest.variants
        return any("strassen" in step.kernel for step in variant.steps)

    every = "i = Constant<value_ints=[1]>() z = Cast<to=1>(c) u = Unsqueeze(z, i) r = Mul(x, u)"
    assert strassen(artifact(every))
    selecting = artifact("r = Compress<axis=1>(x, c)")
    assert not strassen(selecting)
    model = qcompiler.load(selecting)
    for count in (1, 101, 255):
        x = rng.standard_normal((1, 256, 512)).astype(np.float32)
        kept = rng.permutation(256) < count
        x[:, ~kept] = np.nan
        y = model.run({"x": x, "c": kept})["y"]
        np.testing.assert_allclose(y, x[:, kept] @ w, rtol=1e-4, atol=1e-3)


def test_nothing_selected_leaves_nothing() -> None:
    given = {"x": np.ones((7, 3), np.float32), "z": np.zeros(7, np.float32)}
    for name, shape in {"joined": (7, 3), "flat": (0,), "best": (0,), "either": (7, 3)}.items():
        assert evaluate(read(_model(name)), given)["y"].shape == shape
    assert not evaluate(read(_model("sums")), given)["y"].any()


@pytest.mark.parametrize(("kind", "value"), [("float16", 300.0), ("bfloat16", 1.5)])
def test_means_of_half_floats_are_summed_and_divided_in_float32(kind: str, value: float) -> None:
    """The sum of 259 values is above the largest float16, and 259 is no bfloat16."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18]>
        g ({kind}[400] x, bool[400] c) => ({kind}[1,1] y) {{ p = NonZero(c) s = Gather(x, p)
        i1 = Constant<value_ints = [1]>() y = ReduceMean<keepdims = 1>(s, i1) }}"""
    )
    x = np.full(400, value, np.float32).astype(numpy_dtype(kind))
    found = evaluate(read(model), {"x": x, "c": np.arange(400) < 259})["y"]
    assert found == x[0]


ALL = """<ir_version: 8, opset_import: ["": 18]>
    g (float[{n},3] x) => (float[{n},3] y, int64[1,m] z) {{
    sh = Shape<end = 1>(x) ones = ConstantOfShape<value = int64[1] {{1}}>(sh) p = NonZero(ones)
    i0 = Constant<value_ints = [0]>() at = Squeeze(p, i0) r = Cast<to = 1>(at)
    i1 = Constant<value_ints = [1]>() c = Unsqueeze(r, i1) y = Add(x, c)
    few = Constant<value = int64[2,3] {{3,0,3,0,1,3}}>() q = NonZero(few) u, f, v, k = Unique(few)
    up = Unsqueeze(u, i0) s = Slice(q, i0, i1, i0) z = Concat<axis = 1>(s, up) }}"""
"""Places of all that there is, as PyTorch exports arange; places and unlike values of constants."""


@pytest.mark.parametrize("n", ["7", "n"])
def test_what_is_known_before_a_run_selects_a_known_number(n: str) -> None:
    model = onnx.parser.parse_model(ALL.format(n=n))
    ranges: dict[str, tuple[int, int]] = {} if n == "7" else {"n": (1, 9)}
    made, engine = opened(model, ranges), session(model)
    assert not made.graph.extents
    for size in (7,) if n == "7" else (9, 1, 4):
        x = np.random.default_rng(size).standard_normal((size, 3)).astype(np.float32)
        want = dict(zip(("y", "z"), engine.run(None, {"x": x}), strict=True))
        found = evaluate(made.graph, behind_nan(made.graph, {"x": x}, {"n": size}))
        np.testing.assert_array_equal(found["y"][:size], want["y"])
        np.testing.assert_array_equal(found["z"], want["z"])
