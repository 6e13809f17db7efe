"""A batch stays open only where samples are proven not to meet."""

import onnx
import pytest

from qcompiler.artifact.sizes import Size
from qcompiler.errors import Error
from qcompiler.onnx_io.reader import read
from qcompiler.plan.alone import demand_alone

CONSTANTS = """
    zero = Constant <value = int64[1] {0}> ()
    one = Constant <value = int64[1] {1}> ()
    two = Constant <value = int64[1] {2}> ()
    minus = Constant <value = int64[1] {-1}> ()
    w = Constant <value = float[4,4] {1,2,3,4,1,2,3,4,1,2,3,4,1,2,3,4}> ()
    r = Constant <value = float[1,4,4] {1,2,3,4,1,2,3,4,1,2,3,4,1,2,3,4}> ()
    first = Constant <value = int64 {0}> ()
    by = Constant <value = int64 {1}> ()
    wide = Constant <value = int64 {16}> ()
    shape = Shape(x)
    n = Gather(shape, zero)
"""


def prove(body: str) -> None:
    """Of the graph float[n, 4, 4] x -> y, in ONNX's text."""
    model = onnx.parser.parse_model(f"""
    <ir_version: 8, opset_import: ["": 18]>
    made (float[n, 4, 4] x) => (float y) {{ {CONSTANTS} {body} }}""")
    demand_alone(read(model), Size.of("n"))


FLAT = """
    f = Reshape(x, minus) count = Squeeze(n, zero) i = Range(first, count, by)
    u = Unsqueeze(i, one) m = Mul(u, wide)
"""
"""All samples in one dimension, and where each begins."""

ALONE = [
    FLAT + "k = Constant<value = int64[3] {0, 5, 15}>() a = Add(k, m) y = Gather<axis=0>(f, a)",
    "y = Relu(x)",
    "a = Add(x, w) y = Softmax<axis=1>(a)",
    "y = MatMul(x, w)",
    "y = MatMul(w, x)",
    "y = MatMul(x, x)",
    "t = Transpose<perm=[1,0,2]>(x) m = MatMul(t, w) y = Transpose<perm=[1,0,2]>(m)",
    "t = Transpose<perm=[1,2,0]>(x) m = MatMul(w, t) y = Transpose<perm=[2,0,1]>(m)",
    "t = Concat<axis=0>(n, minus) y = Reshape(x, t)",
    "four = Constant<value = int64[2] {-1, 4}>() f = Reshape(x, four) m = MatMul(f, w)"
    " back = Constant<value = int64[3] {-1, 4, 4}>() y = Reshape(m, back)",
    "s = Concat<axis=0>(n, one, one) k = Constant<value = float[1,1,1] {5}>() e = Expand(k, s)"
    " y = Mul(x, e)",
    "y = ReduceMean<keepdims=0>(x, one)",
    "h, l = Split<axis=1, num_outputs=2>(x) y = Sub(h, l)",
    "t = Transpose<perm=[1,0,2]>(x) rr = Constant<value = float[1,4,4] {0}>() y0, h = RNN"
    "<hidden_size=4>(t, r, r) y = Transpose<perm=[1,0,2]>(h)",
    "i = ArgMax<axis=1>(x) c = Squeeze(i, one) y = Gather<axis=0>(w, c)",
    "y = Slice(x, zero, two, one)",
    'y = Einsum<equation="nij,njk->nik">(x, x)',
    'y = Einsum<equation="nij,jk->nik">(x, w)',
    "i = ArgMax<axis=2>(x) s = Slice(x, zero, one, two) y = ScatterElements<axis=2>(x, i, s)",
    "y = Trilu(x)",
    "i = ArgMax<axis=2>(x) k = Slice(i, zero, two, one) y = GatherND<batch_dims=1>(x, k)",
]

MIXED = [
    FLAT + "k = Constant<value = int64[3] {0, 5, 16}>() a = Add(k, m) y = Gather<axis=0>(f, a)",
    FLAT + "k = Constant<value = int64[3] {-1, 5, 9}>() a = Add(k, m) y = Gather<axis=0>(f, a)",
    FLAT + "y = Gather<axis=0>(f, u)",
    FLAT + "y = Cast<to=1>(m)",
    FLAT + "y = Mul(u, u)",
    FLAT + "y = Identity(i)",
    "y = ReduceMean<keepdims=1>(x, zero)",
    "y = Softmax<axis=0>(x)",
    "s = Cast<to=1>(n) y = Div(x, s)",
    "m = ReduceMax<keepdims=0>(x) y = Sub(x, m)",
    "t = Transpose<perm=[1,0,2]>(x) f = Constant<value = int64[3] {4, -1, 2}>() y = Reshape(t, f)",
    "y = Transpose<perm=[1,0,2]>(x)",
    "y = Slice(x, zero, two, zero)",
    "y = Slice(x, minus, zero, zero, minus)",
    "y = Concat<axis=0>(x, x)",
    "y = CumSum(x, zero)",
    "y = LayerNormalization<axis=0>(x, w)",
    "y = Gather<axis=0>(x, zero)",
    "y = Identity(w)",
    "t = Transpose<perm=[1,2,0]>(x) y = MatMul(t, x)",
    "f = Flatten<axis=0>(x) y = Softmax(f)",
    "y = Tile(x, shape)",
    "p, y = MaxPool<kernel_shape=[2]>(x)",
    "y, s, z = DynamicQuantizeLinear(x)",
    'y = Einsum<equation="nij,mjk->nik">(x, x)',
    'y = Einsum<equation="nij,njk->ik">(x, x)',
    "i = ArgMax<axis=2>(x) s = Slice(x, zero, one, two) y = ScatterElements<axis=0>(x, i, s)",
    "i = ArgMax<axis=2>(x) k = Slice(i, zero, two, one) y = GatherND(x, k)",
    "t = Transpose<perm=[1,0,2]>(x) u = Trilu(t) y = Transpose<perm=[1,0,2]>(u)",
]


@pytest.mark.parametrize("body", ALONE)
def test_samples_that_do_not_meet_are_proven_not_to(body: str) -> None:
    prove(body)


@pytest.mark.parametrize("body", MIXED)
def test_samples_that_may_meet_are_refused(body: str) -> None:
    with pytest.raises(Error, match="the size n cannot stay open"):
        prove(body)


def test_the_node_that_mixes_samples_is_named() -> None:
    with pytest.raises(Error) as e:
        prove("y = CumSum(x, zero)")
    assert "CumSum_y (CumSum)" in str(e.value)
    assert "--dim n=N" in str(e.value)
