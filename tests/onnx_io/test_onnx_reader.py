"""Models become graphs: names, shapes, functions, branches; malformed files do no harm."""

from __future__ import annotations

import gc
import resource
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hostile import (
    BOMBS,
    REFUSED,
    SECRET,
    external_model,
    model_of,
    small_model,
    sparse_model,
    tensor,
)
from onnx import ModelProto, TensorProto, helper
from onnx.helper import make_node, make_opsetid
from oracles import onnxruntime_outputs

from qcompiler.data.samples import samples
from qcompiler.errors import Error
from qcompiler.ir import Graph, numpy_dtype
from qcompiler.onnx_io.dims import read_pinned
from qcompiler.onnx_io.reader import read
from qcompiler.onnx_io.tensors import CODES, ExternalData, decode, dense, encode
from qcompiler.ops import evaluate

LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))
SPINE = {
    "imagenet/mobilenetv2_1.0_224.onnx": "float32[N,1001]",
    "imagenet/squeezenet1.1.onnx": "float32[N,1000]",
    "cifar10/resnet20_cifar10.onnx": "float32[N,10]",
    "cifar10/resnet8_cifar10.onnx": "float32[N,10]",
    "speech_commands/dscnn_kws.onnx": "float32[N,12]",
}
OTHERS = {
    "deeplab/deeplabv3_mnv2_dm05_voc.onnx": {},
    "detection/yolox_nano.onnx": {},
    "ppocr/ch_PP-OCRv3_det_infer.onnx": {"x": (1, 3, 64, 96)},
    "silero_vad/silero_vad_op18_ifless.onnx": {"input": (1, 576), "state": (2, 1, 128)},
    "speech_enhance/dtln_1.onnx": {},
    "speech_enhance/dtln_2.onnx": {},
    "super_resolution/supres3x.onnx": {"input": (1, 1, 24, 32)},
    "llama260k/aidreams260k.onnx": {"ids": (1, 7)},
}


