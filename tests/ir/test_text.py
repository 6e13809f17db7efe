"""A graph's text reads back as the same graph; invalid text is an error that names the line."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompiler.errors import Error
from qcompiler.ir import Attr, Graph, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.ir.text import INLINE_ELEMENTS, read, write
from qcompiler.ops import make

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029"), max_size=8
)  # the ONNX reader allows no line breaks in names
DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "uint8", "int64", "bool", "int4")
FLOATS = st.floats(width=32, allow_nan=False)
ARRAYS = st.sampled_from(("float32", "float16", "int8", "uint8", "int64", "bool")).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, max_side=4))
)
ATTRS: st.SearchStrategy[Attr] = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    FLOATS,
    NAMES,
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3).map(tuple),
    st.lists(FLOATS, min_size=1, max_size=3).map(tuple),
    st.lists(NAMES, min_size=1, max_size=3).map(tuple),
    ARRAYS,
)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Arbitrary nodes: the text does not depend on what an operator does."""
    dims = st.one_of(st.integers(0, 9), st.sampled_from(("N", "seq_len", "?7")))
    types = st.builds(Type, st.sampled_from(DTYPES), st.lists(dims, max_size=3).map(tuple))
    names = draw(st.lists(NAMES.filter(bool), min_size=1, max_size=3, unique=True))
    inputs = [placeholder(n, draw(types)) for n in names]
    nodes: list[Node] = [*inputs]
    for _ in range(draw(st.integers(0, 6))):
        if draw(st.booleans()):
            nodes.append(constant(draw(ARRAYS), draw(NAMES)))
            continue
        operands = draw(st.lists(st.one_of(st.none(), st.sampled_from(nodes)), max_size=3))
        attrs = draw(st.dictionaries(st.sampled_from(("axis", "mode", "to")), ATTRS, max_size=3))
        made = draw(st.lists(types, min_size=1, max_size=2))
        nodes.append(Node("Op", tuple(operands), attrs, tuple(made), draw(NAMES)))
    outputs = draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=3))
    spelled = tuple(f"out{i}" for i in range(len(outputs)))
    return Graph(tuple(inputs), tuple(outputs), spelled, draw(NAMES))


def same_attr(a: Attr, b: Attr) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        assert isinstance(a, np.ndarray)
        assert isinstance(b, np.ndarray)
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


def assert_same(a: Graph, b: Graph) -> None:
    assert (a.name, a.output_names) == (b.name, b.output_names)
    order = {n: i for i, n in enumerate(a.nodes)}
    twins = {n: i for i, n in enumerate(b.nodes)}
    assert [order[o] for o in a.outputs] == [twins[o] for o in b.outputs]
    for x, y in zip(a.nodes, b.nodes, strict=True):
        assert (x.op, x.name, x.types) == (y.op, y.name, y.types)
        assert [i and order[i] for i in x.inputs] == [i and twins[i] for i in y.inputs]
        assert x.attrs.keys() == y.attrs.keys()
        assert all(same_attr(x.attrs[k], y.attrs[k]) for k in x.attrs), (x.attrs, y.attrs)


@given(graphs())
def test_what_is_written_reads_back_as_the_same_graph(graph: Graph) -> None:
    body, arrays = write(graph)
    again = read(body, arrays)
    assert_same(graph, again)
    assert write(again)[0] == body


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int4", "uint4", "float16"])
def test_low_precision_constants_are_written_out(dtype: str) -> None:
    value = np.array([0, 1, -1 if dtype != "uint4" else 2, 3]).astype(numpy_dtype(dtype))
    x = constant(value, "x")
    again = read(write(Graph((), (x,), ("x",)))[0])
    np.testing.assert_array_equal(
        again.outputs[0].array.astype(np.float32), value.astype(np.float32)
    )
    assert again.outputs[0].dtype == dtype


def test_infinities_and_nan_are_written_out() -> None:
    value = np.array([np.inf, -np.inf, np.nan, -0.0, 1e-45, 3.4028235e38], np.float32)
    again = read(write(Graph((), (constant(value),), ("x",)))[0]).outputs[0].array
    assert again.tobytes() == value.tobytes()


def test_a_large_constant_is_handed_over_beside_the_text() -> None:
    value = np.arange(INLINE_ELEMENTS + 1, dtype=np.float32)
    body, arrays = write(Graph((), (constant(value, "w"),), ("w",)))
    assert "#w" in body
    assert arrays["w"] is value
    with pytest.raises(Error, match="no array given for #w"):
        read(body)


def test_types_and_attributes_left_out_are_filled_in() -> None:
    graph = read(
        """graph (%x: float32[N,8]) {
          // a comment
          %0 = Softmax(%x)
          %1 = Unsqueeze(%0, %axes)
          return y=%1
        }""".replace("%1 = U", "%axes: int64[1] = constant [0]\n          %1 = U"),
        make=make,
    )
    assert str(graph.outputs[0].type) == "float32[1,N,8]"
    assert graph.outputs[0].operands[0].int("axis") == -1


def test_an_absent_input_is_an_underscore() -> None:
    graph = read(
        """graph (%x: float32[4], %high: float32[]) {
          %0 = Clip(%x, _, %high)
          return "y"=%0
        }""",
        make=make,
    )
    assert graph.outputs[0].inputs[1] is None
    assert "Clip(%x, _, %high)" in write(graph)[0]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("", "expected 'graph'"),
        ("graph (%x: float32[1]) { return y=%z }", "%z is used before its definition"),
        ("graph (%x: float32[1]) { %0 = Relu(%x) return y=%0 }", "%0 has no type"),
        ("graph (%x: float32[1]) { %0 = constant [1] return y=%0 }", "a constant needs its type"),
        ("graph (%x: float32[1]) {\n  %0: float32[1] = Relu(%x,, %x)", "line 2"),
        ("graph (%x: float32[1]) { § }", "unreadable text"),
        ("graph (%x: float32[1]) { %0: float32[1] = Relu(%x) {axis=} }", "near"),
        ("graph (%x: float32[1]) { %0: float32[2] = constant [1.0] return y=%0 }", "values"),
        ("graph (%x: float99[1]) { return y=%x }", "float99"),
    ],
)
def test_what_is_no_graph_is_a_clear_error(body: str, what: str) -> None:
    with pytest.raises(Error, match=what):
        read(body)
