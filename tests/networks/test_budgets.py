"""Sizes, numbers and lengths that a model file may have, against what compiling it may take.

No test measures seconds: how a cost grows is measured in calls of Python functions, memory by the
system's own count of a process of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.helper import make_node

import qcompiler
from qcompiler.driver import Compilation
from qcompiler.errors import Error
from qcompiler.ir import MAX_ELEMENTS, Type, constant, placeholder
from qcompiler.ops import known_value, make
from qcompiler.ops.work import PACE, work
from qcompiler.options import Options

Arrays = dict[str, object]
SECONDS = 300
"""Seconds after which a process that hangs is ended and its test fails."""


def model(
    nodes: Sequence[NodeProto],
    weights: Arrays,
    inputs: dict[str, tuple[int, ...]],
    opset: int = 20,
) -> ModelProto:
    """Nodes, constants and float inputs -> a model whose output is y."""
    out = onnx.ValueInfoProto(name="y")
    out.type.tensor_type.elem_type = 1
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(k, 1, list(s)) for k, s in inputs.items()],
        [out],
        [numpy_helper.from_array(np.asarray(a), k) for k, a in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


F = np.float32
CONV = {"w": np.ones((6, 4, 3, 3), F)}
UP = {"w": np.ones((3, 4, 3, 3), F)}


def one(op: str, weights: Arrays, shape: tuple[int, ...], **attrs: object) -> ModelProto:
    """One operator on x and its constants."""
    node = make_node(op, ["x", *weights], ["y"], **attrs)
    return model([node], weights, {"x": shape})


HUGE: dict[str, Callable[[], ModelProto]] = {
    "pads": lambda: one("Conv", CONV, (1, 4, 16, 16), pads=[2147483647, 1, 1, 1]),
    "a padded side": lambda: one("Conv", CONV, (1, 4, 16, 16), pads=[1 << 30] * 4),
    "a stride": lambda: one("Conv", CONV, (1, 4, 16, 16), strides=[1 << 40, 2]),
    "a dilation": lambda: one("Conv", CONV, (1, 4, 16, 16), dilations=[1 << 40, 1]),
    "a window": lambda: one("MaxPool", {}, (1, 4, 16, 16), kernel_shape=[1 << 40, 1]),
    "output padding": lambda: one(
        "ConvTranspose", UP, (1, 3, 5, 7), strides=[2, 2], output_padding=[1, 2147483647]
    ),
    "a product": lambda: model(
        [
            make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
            make_node("MatMul", ["x", "t"], ["m"]),
            make_node("ReduceMax", ["m"], ["y"]),
        ],
        {},
        {"x": (1, 1 << 20, 8)},
    ),
    "repeats": lambda: one("Tile", {"r": np.array([1 << 33, 1])}, (2, 3)),
    "an expansion": lambda: one("Expand", {"s": np.array([1 << 33, 2, 3])}, (2, 3)),
    "padding": lambda: one("Pad", {"p": np.array([1 << 40, 0, 0, 0])}, (2, 3)),
    "sizes to resize to": lambda: model(
        [make_node("Resize", ["x", "", "", "s"], ["y"], mode="linear")],
        {"s": np.array([1, 1, 1 << 20, 1 << 20])},
        {"x": (1, 1, 4, 4)},
    ),
    "an input": lambda: one("Relu", {}, (1 << 40,)),
    "pieces": lambda: model(
        [make_node("Split", ["x"], ["y"], axis=0, num_outputs=1 << 40)], {}, {"x": (4,)}
    ),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_size_beyond_what_kernels_count_is_one_error(name: str) -> None:
    with pytest.raises(Error) as e:
        qcompiler.compile(HUGE[name](), threads=1)
    assert "\n" not in e.value.what


def test_the_largest_tensor_has_as_many_elements_as_32_bits_count() -> None:
    assert Type("int8", (MAX_ELEMENTS,)).fault == ""
    assert "2147483648 elements" in Type("int8", (1 << 16, 1 << 15)).fault
    assert "2147483648 elements" in Type("int8", (0, 1 << 31)).fault
    assert "negative" in Type("int8", (-1,)).fault
    x = placeholder("x", Type("float32", (1 << 16, 1)))
    with pytest.raises(Error, match=r"here \(Mul\): the output .* has 4294967296 elements"):
        make("Mul", x, placeholder("y", Type("float32", (1, 1 << 16))), name="here")


LONG: dict[str, Callable[[], ModelProto]] = {
    "strides of a transposed convolution": lambda: one(
        "ConvTranspose", UP, (1, 3, 1, 7), strides=[1 << 30, 2], pads=[0, 0, 0, 0]
    ),
    "a batch": lambda: model(
        [
            make_node("Mul", ["x", "x"], ["t"]),
            make_node("Softmax", ["t"], ["s"], axis=-1),
            make_node("LeakyRelu", ["s"], ["y"], alpha=0.1),
        ],
        {},
        {"x": (1 << 30,)},
    ),
    "a resize": lambda: model(
        [
            make_node("ConvTranspose", ["x", "w"], ["c"], strides=[2, 4095]),
            make_node("Resize", ["c", "", "s"], ["y"], mode="linear"),
        ],
        {**UP, "s": np.array([1, 1, 2, 1.5], F)},
        {"x": (1, 3, 5, 7)},
    ),
    "an Einsum of constants": lambda: model(
        [
            make_node("Einsum", ["a", "a", "a", "a"], ["e"], equation="i,j,k,l->"),
            make_node("Mul", ["x", "e"], ["y"]),
        ],
        {"a": np.ones(3000, F)},
        {"x": (1,)},
    ),
    "a window over constants": lambda: model(
        [
            make_node(
                "MaxPool", ["a"], ["e"], kernel_shape=[3, 3], pads=[1 << 15] * 4, strides=[9999] * 2
            ),
            make_node("ReduceMax", ["e"], ["m"]),
            make_node("Mul", ["x", "m"], ["y"]),
        ],
        {"a": np.ones((1, 1, 1 << 16, 1), F)},
        {"x": (1,)},
    ),
    "shapes filled with numbers": lambda: model(
        [
            make_node("ConstantOfShape", ["s"], ["c"]),
            make_node("Erf", ["c"], ["e"]),
            make_node("ReduceSum", ["e"], ["m"]),
            make_node("Mul", ["x", "m"], ["y"]),
        ],
        {"s": np.array([1 << 15, 1 << 15])},
        {"x": (1,)},
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_no_number_of_a_small_file_takes_memory_or_time_without_end(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(LONG[name]().SerializeToString())
    text = (
        "import sys, resource, qcompiler\n"
        "try: qcompiler.compile(sys.argv[1], threads=1)\n"
        "except qcompiler.Error as e: print(e)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))

    done = subprocess.run(
        [sys.executable, "-c", text, str(path)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        preexec_fn=limit,
    )
    assert done.returncode == 0, done.stderr
    assert "allocate" not in done.stdout
    assert int(done.stdout.splitlines()[-1]) < 4000


def chain(count: int, link: Callable[[int, str, str], list[NodeProto]]) -> ModelProto:
    """A chain of `count` links."""
    nodes = [n for i in range(count) for n in link(i, f"t{i}", f"t{i + 1}")]
    nodes += [make_node("Identity", [f"t{count}"], ["y"])]
    shape = np.array([6], np.int64), np.array([2, 3], np.int64)
    weights = {"flat": shape[0], "rows": shape[1], "half": np.array(0.5, F)}
    return model([make_node("Identity", ["x"], ["t0"]), *nodes], weights, {"x": (2, 3)})


def wide(count: int, join: str, **attrs: object) -> ModelProto:
    """One value with many readers, and one that reads them all."""
    nodes = [make_node("Mul", ["x", f"c{i}"], [f"t{i}"]) for i in range(count)]
    nodes += [make_node(join, [f"t{i}" for i in range(count)], ["y"], **attrs)]
    return model(nodes, {f"c{i}": np.array((i + 1) * 0.5, F) for i in range(count)}, {"x": (2, 3)})


LENGTHS: dict[str, Callable[[int], ModelProto]] = {
    "additions": lambda n: chain(n, lambda i, a, b: [make_node("Add", [a, "x"], [b])]),
    "nodes of one name": lambda n: chain(
        n, lambda i, a, b: [make_node("Add", [a, "x"], [b], name="same")]
    ),
    "softmax and views": lambda n: chain(
        n,
        lambda i, a, b: [
            make_node("Reshape", [a, "flat"], [f"f{i}"]),
            make_node("Softmax", [f"f{i}"], [f"s{i}"], axis=-1),
            make_node("Reshape", [f"s{i}", "rows"], [b]),
        ],
    ),
    "products and functions": lambda n: chain(
        n,
        lambda i, a, b: [
            make_node("Mul", [a, "half"], [f"m{i}"]),
            make_node("Tanh", [f"m{i}"], [b]),
        ],
    ),
    "values that are joined": lambda n: wide(n, "Concat", axis=0),
    "values that are added": lambda n: wide(n, "Sum"),
    "pieces": lambda n: model(
        [
            make_node("Split", ["x"], [f"t{i}" for i in range(n)], axis=0, num_outputs=n),
            make_node("Concat", [f"t{n - 1 - i}" for i in range(n)], ["y"], axis=0),
        ],
        {},
        {"x": (n, 3)},
    ),
}


def calls(made: ModelProto) -> int:
    """How many Python functions are called from the file to the plan."""
    from qcompiler import plugins

    count = 0

    def seen(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    plugins.device("x86_avx2", 2)
    sys.setprofile(seen)
    try:
        assert Compilation(made, Options(target="x86_avx2")).lowered
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.slow
@pytest.mark.parametrize("name", LENGTHS)
def test_four_times_as_many_nodes_take_about_four_times_as_long(name: str) -> None:
    calls(LENGTHS[name](8))  # what is loaded and remembered once
    few, many = calls(LENGTHS[name](150)), calls(LENGTHS[name](600))
    assert many < 5 * few


def test_thousands_of_values_are_joined_and_cut_right() -> None:
    x = np.random.default_rng(0).standard_normal((200, 3)).astype(F)
    run = qcompiler.load(qcompiler.compile(LENGTHS["pieces"](200), threads=1)).run
    np.testing.assert_array_equal(run({"x": x})["y"], x[::-1])
    x = x[:2]
    for join, want in (
        ("values that are joined", np.concatenate([x * F((i + 1) / 2) for i in range(200)])),
        ("values that are added", x * F(sum(range(201)) / 2)),
    ):
        run = qcompiler.load(qcompiler.compile(LENGTHS[join](200), threads=1)).run
        np.testing.assert_allclose(run({"x": x})["y"], want, rtol=1e-5)


def test_loops_and_functions_make_no_more_nodes_than_a_file_of_their_size_may() -> None:
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function(
            "own",
            f"F{depth}",
            ["a"],
            ["y"],
            [make_node("Relu", ["a"], ["y"])]
            if not depth
            else [
                make_node(f"F{depth - 1}", ["a"], ["t"], domain="own"),
                make_node(f"F{depth - 1}", ["t"], ["y"], domain="own"),
            ],
            imports,
        )
        for depth in range(17)
    ]
    made = model([make_node("F16", ["x"], ["y"], domain="own")], {}, {"x": (2,)})
    made.functions.extend(functions)
    made.opset_import.extend(imports[1:])
    with pytest.raises(Error, match="loops and functions make more than"):
        qcompiler.compile(made, threads=1)


def test_what_an_operator_takes_is_known_before_it_is_computed() -> None:
    a = constant(np.ones((1, 1, 4, 4), F))
    w = constant(np.ones((1, 1, 3, 3), F))
    padded = make("Conv", a, w, pads=(1 << 13,) * 4, strides=(9999, 9999))
    assert padded.type.size < 100
    assert work(padded) > 1 << 28
    assert work(make("Conv", a, w)) < 1 << 17
    shape = constant(np.array([4, 4]))
    assert known_value(make("Expand", constant(np.ones(1, F)), shape)) is not None
    assert known_value(make("ReduceSum", padded)) is None


def test_what_attention_takes_is_known_where_one_value_holds_all_operands() -> None:
    """Queries, keys and values of 2 heads of 8, side by side in 16 rows."""
    x = placeholder("x", Type("float32", (1, 16, 48)))
    root = make("attention", x, None, None, q_num_heads=2, kv_num_heads=2)
    assert 2 * 16 * 16 * 8 < work(root) * PACE < 1 << 24