def against_onnxruntime(path: Path, graph: Graph, tolerance: float = 1e-5) -> None:
    """Random inputs through both -> the same outputs."""
    rng = np.random.default_rng(3)
    inputs = {}
    for node in graph.inputs:
        shape = [1 if isinstance(d, str) else d for d in node.shape]
        values = rng.integers(0, 9, shape) if "int" in node.dtype else rng.standard_normal(shape)
        inputs[node.name] = values.astype(numpy_dtype(node.dtype))
    found = evaluate(graph, inputs)
    for name, want in onnxruntime_outputs(path, inputs, graph.output_names).items():
        scale = max(1e-3, float(np.abs(want).max()))
        np.testing.assert_allclose(found[name], want, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("path", LIGHT, ids=lambda p: p.stem)
def test_onnxs_own_light_models_are_read(path: Path) -> None:
    graph = read(path)
    assert [i.type.dims for i in graph.inputs] == [(1, 3, 224, 224)]
    assert graph.outputs[0].type.dims[:2] == (1, 1000)
    assert not [n for n in graph.nodes if n.op == "Dropout"]


@pytest.mark.parametrize("name", SPINE)
def test_real_models_with_an_open_batch_are_read(name: str, material: Path) -> None:
    graph = read(material / name)
    assert [str(o.type) for o in graph.outputs] == [SPINE[name]]
    assert graph.notes["opset"] == "ai.onnx 17"
    against_onnxruntime(material / name, graph)


@pytest.mark.parametrize("name", OTHERS)
def test_real_models_of_many_kinds_are_read(name: str, material: Path) -> None:
    graph = read(material / name, OTHERS[name])
    assert all(n.type.static for n in graph.nodes if len(n.types) == 1)
    against_onnxruntime(material / name, graph, 1e-3)  # YOLOX's boxes are exponentials


def converted_models() -> list[Path]:
    """Old PyTorch exports (opset 6), with inputs and outputs, from the onnx package."""
    data = Path(onnx.__file__).parent / "backend/test/data"
    kinds = ("pytorch-converted", "pytorch-operator")
    return sorted(p.parent for kind in kinds for p in (data / kind).glob("*/model.onnx"))


@pytest.mark.parametrize("folder", converted_models(), ids=lambda p: p.name)
def test_what_pytorch_exported_long_ago_is_read(folder: Path) -> None:
    graph = read(folder / "model.onnx")
    wanted = {n.name: (n.dtype, n.shape) for n in graph.inputs}
    for folder_of_set in folder.glob("test_data_set_*"):
        inputs = next(iter(samples(folder_of_set, wanted))) if wanted else {}
        found = evaluate(graph, inputs)
        for i, name in enumerate(graph.output_names):
            proto = TensorProto.FromString((folder_of_set / f"output_{i}.pb").read_bytes())
            want = decode(proto, ExternalData(None), name)
            np.testing.assert_allclose(found[name], want, rtol=1e-3, atol=1e-5)


# Names and shapes.


def test_names_are_kept_and_missing_ones_made_up() -> None:
    nodes = [
        make_node("Relu", ["x"], ["a"], "layer/relu"),
        make_node("Abs", ["a"], ["b"]),
        make_node("Neg", ["b"], ["y"], "layer/relu"),
    ]
    graph = read(model_of(nodes))
    assert [n.name for n in graph.nodes] == ["x", "layer/relu", "Abs_b", "layer/relu_2"]
    assert graph.output_names == ("y",)


def test_nodes_in_any_order_are_read_and_what_no_output_needs_is_not() -> None:
    nodes = [
        make_node("Neg", ["b"], ["y"]),
        make_node("Frobnicate", ["b"], ["dead"], domain="nowhere"),
        make_node("Abs", ["x"], ["b"]),
    ]
    assert [n.op for n in read(model_of(nodes)).nodes] == ["input", "Abs", "Neg"]


def test_symbols_are_words_and_unknown_sizes_get_the_inputs_name() -> None:
    shapes: dict[str, list[int | str | None]] = {
        "x": ["batch", "a.b", "a_b", None],
        "z": ["batch", 3, "2*n", ""],
    }
    nodes = [make_node("Relu", ["x"], ["y"]), make_node("Abs", ["z"], ["w"])]
    graph = read(model_of(nodes, inputs=shapes, outputs=("y", "w")))  # type: ignore[arg-type]
    assert [str(i.type) for i in graph.inputs] == [
        "float32[batch,a_b,a_b_,x_3]",
        "float32[batch,3,2_n,z_3]".replace("2_n", "_2_n"),
    ]


def two_inputs() -> ModelProto:
    nodes = [make_node("Add", ["x", "z"], ["y"])]
    return model_of(nodes, inputs={"x": ["N", 3, "W"], "z": ["N", 3, "W"]})


def test_a_pinned_symbol_is_pinned_wherever_it_stands() -> None:
    graph = read(two_inputs(), {"x": (2, 3, 5)})
    assert [i.type.dims for i in graph.inputs] == [(2, 3, 5), (2, 3, 5)]
    assert graph.outputs[0].type.dims == (2, 3, 5)


@pytest.mark.parametrize(
    ("shapes", "what"),
    [
        (
            {"x": (2, 4, 5)},
            "input 'x': shape 2x4x5 contradicts the model's Nx3xW\nhint: 4 is not 3",
        ),
        ({"x": (2, 3)}, "input 'x': shape 2x3 does not fit Nx3xW"),
        ({"x": (-1, 3, 5)}, "input 'x': shape -1x3x5 has a dimension below 0"),
        ({"q": (1,)}, "no input 'q'\nhint: the inputs are x, z"),
        ({"x": (2, 3, 5), "z": (1, 3, 5)}, "input 'z': 'N' cannot be both 2 and 1"),
    ],
)
def test_shapes_that_do_not_fit_are_errors(shapes: dict[str, tuple[int, ...]], what: str) -> None:
    with pytest.raises(Error) as error:
        read(two_inputs(), shapes)
    assert str(error.value) == what


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("2x3x5", "'2x3x5' is no shape"),
        (2, "2 is no shape"),
        ((2.0, 3, 5), "2.0 is no whole number"),
        ((2, 3, "5"), "'5' is no shape"),
        ((2, 3, None), "None is no whole number"),
        (None, "None is no shape\nhint: only an optional may be absent"),
    ],
)
def test_what_is_no_shape_is_refused(given: Any, what: str) -> None:
    with pytest.raises(Error) as error:
        read_pinned(two_inputs(), {"x": given}, None, False, {})
    assert what in str(error.value)


