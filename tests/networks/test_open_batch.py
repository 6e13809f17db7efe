"""Artifacts whose batch is open answer for every number of samples as those for that number do."""

import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qcompiler
from qcompiler import Artifact, Error
from qcompiler.ir import Array
from qcompiler.runtime.choosing import lacking
from qcompiler.runtime.open_sizes import turns

SIZES = (1, 7, 8, 9, 13, 40, 3)
"""One, a round of many samples less one, of one more, a prime, the most; then fewer again."""


def weights(random: np.random.Generator, *shape: int) -> Array:
    return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def model_of(
    nodes: list[onnx.NodeProto], x: list[int], held: dict[str, Array], outputs: tuple[str, ...]
) -> onnx.ModelProto:
    """Nodes on `x` [batch, *x] and constants; the outputs' shapes are left to be found."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *x])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def pixels() -> onnx.ModelProto:
    """Convolutions, a depthwise one, a residual, pooling, and a product at the end."""
    r, node = np.random.default_rng(0), helper.make_node
    pad = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", ["x", "w0"], ["a"], strides=[2, 2], **pad),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "w1"], ["c"], group=8, **pad),
        node("Add", ["c", "b"], ["d"]),
        node("MaxPool", ["d"], ["e"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Shape", ["e"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Concat", ["n", "minus"], ["t"], axis=0),
        node("Reshape", ["e", "t"], ["f"]),
        node("Gemm", ["f", "w2"], ["y"]),
        node("Softmax", ["y"], ["p"]),
    ]
    held = {
        "w0": weights(r, 8, 3, 3, 3),
        "w1": weights(r, 8, 1, 3, 3),
        "w2": weights(r, 128, 10),
        "zero": ints(0),
        "minus": ints(-1),
    }
    return model_of(nodes, [3, 16, 16], held, ("y", "p"))


def tokens() -> onnx.ModelProto:
    """A class token put before 5 others, and attention between them in 2 heads, as a ViT has it."""
    r, node = np.random.default_rng(1), helper.make_node
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Concat", ["n", "minus", "minus"], ["wanted"], axis=0),
        node("Equal", ["wanted", "minus"], ["missing"]),
        node("Where", ["missing", "ones", "wanted"], ["times"]),
        node("Expand", ["token", "times"], ["tokens"]),
        node("Concat", ["tokens", "x"], ["a"], axis=1),
        node("Add", ["a", "places"], ["b"]),
        node("LayerNormalization", ["b", "gain", "bias"], ["c"], axis=-1),
        node("MatMul", ["c", "wqkv"], ["d"]),
        node("Concat", ["n", "six", "three", "two", "minus"], ["apart"], axis=0),
        node("Reshape", ["d", "apart"], ["e"]),
        node("Transpose", ["e"], ["f"], perm=[2, 0, 3, 1, 4]),
        node("Split", ["f"], ["q0", "k0", "v0"], axis=0),
        *(node("Squeeze", [f"{i}0", "zero"], [i]) for i in "qkv"),
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "kt"], ["scores"]),
        node("Mul", ["scores", "scale"], ["scaled"]),
        node("Softmax", ["scaled"], ["shares"], axis=-1),
        node("MatMul", ["shares", "v"], ["o"]),
        node("Transpose", ["o"], ["o2"], perm=[0, 2, 1, 3]),
        node("Concat", ["n", "six", "minus"], ["joined"], axis=0),
        node("Reshape", ["o2", "joined"], ["o3"]),
        node("MatMul", ["o3", "wo"], ["o4"]),
        node("Add", ["o4", "b"], ["z"]),
        node("Gather", ["z", "first"], ["y"], axis=1),
    ]
    held = {name: ints(n) for n, name in enumerate(("zero", "ones", "two", "three"))}
    held |= {"six": ints(6), "minus": ints(-1), "first": np.array(0, np.int64)}
    held |= {"token": weights(r, 1, 1, 16), "places": weights(r, 1, 6, 16)}
    held |= {"gain": np.ones(16, np.float32), "bias": weights(r, 16), "wo": weights(r, 16, 16)}
    held |= {"wqkv": weights(r, 16, 48), "scale": np.array(0.35, np.float32)}
    return model_of(nodes, [5, 16], held, ("y", "z"))


def layers() -> onnx.ModelProto:
    """Matrix products alone, which gain from many samples at once; the last has 3 rows of each."""
    r, node = np.random.default_rng(2), helper.make_node
    nodes = [
        node("MatMul", ["x", "w0"], ["a"]),
        node("Tanh", ["a"], ["b"]),
        node("MatMul", ["b", "w1"], ["c"]),
        node("Reshape", ["c", "rows"], ["d"]),
        node("MatMul", ["d", "w2"], ["y"]),
    ]
    held = {"w0": weights(r, 24, 192), "w1": weights(r, 192, 96), "w2": weights(r, 32, 8)}
    return model_of(nodes, [24], {**held, "rows": ints(-1, 32)}, ("y",))


NETWORKS = {"pixels": pixels, "tokens": tokens, "layers": layers}


def images(model: onnx.ModelProto, count: int) -> Array:
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    random = np.random.default_rng(count)
    return random.standard_normal((count, *shape)).astype(np.float32)


USUAL = {("pixels", "int8"), ("tokens", "float32"), ("layers", "float32")}
CASES = [
    pytest.param(n, p, marks=[] if (n, p) in USUAL else pytest.mark.slow)
    for n in NETWORKS
    for p in ("float32", "bfloat16", "int8")
]


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_an_open_batch_gives_what_a_fixed_one_does(name: str, precision: str) -> None:
    model = NETWORKS[name]()
    data = {"calibration": [{"x": images(model, 1)} for _ in range(4)]} if "8" in precision else {}
    found = qcompiler.compile(
        model, precision=precision, dims={"batch": "1..40"}, threads=1, **data
    )
    assert [str(s) for s in found.manifest.symbols] == ["batch = 1 to 40"]
    assert found.manifest.inputs[0].open[0] == "batch"
    opened = qcompiler.load(found)
    fixed = qcompiler.load(
        qcompiler.compile(model, precision=precision, dims={"batch": 1}, threads=1, **data)
    )
    within = {"float32": 2e-5, "bfloat16": 3e-2, "int8": 0.0}[precision]
    for n in SIZES:
        x = images(model, n)
        results = opened.run({"x": x})
        alone = [fixed.run({"x": x[i : i + 1]}) for i in range(n)]
        for key, value in results.items():
            wanted = np.concatenate([a[key] for a in alone])
            assert value.shape == wanted.shape
            np.testing.assert_allclose(value, wanted, rtol=within, atol=within)


def test_many_samples_at_once_are_computed_by_steps_of_their_own() -> None:
    found = qcompiler.compile(layers(), dims={"batch": "1.."}, opt_dims={"batch": 16}, threads=2)
    assert [b.samples for b in found.manifest.variants[0].batches] == [16, 1]
    model, x = qcompiler.load(found), images(layers(), 50)
    (y,) = [model(x)]
    assert y.shape == (150, 8)
    np.testing.assert_allclose(y[:48], model(x[:16]), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(y[144:], model(x[48:]), rtol=2e-5, atol=2e-5)


@pytest.fixture(scope="module")
def small() -> Artifact:
    return qcompiler.compile(layers(), dims={"batch": "2..40"}, threads=1)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((0, 24), "batch is 0, the artifact takes batch = 2 to 40"),
        ((1, 24), "batch is 1"),
        ((41, 24), "batch is 41"),
        ((4, 25), r"shape \[4, 25\] given, \['batch', 24\] wanted"),
        ((4, 24, 1), "wanted"),
        ((), "wanted"),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    small: Artifact, shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(Error, match=words):
        qcompiler.load(small)(np.zeros(shape, np.float32))


def test_inputs_of_different_numbers_of_samples_are_refused() -> None:
    model = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["": 17]>
    made (float[n, 4] a, float[n, 4] b) => (float[n, 4] y) { y = Add(a, b) }""")
    opened = qcompiler.load(qcompiler.compile(model, dims={"n": "1..8"}, threads=1))
    a, b = (np.full((n, 4), n, np.float32) for n in (3, 2))
    assert (opened(a, a) == 6).all()
    with pytest.raises(Error, match="n is not the same in all inputs: 3 in a, 2 in b"):
        opened(a, b)


