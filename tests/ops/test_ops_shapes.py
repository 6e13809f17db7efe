"""Type rules: inferred types match values, symbols agree with numbers, bad input is refused."""

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_cases import as_array, attributes, foreign, node_cases

from qcompiler.errors import Error
from qcompiler.ir import Array, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.ops import OPERATORS, broadcast, known_value, make, meaning
from qcompiler.ops.movement import reshaped
from qcompiler.ops.registry import required

DTYPES = ("float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool")
WORDS = {
    "auto_pad": ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER", "nonsense"),
    "direction": ("LEFT", "RIGHT", "forward", "reverse", "bidirectional"),
    "equation": (
        "ij,jk->ik",
        "...i,...i",
        "ii",
        "i->",
        "ab,bc,cd->ad",
        "?,",
        "i...->...",
        "ij->ji",
    ),
    "mode": ("constant", "reflect", "edge", "wrap", "linear", "cubic", "nearest", "DCR", "CRD"),
    "padding_mode": ("zeros", "border", "reflection"),
    "reduction": ("none", "add", "mul", "max", "min"),
    "to": DTYPES,
    "dtype": DTYPES,
    "precision": ("float32", "float16"),
    "stash_type": ("float32",),
    "softmax_precision": ("float32",),
    "output_dtype": DTYPES,
    "coordinate_transformation_mode": ("half_pixel", "align_corners", "tf_crop_and_resize"),
    "keep_aspect_ratio_policy": ("stretch", "not_larger", "not_smaller"),
    "nearest_mode": ("floor", "ceil", "round_prefer_floor"),
    "approximate": ("none", "tanh"),
}
SMALL = st.integers(-3, 4)
HUGE = st.sampled_from((2**31, 2**62, -(2**62), 2**63 - 1))
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "INT": st.one_of(SMALL, SMALL, SMALL, HUGE),
    "FLOAT": st.floats(-4, 4, width=32),
    "INTS": st.lists(st.one_of(SMALL, SMALL, SMALL, SMALL, HUGE), max_size=6).map(tuple),
    "FLOATS": st.lists(st.floats(-4, 4, width=32), max_size=4).map(tuple),
    "STRINGS": st.lists(st.sampled_from(("Tanh", "Relu", "Affine")), max_size=4).map(tuple),
}


def kind_of(op: str, key: str) -> str:
    if op[0].isupper() and key in onnx.defs.get_schema(op).attributes:
        return onnx.defs.get_schema(op).attributes[key].type.name
    default = OPERATORS[op].defaults[key]
    return "INTS" if default is None or default is required() else "INT"


@st.composite
def any_attributes(draw: st.DrawFn, op: str) -> dict[str, Any]:
    """Some of an operator's attributes, of the right kind with any value."""
    attrs: dict[str, Any] = {}
    for key, default in OPERATORS[op].defaults.items():
        if default is not required() and draw(st.integers(0, 2)):
            continue
        if key in WORDS:
            attrs[key] = draw(st.sampled_from(WORDS[key]))
        elif kind_of(op, key) in KINDS and key != "outputs":
            attrs[key] = draw(KINDS[kind_of(op, key)])
        elif key == "value":
            attrs[key] = draw(st.sampled_from((np.zeros(1, np.int64), np.ones(2, np.float32))))
        elif key == "outputs":
            attrs[key] = draw(st.integers(1, 2))
    return attrs


@st.composite
def operands(draw: st.DrawFn, op: str) -> list[Node | None]:
    """Inputs of related shapes, some of them constants for a shape, an axis or an index."""
    needed, possible = OPERATORS[op].arity
    count = draw(st.integers(needed, min(int(min(possible, 8)), needed + 3)))
    dims = st.sampled_from((0, 1, 2, 2, 3, 4, 4))
    base = draw(st.lists(dims, max_size=5))
    dtype = draw(st.sampled_from(DTYPES[:2] * 3 + DTYPES))
    nodes: list[Node | None] = []
    for i in range(count):
        choice = draw(st.integers(0, 9))
        if i >= needed and choice == 0:
            nodes.append(None)
        elif i and choice < 5:
            numbers = draw(st.lists(st.one_of(*[SMALL] * 6, HUGE), max_size=4))
            held = np.array(numbers, np.int64)
            nodes.append(constant(held.reshape(()) if held.size == 1 and choice < 3 else held))
        else:
            shape = base if choice < 8 else draw(st.lists(dims, max_size=4))
            kind = dtype if choice != 9 else draw(st.sampled_from(DTYPES))
            nodes.append(placeholder(f"x{i}", Type(kind, tuple(shape))))
    return nodes