def test_integers_of_numpy_are_sizes() -> None:
    shapes = {"x": np.array([2, 3, 5])}
    graph = read_pinned(two_inputs(), shapes, None, False, {})  # type: ignore[arg-type]
    assert [i.type.dims for i in graph.inputs] == [(2, 3, 5), (2, 3, 5)]


def test_an_input_of_unknown_rank_can_be_pinned() -> None:
    model = model_of([make_node("Relu", ["x"], ["y"])], inputs={"x": None})  # type: ignore[dict-item]
    assert read(model, {"x": (2, 3)}).outputs[0].type.dims == (2, 3)


def test_inputs_with_an_initializer_are_constants() -> None:
    model = model_of([make_node("Add", ["x", "w"], ["y"])], [tensor("w", [1.0])])
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]))
    assert [i.name for i in read(model).inputs] == ["x"]


def test_outputs_may_be_inputs_and_initializers() -> None:
    graph = read(model_of([], [tensor("w", [1.0, 2.0])], outputs=("x", "w")))
    assert [o.op for o in graph.outputs] == ["input", "constant"]


# Unsupported features are reported together.


def test_all_that_is_not_supported_is_in_one_error() -> None:
    nodes = [
        make_node("Frobnicate", ["x"], ["a"], "first"),
        make_node("Frobnicate", ["a"], ["b"], "second"),
        make_node("Relu", ["b"], ["c"], "fine"),
        make_node("MultiHeadAttention", ["c"], ["d"], "third", domain="com.microsoft"),
        make_node("Mystery", ["x"], ["e"], "fourth", domain="com.acme"),
        make_node("Add", ["d", "e"], ["f"], "sum"),
        make_node("Add", ["f", "words"], ["y"], "last"),
    ]
    words = helper.make_tensor("words", TensorProto.COMPLEX64, [1], [1j])
    model = model_of(nodes, [words])
    model.opset_import.extend([make_opsetid("com.microsoft", 1), make_opsetid("com.acme", 1)])
    with pytest.raises(Error) as error:
        read(model)
    lines = str(error.value).splitlines()
    assert lines[0] == "the model uses unsupported features:"
    assert sorted(lines[1:]) == [
        "  Frobnicate (ai.onnx): unknown operator; in first, second",
        "  MultiHeadAttention (com.microsoft): unknown operator; in third",
        "  Mystery (com.acme): unknown operator; in fourth",
        "  tensors of type COMPLEX64 are not supported; in initializer 'words'",
    ]


def test_long_lists_are_cut() -> None:
    nodes = [make_node("Frobnicate", ["x"], [f"a{i}"], f"n{i}") for i in range(50)]
    nodes.append(make_node("Sum", [f"a{i}" for i in range(50)], ["y"]))
    with pytest.raises(Error, match=r"and 30 more$"):
        read(model_of(nodes))
    nodes = [make_node(f"Frobnicate{i}", ["x"], [f"a{i}"]) for i in range(50)]
    nodes.append(make_node("Sum", [f"a{i}" for i in range(50)], ["y"]))
    with pytest.raises(Error, match=r"and 30 more$") as error:
        read(model_of(nodes))
    assert len(str(error.value).splitlines()) == 22


def test_an_output_that_an_operator_does_not_make_is_an_error_only_where_it_is_read() -> None:
    scale = onnx.numpy_helper.from_array(np.ones(8, np.float32))
    made = ["y", "mean"]
    nodes = [
        make_node("Constant", [], ["g"], value=scale),
        make_node("SkipLayerNormalization", ["x", "x", "g"], made, domain="com.microsoft"),
    ]
    models = [model_of(nodes, outputs=(name,)) for name in made]
    for model in models:
        model.opset_import.append(make_opsetid("com.microsoft", 1))
    assert read(models[0]).outputs[0].op == "LayerNormalization"
    with pytest.raises(Error, match="output 1 of SkipLayerNormalization is not supported"):
        read(models[1])


# Functions and branches.


