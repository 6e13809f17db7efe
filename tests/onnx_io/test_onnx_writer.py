"""Graphs become ONNX models that read back as the same text and run the same in onnxruntime."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest
from oracles import onnxruntime_outputs, session
from test_onnx_opsets import CASES, Case

from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Type, constant, placeholder, text
from qcompiler.onnx_io import writer
from qcompiler.onnx_io.reader import read
from qcompiler.onnx_io.writer import save, write
from qcompiler.ops import evaluate, make

RNG = np.random.default_rng(5)


def run(model: onnx.ModelProto, inputs: dict[str, Array]) -> dict[str, Array]:
    return onnxruntime_outputs(model, inputs, ours=True)


def graph_of(body: str, **arrays: Array) -> Graph:
    return text.read(body, arrays, make)


NEWEST = [
    case
    for case, opset in CASES
    if (opset == 26 or case.domain)
    and case.name not in ("Dropout", "Swish", "QuickGelu")  # dropped, or written for onnxruntime
]


@pytest.mark.parametrize("case", NEWEST, ids=lambda c: c.name)
def test_what_is_written_reads_back_as_the_same_text(case: Case) -> None:
    graph = read(case.model(13 if case.domain else 26))
    model = write(graph)
    onnx.checker.check_model(model)
    assert text.write(read(model))[0] == text.write(graph)[0]


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("imagenet/mobilenetv2_1.0_224.onnx", {}),
        ("speech_enhance/dtln_1.onnx", {}),
        ("llama260k/aidreams260k.onnx", {"ids": (1, 7)}),
        ("detection/yolox_nano.onnx", {}),
    ],
)
def test_real_models_read_back_as_the_same_text(
    name: str, shapes: dict[str, tuple[int, ...]], material: Path
) -> None:
    graph = read(material / name, shapes)
    again, arrays = text.write(read(write(graph)))
    first, wanted = text.write(graph)
    assert again == first
    assert all(np.array_equal(arrays[k], wanted[k]) for k in wanted)


QDQ = """graph "q" (%x: float32[N,3,4,4]) {
  %scale: float32[] = constant [0.05]
  %zero: uint8[] = constant [128]
  %w: int8[2,3,1,1] = constant [1, -2, 3, 4, -5, 6]
  %ws: float32[2] = constant [0.5, 0.25]
  %q = QuantizeLinear(%x, %scale, %zero)
  %d = DequantizeLinear(%q, %scale, %zero)
  %wd = DequantizeLinear(%w, %ws) {axis=0}
  %c = Conv(%d, %wd) {kernel_shape=[1,1], pads=[0,0,0,0], strides=[1,1], dilations=[1,1]}
  %y = Relu(%c)
  return "y"=%y
}
"""


def test_a_quantized_graph_runs_in_onnxruntime() -> None:
    graph = read(write(graph_of(QDQ)))
    x = RNG.standard_normal((2, 3, 4, 4)).astype(np.float32)
    found = run(write(graph), {"x": x})["y"]
    np.testing.assert_allclose(found, evaluate(graph, {"x": x})["y"], atol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_swish_is_written_as_what_onnxruntime_runs(alpha: float) -> None:
    x = placeholder("x", Type("float32", (5, 7)))
    graph = Graph((x,), (make("Swish", x, alpha=alpha, name="s"),), ("y",))
    value = RNG.standard_normal((5, 7)).astype(np.float32)
    wanted = evaluate(graph, {"x": value})["y"]
    np.testing.assert_allclose(run(write(graph), {"x": value})["y"], wanted, rtol=1e-6, atol=1e-7)


def test_the_compilers_own_quantize_is_written_bit_for_bit() -> None:
    x = placeholder("x", Type("float32", (5, 64)))
    multiplier = constant(RNG.uniform(1, 40, 64).astype(np.float32), "m")
    scale = constant(RNG.uniform(0.1, 1, 64).astype(np.float32), "s")
    zero = constant(np.array(7, np.int32), "z")
    q = make("quantize", x, multiplier, zero, name="q", dtype="uint8")
    d = make("dequantize", q, scale, zero, name="d")
    graph = Graph((x,), (q, d), ("q", "d"))
    inputs = {"x": (RNG.standard_normal((5, 64)) * 5).astype(np.float32)}
    found, want = run(write(graph), inputs), evaluate(graph, inputs)
    for name in ("q", "d"):
        assert found[name].dtype == want[name].dtype
        np.testing.assert_array_equal(found[name], want[name])


def test_operators_without_a_spelling_in_onnx_are_named() -> None:
    x = placeholder("x", Type("float32", (1, 4, 4, 3)))
    w = constant(np.ones((1, 1, 3, 2), np.float32), "w")
    plain = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    y = make("conv", x, w, name="layer/conv", **plain)
    with pytest.raises(Error) as error:
        write(Graph((x,), (y,), ("y",)))
    assert str(error.value) == (
        "layer/conv: ONNX has no operator conv\nhint: write the graph before the layout stage"
    )


def test_outputs_may_be_inputs_constants_and_one_value_twice() -> None:
    x = placeholder("x", Type("float32", (2,)))
    c = constant(np.ones(2, np.float32), "c")
    y = make("Relu", x, name="y")
    graph = Graph((x,), (x, c, y, y), ("x", "w", "y", "again"))
    value = np.array([-1, 2], np.float32)
    found = run(write(graph), {"x": value})
    assert {k: v.tolist() for k, v in found.items()} == {
        "x": [-1, 2],
        "w": [1, 1],
        "y": [0, 2],
        "again": [0, 2],
    }


def test_notes_become_metadata() -> None:
    graph = graph_of(QDQ).note(quantized="8 bits")
    assert [(p.key, p.value) for p in write(graph).metadata_props] == [("quantized", "8 bits")]


def test_saving_replaces_the_file_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    save(graph_of(QDQ), path)
    assert text.write(read(path))[0] == text.write(read(write(graph_of(QDQ))))[0]
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    with pytest.raises(Error, match="cannot write"):
        save(graph_of(QDQ), tmp_path / "nowhere" / "m.onnx")


def test_large_weights_are_saved_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_INLINE_BYTES", 1000)
    x = placeholder("x", Type("float32", (1, 40)))
    weights = [constant(RNG.standard_normal((40, 40)).astype(np.float32), f"w{i}") for i in "ab"]
    y = make("MatMul", make("MatMul", x, weights[0], name="m"), weights[1], name="y")
    graph = Graph((x,), (y,), ("y",))
    save(graph, tmp_path / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx").stat().st_size < 2000
    found, arrays = text.write(read(tmp_path / "m.onnx"))
    wanted, originals = text.write(graph)
    assert found == wanted
    assert all(np.array_equal(arrays[k], originals[k]) for k in originals)
    session(tmp_path / "m.onnx", ours=True)