def random(type: Type, seed: int) -> Array:
    values = np.random.default_rng(seed).integers(-3, 4, type.dims)
    if type.dtype.startswith("uint"):
        values = abs(values)
    return values.astype(numpy_dtype(type.dtype))


EVERY = pytest.mark.parametrize("op", sorted(OPERATORS.keys() - {"item", "constant"}))


@EVERY
def test_any_node_is_typed_or_refused(op: str) -> None:
    """If it is typed, its value has that type, or these inputs are invalid."""

    @settings(max_examples=20, deadline=None)
    @given(operands(op), any_attributes(op), st.integers(0, 99))
    def check(inputs: list[Node | None], attrs: dict[str, Any], seed: int) -> None:
        try:
            node = make(op, *inputs, **attrs)
        except Error:
            return
        if any(not t.static or t.size > 20_000 for t in node.types) or any(
            abs(v) > 100 for a in attrs.values() if isinstance(a, tuple | int) for v in np.ravel(a)
        ):
            return
        values = tuple(
            None if i is None else i.array if i.is_constant else random(i.type, seed)
            for i in inputs
        )
        if any(
            v is not None and v.size and np.abs(v.astype(np.float64)).max() > 100 for v in values
        ):
            return
        try:
            meaning(node, tuple(values))
        except Error:
            return

    check()


def valid_nodes() -> Iterator[tuple[Node, tuple[Array | None, ...]]]:
    """Valid nodes and the values of their inputs, from ONNX's node cases."""
    for op, cases in node_cases().items():
        for case in cases if op in OPERATORS else ():
            (proto,) = case.model.graph.node
            given = case.data_sets[0][0]
            if any(map(foreign, given)) or "string" in attributes(proto).values():
                continue
            arrays = map(as_array, given)
            values = tuple(next(arrays) if i else None for i in proto.input)
            # Lists of integers are shapes and axes; all other inputs are known at run time only.
            nodes = (
                None
                if v is None
                else constant(v)
                if v.dtype == np.int64 and v.ndim < 2
                else placeholder("x", Type(v.dtype.name, v.shape))
                for v in values
            )
            try:
                yield make(op, *nodes, **attributes(proto)), values
            except Error:
                continue  # from an older opset, or training


def test_symbols_say_no_more_than_numbers() -> None:
    """With dimensions replaced by symbols: the same ranks, and no different number."""
    count = 0
    for node, _ in valid_nodes():
        sizes = {d for i in node.operands for d in i.shape if not i.is_constant}
        for hidden in sizes:
            try:
                symbolic = make(node.op, *(unnamed(i, hidden) for i in node.inputs), **node.attrs)
            except Error:
                continue
            count += 1
            for exact, vague in zip(node.types, symbolic.types, strict=True):
                assert exact.rank == vague.rank, (node, symbolic)
                for number, dim in zip(exact.shape, vague.shape, strict=True):
                    assert isinstance(dim, str) or number == dim or isinstance(number, str)
                    assert dim != "S" or number == hidden, (node, symbolic)
    assert count > 1000


def test_a_valid_node_made_wrong_is_typed_or_refused() -> None:
    """Change one number of a type, attribute or constant, in all nodes of ONNX's cases."""
    rng = np.random.default_rng(0)
    failures: list[str] = []
    for node, values in valid_nodes():
        for _ in range(3):
            inputs, arrays, attrs = list(node.inputs), list(values), dict(node.attrs)
            spoil(rng, inputs, arrays, attrs)
            try:
                spoiled = make(node.op, *inputs, **attrs)
                if all(t.static and t.size < 20_000 for t in spoiled.types):
                    meaning(spoiled, tuple(arrays))
            except Error:
                continue
            except Exception as e:
                failures.append(f"{node.op} {attrs} {inputs} made {e!r}")
    assert not failures