def test_functions_are_inlined_with_their_attributes() -> None:
    body = [
        make_node("Mul", ["a", "a"], ["square"], "square"),
        make_node("LeakyRelu", ["square"], ["leaky"], "leaky"),
        make_node("Clip", ["leaky", "low"], ["out"], "clip"),
    ]
    body[1].attribute.append(onnx.AttributeProto(name="alpha", type=1, ref_attr_name="slope"))
    function = helper.make_function(
        "f", "Odd", ["a", "low"], ["out"], body, [make_opsetid("", 18)], attributes=["slope"]
    )
    model = model_of([make_node("Odd", ["x"], ["y"], "call", domain="f", slope=0.25)], opset=21)
    model.opset_import.append(make_opsetid("f", 1))
    model.functions.append(function)
    graph = read(model)
    assert [(n.op, n.name) for n in graph.nodes[1:]] == [
        ("Mul", "call/square"),
        ("LeakyRelu", "call/leaky"),
        ("Clip", "call/clip"),
    ]
    assert graph.nodes[2].attrs["alpha"] == 0.25
    assert graph.outputs[0].inputs == (graph.nodes[2],)


def test_an_operator_that_onnx_defines_by_others_is_read_as_those() -> None:
    nodes = [make_node("HannWindow", ["n"], ["y"], "window")]
    graph = read(model_of(nodes, [tensor("n", 8, np.int64)], inputs={}))
    want = np.sin(np.arange(8) * np.pi / 8) ** 2
    np.testing.assert_allclose(evaluate(graph, {})["y"], want, atol=1e-6)


def branching(condition: str) -> ModelProto:
    def side(op: str) -> onnx.GraphProto:
        name = f"{op}_out"
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([make_node(op, ["h"], [name], op)], op, [], [out])

    nodes = [
        make_node("Abs", ["x"], ["h"]),
        make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        make_node("Cast", ["m"], ["run"], to=TensorProto.BOOL),
        make_node("Not", ["no"], ["yes"]),
        make_node(
            "If", [condition], ["y"], "if", then_branch=side("Sqrt"), else_branch=side("Neg")
        ),
    ]
    return model_of(nodes, [tensor("no", False, np.bool_)], inputs={"x": [3]})


def test_a_constant_condition_takes_its_branch() -> None:
    assert read(branching("yes")).outputs[0].op == "Sqrt"
    assert read(branching("no")).outputs[0].op == "Neg"


def test_a_condition_of_the_run_picks_from_both_branches() -> None:
    graph = read(branching("run"))
    assert graph.outputs[0].op == "Where"
    for x, want in (([4.0, 0, 1], [2.0, 0, 1]), ([-4.0, 0, -1], [-4.0, 0, -1])):
        found = evaluate(graph, {"x": np.array(x, np.float32)})
        np.testing.assert_array_equal(found["y"], np.array(want, np.float32))


# Tensors.


@pytest.mark.parametrize("dtype", sorted(CODES))
def test_every_dtype_comes_back_from_raw_data(dtype: str) -> None:
    bits = np.arange(35, dtype=np.uint8)
    array = (bits % 2 if dtype == "bool" else bits % 7).astype(numpy_dtype(dtype)).reshape(5, 7)
    proto = encode(array, "w")
    found = decode(proto, ExternalData(None), "w")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found.astype(np.float64), array.astype(np.float64))
    again = onnx.numpy_helper.to_array(proto)
    np.testing.assert_array_equal(again.astype(np.float64), array.astype(np.float64))


@pytest.mark.parametrize("dtype", sorted(CODES))
def test_every_dtype_comes_back_from_its_own_field(dtype: str) -> None:
    powers = {"float8_e8m0fnu": [1, 2, 4, 0.5, 0.25]}
    few = powers | {"bool": [1, 0, 1, 1, 0], "int2": [1, 0, -2, -1, 0], "uint2": [1, 0, 3, 2, 0]}
    values = few.get(dtype, [1, 0, 3, 2, 6])
    proto = helper.make_tensor("w", CODES[dtype], [5], values)
    assert not proto.HasField("raw_data")
    found = decode(proto, ExternalData(None), "w")
    assert found.dtype == numpy_dtype(dtype)
    assert found.astype(np.float64).tolist() == values
    if dtype.startswith(("int", "float", "bfloat")) and "fnuz" not in dtype and dtype not in few:
        proto = helper.make_tensor("w", CODES[dtype], [3], [-1, -2, 3])
        assert decode(proto, ExternalData(None), "w").astype(float).tolist() == [-1, -2, 3]


def test_four_bit_numbers_lie_low_half_first() -> None:
    proto = TensorProto(data_type=TensorProto.INT4, dims=[3], raw_data=bytes([0xF1, 0x08]))
    found = decode(proto, ExternalData(None), "w")
    assert found.dtype == np.dtype(ml_dtypes.int4)
    assert found.astype(int).tolist() == [1, -1, -8]


