"""What exporters compute of shapes is known, as expressions of open sizes."""

import onnx
import pytest

from qcompiler.ir import Graph
from qcompiler.onnx_io.reader import read


def graph_of(body: str, x: str = "batch, 3, h, w", y: str = "a, b") -> Graph:
    """The graph of `x` -> `y`, in ONNX's text."""
    return read(
        onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 17]>
        made (float[{x}] x) => (float[{y}] y) {{
            zero = Constant <value = int64[1] {{0}}> ()
            one = Constant <value = int64[1] {{1}}> ()
            two = Constant <value = int64[1] {{2}}> ()
            minus = Constant <value = int64[1] {{-1}}> ()
            shape = Shape(x)
            n = Gather(shape, zero)
            high = Gather(shape, two)
            {body}
        }}""")
    )


CASES = {
    "t = Concat<axis=0>(n, minus) y = Reshape(x, t)": ("batch", "3*h*w"),
    "rows = Mul(n, high) t = Concat<axis=0>(rows, minus) y = Reshape(x, t)": ("batch*h", "3*w"),
    "half = Div(high, two) p = ConstantOfShape(half) y = Identity(p)": ("((h)//(2))",),
    "c = Constant<value = int64[4] {4, 3, 2, 1}>() big = Mul(shape, c) y = ConstantOfShape(big)": (
        "4*batch",
        9,
        "2*h",
        "w",
    ),
    "t = Concat<axis=0>(n, two, two) m = Equal(t, minus) ones = ConstantOfShape<value ="
    " int64[1] {1}>(one) z = Where(m, ones, t) e = Slice(x, zero, one, two)"
    " k = Constant<value = float[1,2,1] {1, 2}>() y = Expand(k, z)": ("batch", 2, 2),
    "y = Concat<axis=2>(x, x)": ("batch", 3, "2*h", "w"),
    "w2 = Constant<value = float[1,3,3,3]"
    " {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}>()"
    " y = Conv<strides=[2,1], pads=[1,1,1,1]>(x, w2)": ("batch", 1, "((h + 1)//(2))", "w"),
}


@pytest.mark.parametrize(("body", "wanted"), CASES.items())
def test_shapes_are_computed_before_the_model_runs(body: str, wanted: tuple[object, ...]) -> None:
    (output,) = graph_of(body).outputs
    assert output.shape == wanted


def test_data_are_not_taken_for_shapes() -> None:
    (output,) = graph_of("i = Cast<to=7>(x) f = Reshape(i, minus) y = ConstantOfShape(n)").outputs
    assert output.shape == ("batch",)
    found = graph_of(
        "s = ReduceSum<keepdims=0>(x) c = Cast<to=7>(s) r = Reshape(c, one) y = ConstantOfShape(r)"
    )
    assert str(found.outputs[0].shape[0]).startswith("?")