def spoil(
    rng: np.random.Generator,
    inputs: list[Node | None],
    arrays: list[Array | None],
    attrs: dict[str, Any],
) -> None:
    """Change one number somewhere, in place."""
    numbers = [k for k, v in attrs.items() if isinstance(v, int) or (v and isinstance(v, tuple))]
    new = int(rng.choice([-1, 0, 1, 2, 3, 7, 50, 2**31, -(2**63), 2**62]))
    if numbers and rng.random() < 0.5:
        key = str(rng.choice(numbers))
        old = attrs[key]
        attrs[key] = (
            new if isinstance(old, int) else (*old[:-1], new) if rng.random() < 0.8 else old[1:]
        )
        return
    present = [i for i, node in enumerate(inputs) if node is not None]
    at = int(rng.choice(present)) if present else -1
    node, value = (inputs[at], arrays[at]) if present else (None, None)
    if node is None or value is None:
        return
    if node.is_constant:
        changed = value.copy()
        if changed.size:
            changed.reshape(-1)[-1] = new
        inputs[at], arrays[at] = constant(changed), changed
        return
    size = abs(new) % 8
    shape = (*value.shape[:-1], size) if rng.random() < 0.7 else (*value.shape, size)
    arrays[at] = np.resize(value, shape)
    inputs[at] = placeholder("x", Type(node.dtype, shape))


def unnamed(node: Node | None, hidden: int) -> Node | None:
    """An input with the symbol S in place of dimensions `hidden`."""
    if node is None or node.is_constant:
        return node
    shape = tuple("S" if d == hidden else d for d in node.shape)
    return placeholder(node.name, Type(node.dtype, shape))


HOSTILE: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Expand", [np.float32(0), np.array([2**40, 2**40])], {}),
    ("Tile", [np.zeros((2, 2), np.float32), np.array([2**61, 2**61])], {}),
    ("ConstantOfShape", [np.array([2**62])], {}),
    ("ConstantOfShape", [np.array([1] * 1000)], {}),
    ("ConstantOfShape", [np.array([-1])], {}),
    ("Range", [np.int64(0), np.int64(2**62), np.int64(1)], {}),
    ("Range", [np.float32(0), np.float32(np.inf), np.float32(1)], {}),
    ("Range", [np.int64(0), np.int64(1), np.int64(0)], {}),
    ("Pad", [np.zeros(3, np.float32), np.array([2**62, 2**62])], {}),
    ("Pad", [np.zeros(3, np.float32), np.array([-2, -2])], {}),
    ("Resize", [np.zeros((1, 1), np.float32), None, np.array([1, 3e38], np.float32)], {}),
    ("Resize", [np.zeros((1, 1), np.float32), None, np.array([1, np.nan], np.float32)], {}),
    ("Resize", [np.zeros((1, 1), np.float32), None, None, np.array([1, 2**62])], {}),
    ("OneHot", [np.zeros(3, np.int64), np.int64(2**62), np.zeros(2, np.float32)], {}),
    ("OneHot", [np.zeros(3, np.int64), np.int64(-1), np.zeros(2, np.float32)], {}),
    ("Reshape", [np.zeros(4, np.float32), np.array([-1, -1])], {}),
    ("Reshape", [np.zeros(4, np.float32), np.array([-1, 3])], {}),
    ("Reshape", [np.zeros(0, np.float32), np.array([0, -1])], {"allowzero": 1}),
    ("Unsqueeze", [np.zeros(1, np.float32), np.arange(5000)], {}),
    ("Split", [np.zeros(4, np.float32)], {"num_outputs": 2**40}),
    ("Split", [np.zeros(4, np.float32), np.array([5, -1])], {}),
    ("TopK", [np.zeros(4, np.float32), np.array([2**60])], {}),
    ("CenterCropPad", [np.zeros((4, 4), np.float32), np.array([2**60, 2**60])], {}),
    ("MaxPool", [np.zeros((1, 1, 8), np.float32)], {"kernel_shape": (2**62,)}),
    ("MaxPool", [np.zeros((1, 1, 8), np.float32)], {"kernel_shape": ()}),
    ("AveragePool", [np.zeros((1, 1, 8), np.float32)], {"kernel_shape": (2,), "pads": (2**62, 0)}),
    ("DepthToSpace", [np.zeros((1, 4, 1, 1), np.float32)], {"blocksize": 2**40}),
    ("EyeLike", [np.zeros((2, 2, 2), np.float32)], {}),
    ("LRN", [np.zeros((1, 2, 3), np.float32)], {"size": 2**62}),
    ("Conv", [np.zeros((1, 1, 8), np.float32), np.zeros((1, 1, 3), np.float32)], {"group": 0}),
    ("Conv", [np.zeros((1, 1, 8), np.float32), np.zeros((1, 1, 3), np.float32)], {"pads": (1,)}),
    (
        "GroupNormalization",
        [np.zeros((1, 4), np.float32), *[np.zeros(4, np.float32)] * 2],
        {"num_groups": 0},
    ),
    ("Einsum", [np.zeros(4, np.float32)], {"equation": "ij"}),
    ("Einsum", [np.zeros(4, np.float32)], {"equation": "i->j"}),
    ("Gather", [np.zeros(4, np.float32), np.zeros(1, np.float32)], {}),
    ("GatherND", [np.zeros(4, np.float32), np.zeros((1, 5), np.int64)], {}),
    ("Transpose", [np.zeros((2, 3), np.float32)], {"perm": (0, 0)}),
    ("Slice", [np.zeros(4, np.float32), *map(np.array, ([0], [4], [0], [0]))], {}),
    ("Squeeze", [np.zeros((2, 1), np.float32), np.array([0])], {}),
]


