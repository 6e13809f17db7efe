"""A graph of a part of the batch makes of each part what the whole makes of all of them."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcompiler.emit.assemble import assemble
from qcompiler.hardware.isa import Cpu, host
from qcompiler.ir import Array, Graph, Type, placeholder, text
from qcompiler.ops import evaluate, make
from qcompiler.plan.batches import apart, in_parts
from qcompiler.plan.plan import plan
from qcompiler.plugins import load_all
from qcompiler.runtime import load

load_all()
BATCH = 6


def small(threads: int = 1) -> Cpu:
    """A device whose caches hold two of the six images."""
    here = host(threads)
    return Cpu("small", here.isa, threads, l3_bytes=12_000)


def graph(lines: str, result: str) -> Graph:
    def array(name: str, t: object) -> Array:
        shape, dtype = t.dims, t.dtype  # type: ignore[attr-defined]
        values = np.random.default_rng(len(name)).standard_normal(shape)
        values = np.asarray(values)
        return (np.broadcast_to(values[:1], shape) if name == "same" else values).astype(dtype)

    body = f"""graph "g" (%x: float32[{BATCH},8,8,8]) {{
      %w: float32[1,3,8,8] = constant #conv
      %v: float32[8,8] = constant #matrix
      %b: float32[8] = constant #b
      %same: float32[{BATCH},1,8,8] = constant #same
      %other: float32[{BATCH},1,8,8] = constant #another
      %axes: int64[2] = constant [1, 2]
      %last: int64[1] = constant [3]
      %keys: int64[4] = constant [{BATCH}, 1, 1, 64]
      %all: int64[3] = constant [0, 1, 2]
      %rows: int64[3] = constant [{BATCH}, 64, 8]
      %free: int64[2] = constant [-1, 512]
      %mixed: int64[2] = constant [8, -1]
      {lines}
      return "y"=%{result}
    }}"""
    return text.read(body, array, make)


CONV = """%1 = conv(%x, %w) {dilations=[1,1], group=1, pads=[0,1,0,1], strides=[1,1], pad_value=0}
      %2 = Add(%1, %b)
      %3 = Relu(%2)
      %4 = Add(%3, %x)
      """
APART = {
    "convolutions, residuals": (CONV, "4"),
    "a mean and a product": (
        CONV + "%5 = ReduceMean(%4, %axes) {keepdims=0}\n %6 = matmul(%5, %v)",
        "6",
    ),
    "pieces of channels": (
        """%1 = Split(%x) {axis=3, num_outputs=2}
      %2 = item(%1) {index=0}
      %3 = item(%1) {index=1}
      %4 = Mul(%2, %3)
      %5 = Concat(%4, %x) {axis=-1}""",
        "5",
    ),
    "a reshape to the batch": (CONV + "%5 = Reshape(%4, %rows)\n %6 = matmul(%5, %v)", "6"),
    "a reshape of what is left": (CONV + "%5 = Reshape(%4, %free)", "5"),
    "products of images": (
        """%1 = Reshape(%x, %rows)
      %2 = Transpose(%1) {perm=[0,2,1]}
      %3 = matmul(%1, %2)
      %4 = Softmax(%3) {axis=-1}
      %5 = matmul(%4, %1)
      %6 = Concat(%5, %1) {axis=2}""",
        "6",
    ),
}
MIXED = {
    "a mean over the batch": (
        CONV + "%5 = ReduceMean(%4, %all) {keepdims=1}\n %6 = Sub(%4, %5)",
        "6",
    ),
    "a softmax over the batch": ("%1 = Softmax(%x) {axis=0}", "1"),
    "a transpose of the batch": (
        "%1 = Transpose(%x) {perm=[1,0,2,3]}\n %2 = Transpose(%1) {perm=[1,0,2,3]}",
        "2",
    ),
    "the batch to the back": (
        "%1 = Reshape(%x, %mixed)\n %2 = Relu(%1)\n %3 = Reshape(%2, %free)",
        "3",
    ),
}


AS_A_WHOLE = {
    "a constant that is the same for all images": ("%1 = Concat(%x, %same) {axis=1}", "1"),
    "the same, added": ("%1 = Add(%x, %same)", "1"),
    "rows of a table by index": (
        """%1 = Cast(%x) {to="int64"}
      %2 = Gather(%v, %1) {axis=0}""",
        "2",
    ),
    "a mask of each image": (
        """%4 = ReduceMean(%x, %last) {keepdims=0}
      %1 = Reshape(%4, %keys)
      %2 = Reshape(%x, %rows)
      %3 = attention(%2, %2, %2, %1) {q_num_heads=2, kv_num_heads=2, scale=1.0}""",
        "3",
    ),
}
"""Images are apart, but the batch is not cut."""
OF_PLACE = {
    "a constant that is another one for each image": ("%1 = Concat(%x, %other) {axis=1}", "1"),
    "the same, added": ("%1 = Add(%x, %other)", "1"),
}


def value(g: Graph, x: Array) -> NDArray[Any]:
    return np.asarray(evaluate(g, {"x": x})["y"])


@pytest.mark.parametrize("name", APART)
def test_parts_make_what_the_whole_makes(name: str) -> None:
    whole = graph(*APART[name])
    part, count = in_parts(whole, small())
    assert count > 1
    size = BATCH // count
    x = np.random.default_rng(0).standard_normal((BATCH, 8, 8, 8)).astype(np.float32)
    made = [value(part, x[i : i + size]) for i in range(0, BATCH, size)]
    np.testing.assert_allclose(np.concatenate(made), value(whole, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", APART)
def test_images_that_are_apart_are_known_to_be(name: str) -> None:
    assert apart(graph(*APART[name]))


@pytest.mark.parametrize("name", MIXED)
def test_images_that_meet_are_not_apart(name: str) -> None:
    assert not apart(graph(*MIXED[name]))


@pytest.mark.parametrize("name", AS_A_WHOLE)
def test_what_is_the_same_for_all_images_keeps_them_apart(name: str) -> None:
    assert apart(graph(*AS_A_WHOLE[name]))


@pytest.mark.parametrize("name", OF_PLACE)
def test_what_depends_on_the_place_in_the_batch_is_not_apart(name: str) -> None:
    assert not apart(graph(*OF_PLACE[name]))


@pytest.mark.parametrize("name", MIXED)
def test_images_that_meet_stay_together(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert in_parts(graph(*MIXED[name]), small())[1] == 1
    assert "may mix the images" in caplog.text


def test_a_batch_that_the_caches_hold_stays_whole() -> None:
    assert in_parts(graph(*APART["convolutions, residuals"]), host(1))[1] == 1


def test_weights_that_are_most_of_the_bytes_are_read_once() -> None:
    many = graph(
        """%1 = ReduceMean(%x, %axes) {keepdims=0}
      %big: float32[8,4096] = constant #big
      %2 = matmul(%1, %big)""",
        "2",
    )
    assert in_parts(many, small())[1] == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_machine_code_runs_part_after_part(threads: int) -> None:
    whole = graph(*APART["a mean and a product"])
    made = plan(whole, small(threads))
    assert made.parts > 1
    assert f"{made.parts} parts" in str(made)
    model = load(assemble(made))
    assert model.manifest.notes["parts"] == str(made.parts)
    x = np.random.default_rng(0).standard_normal((BATCH, 8, 8, 8)).astype(np.float32)
    for _ in range(3):
        np.testing.assert_allclose(model.run({"x": x})["y"], value(whole, x), rtol=1e-4, atol=1e-5)
    assert len(model.profile({"x": x}, repeat=2)) == len(made.steps)


def test_a_matrix_that_is_turned_has_no_parts() -> None:
    x = placeholder("x", Type("float32", (8, 8)))
    turned = Graph((x,), (make("Transpose", x),), ("y",))
    assert not apart(turned)
