"""Sizes that a run computes from its own through floats, as detectors resize images: what follows,
each operator at many sizes as onnxruntime computes it, with NaN behind what counts; and a detector
as an artifact, whose runs of a wrong size fail.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import qcompiler
from qcompiler.ir import Type, constant, placeholder
from qcompiler.onnx_io.computed import extremes
from qcompiler.ops import evaluate, make
from tests.oracles import session
from tests.rewrite.test_padding import Ranges, behind_nan, model_of, opened

RANGES: Ranges = {"h": (3, 17), "w": (3, 17)}
SIZES = ((17, 17), (3, 3), (3, 17), (17, 4), (7, 7), (11, 12))

HEAD = """sh = Shape<start=2>(x) two = Constant<value_ints=[1,2]>()
    least = ReduceMax<keepdims=0>(sh) whole = Cast<to=1>(least) size = Constant<value_float=12.0>()
    part = Reciprocal(whole) f = Mul(part, size) each = Cast<to=1>(sh) long = Mul(each, f)
    down = Floor(long) n = Cast<to=7>(down) to = Concat<axis=0>(two, n)
    v = Resize<mode="linear">(x, , , to)"""
"""v: float[1,2,?,?], the longer side 12 or 11, as rounding has it."""

PADDED = """own = Shape<start=2>(v) real = Cast<to=1>(own) four = Constant<value_float=4.0>()
    fours = Div(real, four) up = Ceil(fours) back = Mul(up, four) full = Cast<to=7>(back)
    more = Sub(full, own) zeros = Constant<value_ints=[0,0,0,0,0,0]>()
    pads = Concat<axis=0>(zeros, more) p = Pad(v, pads)"""
"""p: float[1,2,?,?], of multiples of 4."""

CASES = {
    "resized": "y = Identity(v)",
    "padded": f"{PADDED} y = Identity(p)",
    "padded by a number": """b = Constant<value_ints=[0,0,0,0,0,0,1,2]>()
        c = Constant<value_float=7.0>() y = Pad(v, b, c)""",
    "convolved": f"""{PADDED} w = Constant<value = float[3,2,3,3] {{@54}}>()
        y = Conv<pads=[1,1,1,1], strides=[2,2]>(p, w)""",
    "convolved beyond": """w = Constant<value = float[3,2,2,2] {@24}>()
        y = Conv<pads=[0,0,2,2]>(v, w)""",
    "transposed": """w = Constant<value = float[2,3,3,3] {@54}>()
        y = ConvTranspose<pads=[1,1,1,1], strides=[2,2]>(v, w)""",
    "largest": "y = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(v)",
    "averages": """y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2],
        count_include_pad=1>(v)""",
    "all averaged": "y = GlobalAveragePool(v)",
    "all largest": "y = GlobalMaxPool(v)",
    "normalized": """s = Constant<value_floats=[1.0,2.0]>() b = Constant<value_floats=[0.5,0.0]>()
        y = InstanceNormalization(v, s, b)""",
    "groups": """s = Constant<value_floats=[1.0]>() b = Constant<value_floats=[0.5]>()
        g = Constant<value_ints=[0,1,-1]>() r = Reshape(v, g)
        i = InstanceNormalization(r, s, b) l = Shape(v) y = Reshape(i, l)""",
    "pixels by channels": f"{PADDED} y = SpaceToDepth<blocksize=2>(p)",
    "rows": """t = Transpose<perm=[0,2,3,1]>(v) r = Constant<value_ints=[1,-1,2]>()
        y = Reshape(t, r)""",
    "rows and back": """t = Transpose<perm=[0,2,3,1]>(v) r = Constant<value_ints=[-1,2]>()
        z = Reshape(t, r) l = Shape(t) y = Reshape(z, l)""",
    "pieces": """t = Transpose<perm=[0,2,3,1]>(v) r = Constant<value_ints=[-1,2]>()
        a = Reshape(t, r) m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(v)
        q = Transpose<perm=[0,2,3,1]>(m) b = Reshape(q, r) c = Concat<axis=0>(a, b)
        i0 = Constant<value_ints=[0]>() i1 = Constant<value_ints=[1]>()
        sa = Shape<end=1>(a) sb = Shape<end=1>(b) all = Add(sa, sb)
        first = Slice(c, i0, sa, i0) second = Slice(c, sa, all, i0)
        low = ReduceMin<keepdims=1>(first, i0) y = Sub(second, low)""",
    "a pyramid": f"""{PADDED} w = Constant<value = float[2,2,3,3] {{@36}}>()
        half = Conv<pads=[1,1,1,1], strides=[2,2]>(p, w) l = Shape<start=2>(p)
        s = Concat<axis=0>(two, l) u = Resize<mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor">(half, , , s)
        y = Add(p, u)""",
    **{
        f"{mode} {way}": f"""l = Shape<start=2>(x) s = Concat<axis=0>(two, l)
        y = Resize<mode="{mode}", coordinate_transformation_mode="{way}">(v, , , s)"""
        for mode in ("nearest", "linear", "cubic")
        for way in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
    },
    "twice": 'f2 = Constant<value_floats=[1.0,1.0,2.0,3.0]>() y = Resize<mode="linear">(v, , f2)',
}


def _model(name: str) -> onnx.ModelProto:
    lines = f"g (float[1,2,h,w] x) => (float[a,b,c,d] y) {{ {HEAD} {CASES[name]} }}"
    model = model_of(lines)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


FIRST = ("nearest asymmetric", "linear half_pixel", "cubic half_pixel")
"""Of the ways to resize, those that are not left to CI."""


def _case(name: str) -> object:
    slow = name.startswith(("nearest", "linear", "cubic")) and name not in FIRST
    return pytest.param(name, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("name", [_case(name) for name in CASES])
def test_what_follows_a_computed_size_is_exact_in_every_run(name: str) -> None:
    model = _model(name)
    made, engine = opened(model, RANGES), session(model)
    for h, w in SIZES:
        x = np.random.default_rng(h * w).standard_normal((1, 2, h, w)).astype(np.float32)
        (want,) = engine.run(None, {"x": x})
        found = evaluate(made.graph, behind_nan(made.graph, {"x": x}, {"h": h, "w": w}))["y"]
        if not made.graph.extents:  # of an open size, which a run cuts it to
            found = found[tuple(map(slice, want.shape))]
        assert found.shape == want.shape, (h, w)
        np.testing.assert_allclose(found, want, 1e-4, 1e-4, err_msg=f"{h} x {w}")


def test_a_computed_size_is_what_float32_makes_of_it() -> None:
    size = make("Shape", placeholder("x", Type("int8", ("h",))))
    whole = make("Cast", size, to="float32")
    share = make("Mul", make("Reciprocal", whole), constant(np.float32(96)))
    made = make("Cast", make("Floor", make("Mul", whole, share)), to="int64")
    for size in (1, 51, 95, 97, 311, 499):
        own = np.float32(size) * (np.float32(1) / np.float32(size) * np.float32(96))
        assert extremes(made, {"h": (size, size)}) == ([int(own)], [int(own)])
    assert extremes(made, {"h": (1, 500)}) == ([95], [96])
    assert extremes(made, {"h": (1, 1 << 23)}) is None


@pytest.mark.parametrize(
    "lines",
    [
        'y = MaxPool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER">(v)',
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(v)",
        "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(v)",
    ],
)
def test_windows_whose_padding_depends_on_a_computed_size_are_refused(lines: str) -> None:
    model = model_of(f"g (float[1,2,h,w] x) => (float[a,b,c,d] y) {{ {HEAD} {lines} }}")
    with pytest.raises(qcompiler.Error, match=r"Pool.*whose size is decided by data"):
        opened(model, RANGES)


DETECTOR = f"""g (float[1,2,h,w] x) => (float[m] s, float[m,4] b) {{ {HEAD} {PADDED}
    k = Constant<value = float[2,2,3,3] {{@36}}>() c = Conv<pads=[1,1,1,1], strides=[2,2]>(p, k)
    t = Transpose<perm=[0,2,3,1]>(c) all = Constant<value_ints=[-1]>() flat = Reshape(t, all)
    low = Constant<value_float=0.1>() keep = Greater(flat, low) at = NonZero(keep)
    i0 = Constant<value_ints=[0]>() i1 = Constant<value_ints=[1]>() best = Squeeze(at, i0)
    s = Gather(flat, best) number = Cast<to=1>(best) column = Unsqueeze(number, i1)
    g = Reciprocal(f) place = Mul(column, g) b = Concat<axis=1>(place, place, column, column) }}"""
"""What is above a score after a convolution of the resized image, and its place in the original."""


@pytest.mark.slow
def test_a_detector_that_resizes_images_runs_and_refuses_other_sizes() -> None:
    model = model_of(DETECTOR)
    engine = session(model)
    dims = {"h": "3..17", "w": "3..17"}
    loaded = qcompiler.load(qcompiler.compile(model, dims=dims, threads=1))
    for h, w in SIZES:
        x = np.random.default_rng(h * w).standard_normal((1, 2, h, w)).astype(np.float32)
        found = loaded.run({"x": x})
        for output, want in zip(("s", "b"), engine.run(None, {"x": x}), strict=True):
            assert found[output].shape == want.shape
            np.testing.assert_allclose(found[output], want, 1e-4, 1e-4)
    with pytest.raises(qcompiler.Error, match=r"h.*18|18.*h"):
        loaded.run({"x": np.zeros((1, 2, 18, 9), np.float32)})