@pytest.mark.parametrize(("op", "inputs", "attrs"), HOSTILE)
def test_no_model_takes_memory_by_its_wish(
    op: str, inputs: list[Any], attrs: dict[str, Any]
) -> None:
    nodes = [None if i is None else constant(np.asarray(i)) for i in inputs]
    tracemalloc.start()
    try:
        with pytest.raises(Error):
            make(op, *nodes, **attrs)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_indices_that_do_not_exist_have_no_value() -> None:
    for op in ("Gather", "GatherElements"):
        node = make(op, constant(np.zeros(4, np.float32)), constant(np.array([4])))
        with pytest.raises(Error, match="no value"):
            known_value(node)


def test_a_shape_is_known_without_the_tensor() -> None:
    x = placeholder("x", Type("float32", (1 << 20, 1 << 20)))
    assert known_value(make("Shape", x, start=1)).tolist() == [1 << 20]  # type: ignore[union-attr]
    assert known_value(make("Size", x)) == 1 << 40
    assert known_value(make("Shape", placeholder("y", Type("float32", ("N",))))) is None


# Symbols.


def test_broadcasting_keeps_what_is_known() -> None:
    assert broadcast(("N", 1), (1, 4)) == ("N", 4)
    assert broadcast(("N",), (3,)) == (3,)
    assert broadcast(("N",), ("N",)) == ("N",)
    (dim,) = broadcast(("N",), ("M",))
    assert dim not in ("N", "M")
    assert broadcast() == ()
    with pytest.raises(Error, match="do not broadcast"):
        broadcast((2,), (3,))


@pytest.mark.parametrize(
    ("shape", "target", "expected"),
    [
        (("N", 6), (0, -1), ("N", 6)),
        (("N", 6), (0, 2, 3), ("N", 2, 3)),
        (("N", 6), (-1, 6), ("N", 6)),
        (("N", "S", 12), (0, 0, 3, 4), ("N", "S", 3, 4)),
        (("N", "S", 12), (0, -1, 12), ("N", "S", 12)),
        ((2, 3), (-1,), (6,)),
        ((0, 3), (0, -1), None),
        ((), (1, 1), (1, 1)),
    ],
)
def test_a_reshape_of_symbols(shape: Any, target: Any, expected: Any) -> None:
    if expected is None:
        with pytest.raises(Error):
            reshaped(shape, target, False)
    else:
        assert reshaped(shape, target, False) == expected


def test_a_symbol_lives_through_a_convolution_that_keeps_its_size() -> None:
    x = placeholder("x", Type("float32", ("N", 3, "H", 8)))
    w = constant(np.zeros((4, 3, 3, 3), np.float32))
    same = make("Conv", x, w, pads=(1, 1, 1, 1))
    assert same.shape == ("N", 4, "H", 8)
    halved = make("Conv", x, w, pads=(1, 1, 1, 1), strides=(2, 2))
    assert halved.shape[2] not in ("H", 3)
    assert halved.shape[3] == 4


def test_an_unknown_shape_gives_new_symbols() -> None:
    target = placeholder("shape", Type("int64", (3,)))
    node = make("Reshape", placeholder("x", Type("float32", (8,))), target)
    assert node.type.rank == 3
    assert len(set(node.shape)) == 3
    with pytest.raises(Error, match="rank of the output is not known"):
        make("Reshape", node, placeholder("shape", Type("int64", ("K",))))