def test_memory_does_not_grow_with_the_sizes_that_were_seen(small: Artifact) -> None:
    model = qcompiler.load(small)
    model(images(layers(), 40))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for i in range(400):
            model(images(layers(), 2 + i * 7 % 39))
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 64 << 10


def test_an_open_artifact_is_saved_and_read_back(small: Artifact, tmp_path: Path) -> None:
    path = small.save(tmp_path / "open.qc")
    x = images(layers(), 11)
    np.testing.assert_array_equal(qcompiler.load(path)(x), qcompiler.load(small)(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["symbols"][0].update(high=1 << 40),
        lambda m: m["symbols"][0].update(high=41),
        lambda m: m["symbols"][0].update(name="other"),
        lambda m: m["symbols"].append(m["symbols"][0]),
        lambda m: m.update(symbols=[]),
        lambda m: m["inputs"][0].update(open=["batch*2", 24]),
        lambda m: m["inputs"][0].update(open=["batch", "batch"]),
        lambda m: m["outputs"][0].update(open=["batch*300000000000", 8]),
        lambda m: m["outputs"][0].update(open=["((", 8]),
        lambda m: m["variants"][0]["batches"][-1].update(samples=2),
        lambda m: m["variants"][0]["batches"][0].update(last=99),
        lambda m: m["variants"][0]["batches"].clear(),
    ],
)
def test_a_manifest_with_other_sizes_is_refused(
    small: Artifact, tmp_path: Path, change: object
) -> None:
    path = small.save(tmp_path / "open.qc")
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    manifest = json.loads(members["manifest.json"])
    change(manifest)  # type: ignore[operator]
    members["manifest.json"] = json.dumps(manifest).encode()
    from qcompiler.artifact.saving import write

    with path.open("wb") as out:
        write(out, {name: [memoryview(data)] for name, data in members.items()})
    with pytest.raises(Error):
        qcompiler.load(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dims": {"batch": "1..8", "other": "1..8"}}, "no input has an open size 'other'"),
        ({"dims": {"other": "1..8"}}, "no input has an open size 'other'"),
        ({"dims": {"batch": "8..1"}}, "a size from 8 to 1"),
        ({"dims": {"batch": "few"}}, "'few' is no range of sizes"),
        ({"dims": {"batch": "0..0"}}, "a size from 0 to 0"),
        ({"dims": {"batch": 4}, "opt_dims": {"batch": 4}}, "'batch' does not stay open"),
        ({"dims": {"batch": "1..8"}, "opt_dims": {"batch": 9}}, "9 is not in 1 to 8"),
        ({"dims": {"batch": "1..8"}, "input_shapes": {"x": (4, 24)}}, "no input has an open size"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(options: dict, words: str) -> None:
    with pytest.raises(Error, match=words):
        qcompiler.compile(layers(), **options)


def test_a_batch_may_have_no_samples() -> None:
    model = qcompiler.load(qcompiler.compile(layers(), dims={"batch": "0..4"}, threads=1))
    x = np.random.default_rng(0).random((4, 24), np.float32)
    whole = model.run({"x": x})["y"]
    for count in (0, 1, 0, 4):
        np.testing.assert_allclose(model.run({"x": x[:count]})["y"], whole[: 3 * count], 1e-5)


def test_a_profile_adds_up_the_turns_of_every_step(small: Artifact) -> None:
    model = qcompiler.load(small)
    many, one = model.variant.batches
    feed = {"x": images(layers(), 2 * many.samples + 1)}
    often = turns(model.manifest, model.variant, [feed["x"]])
    assert often[many.first] * many.samples + often[one.first] > 2 * many.samples
    assert [s > 0 for s in model.profile(feed, repeat=1)] == [n > 0 for n in often]
    few = model.profile({"x": feed["x"][:2]}, repeat=1)
    assert [s > 0 for s in few] == [one.first <= i < one.last for i in range(len(few))]


def test_variants_of_an_open_batch_may_compute_different_numbers_of_samples() -> None:
    """Where eight samples at once are faster with one instruction set, and not with another."""
    targets = ["x86_avx2", "x86_avx512vnni"]
    fat = qcompiler.compile(
        tokens(), precision="int8-dynamic", dims={"batch": "1..16"}, threads=3, target=targets
    )
    numbers = {v.isa: [b.samples for b in v.batches] for v in fat.manifest.variants}
    assert numbers["x86_avx2"] != numbers["x86_avx512vnni"]
    x = np.random.default_rng(0).standard_normal((9, 5, 16)).astype(np.float32)
    for target in targets:
        alone = qcompiler.compile(
            tokens(), precision="int8-dynamic", dims={"batch": "1..16"}, threads=3, target=target
        )
        assert alone.manifest.inputs == fat.manifest.inputs
        if not lacking(alone.manifest.variants[0]):
            wanted = qcompiler.load(alone).run({"x": x})
            found = qcompiler.load(fat, variant=target).run({"x": x})
            assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