@pytest.mark.parametrize("where", ["weight", "constant"])
@pytest.mark.parametrize("indices", [[1, 5], [[0, 1], [1, 2]]], ids=["places", "rows and columns"])
def test_sparse_tensors_are_dense_ones(where: str, indices: object) -> None:
    graph = read(sparse_model(where, indices=tensor("", indices, np.int64)))
    (found,) = (n.array for n in graph.nodes if n.is_constant)
    np.testing.assert_array_equal(found, np.array([[0, 1, 0], [0, 0, 2]], np.float32))


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.bfloat16, np.bool_, ml_dtypes.int4])
def test_sparse_tensors_have_the_dtype_of_their_values(dtype: type) -> None:
    model = sparse_model(values=tensor("w", [1, 2], dtype))
    found = dense(model.graph.sparse_initializer[0], ExternalData(None), "w")
    want = np.array([[0, 1, 0], [0, 0, 2]]).astype(dtype)
    assert found.dtype == want.dtype
    np.testing.assert_array_equal(found, want)


def test_a_branch_has_sparse_tensors_of_its_own() -> None:
    """They are not what its surroundings call so."""
    body = sparse_model().graph
    del body.input[:]
    then = make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    model = model_of([then], [tensor("c", True, np.bool_)], inputs={"x": [2, 3]})
    zeros = {"x": np.zeros((2, 3), np.float32)}
    assert evaluate(read(model), zeros)["y"].tolist() == [[0, 1, 0], [0, 0, 2]]


def test_sparse_tensors_mean_what_onnxruntime_says() -> None:
    rng = np.random.default_rng(0)
    places = np.sort(rng.permutation(64 * 48)[:300])
    fields = {"dims": [64, 48], "values": tensor("w", rng.standard_normal(300))}
    model = sparse_model(**fields, indices=tensor("", places, np.int64))
    model.graph.node[0].op_type = "MatMul"
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64
    x = {"x": rng.standard_normal((2, 64)).astype(np.float32)}
    want = onnxruntime_outputs(model, x)["y"]
    np.testing.assert_allclose(evaluate(read(model), x)["y"], want, rtol=1e-5, atol=1e-5)


def test_sparse_tensors_without_values_are_zeros() -> None:
    nothing = {"values": tensor("w", []), "indices": tensor("", [], np.int64)}
    (found,) = (n.array for n in read(sparse_model(**nothing)).nodes if n.is_constant)
    np.testing.assert_array_equal(found, np.zeros((2, 3), np.float32))


def test_external_data_is_mapped_from_the_models_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "w.bin").write_bytes(b"1234" + SECRET)
    model = external_model(location="deep/w.bin", offset="4", length="64")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    graph = read(tmp_path / "m.onnx")
    found = evaluate(graph, {"x": np.zeros(16, np.float32)})["y"]
    np.testing.assert_array_equal(found, np.arange(16, dtype=np.float32))
    with pytest.raises(Error, match="needs a model that was read from a file"):
        read(model)


def test_a_link_that_stays_in_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(SECRET)
    (tmp_path / "w.bin").symlink_to("blob")
    path = tmp_path / "m.onnx"
    path.write_bytes(external_model(location="w.bin").SerializeToString())
    assert len(read(path).nodes) == 3


# Hostile files.


@pytest.mark.parametrize("attack", REFUSED)
def test_hostile_models_are_refused(attack: str, tmp_path: Path) -> None:
    path = REFUSED[attack](tmp_path)
    with pytest.raises(Error) as error:
        read(path)
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("attack", BOMBS)
def test_little_files_take_little_memory(attack: str, tmp_path: Path) -> None:
    path = BOMBS[attack](tmp_path)
    gc.collect()
    tracemalloc.start()
    try:
        read(path)
    except Error:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 50 << 20


def test_truncated_models_are_errors_or_graphs(tmp_path: Path) -> None:
    whole = small_model()
    path = tmp_path / "model.onnx"
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(Error):
            read(path)


def test_flipped_bits_give_errors_or_graphs(tmp_path: Path) -> None:
    whole = small_model()
    rng = np.random.default_rng(0)
    path = tmp_path / "model.onnx"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_well = 0
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            graph = read(path)
        except Error:
            continue
        read_well += 1
        assert graph.outputs
    assert read_well > 100  # most bits are weights
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10
