"""Regions fuse all that can be fused; bytes needed at the same time never overlap."""

from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from qcompiler.driver import Compilation
from qcompiler.ir import Graph, text
from qcompiler.ops import make
from qcompiler.options import Options
from qcompiler.plan.plan import Plan, Step
from qcompiler.plan.regions import regions, with_copies

GOLDEN = Path(__file__).parents[1] / "golden"


def graph(body: str) -> Graph:
    return text.read(body, lambda _, t: np.ones(t.dims, t.dtype), make)


def shapes_of(body: str) -> list[str]:
    """The regions of a graph: the operators of each, the anchor in brackets."""
    return [
        " ".join(f"[{n.op}]" if n is r.root else n.op for n in r.nodes)
        for r in regions(with_copies(graph(body)))
    ]


def test_bias_activation_and_residual_fuse_into_the_matrix_product() -> None:
    found = shapes_of("""graph "g" (%x: float32[4,8], %r: float32[4,6]) {
      %w: float32[8,6] = constant #w
      %b: float32[6] = constant #b
      %0 = matmul(%x, %w)
      %1 = Add(%0, %b)
      %2 = Add(%1, %r)
      %3 = Relu(%2)
      return "y"=%3
    }""")
    assert found == ["[matmul] Add Add Relu"]


def test_what_is_dequantized_may_be_split() -> None:
    found = shapes_of("""graph "g" (%x: uint8[4,8]) {
      %s: float32[] = constant [0.5]
      %z: int32[] = constant [3]
      %n: int64[2] = constant [1, 3]
      %0 = dequantize(%x, %s, %z)
      %1 = Split(%0, %n) {axis=0}
      %2 = item(%1) {index=0}
      %3 = item(%1) {index=1}
      return "y"=%2, "z"=%3
    }""")
    assert found == ["dequantize", "Split [item]", "Split [item]"]


def test_a_value_that_two_read_is_kept() -> None:
    found = shapes_of("""graph "g" (%x: float32[4,8]) {
      %w: float32[8,8] = constant #w
      %0 = matmul(%x, %w)
      %1 = Relu(%0)
      %2 = Sigmoid(%0)
      %3 = Add(%1, %2)
      return "y"=%3
    }""")
    assert found == ["[matmul]", "Relu Sigmoid Add"]


def test_a_graph_output_is_kept_even_when_only_one_node_reads_it() -> None:
    found = shapes_of("""graph "g" (%x: float32[4]) {
      %0 = Relu(%x)
      %1 = Neg(%0)
      return "a"=%0, "b"=%1
    }""")
    assert found == ["Relu", "Neg"]


def test_two_products_that_are_added_are_not_one_kernel() -> None:
    found = shapes_of("""graph "g" (%x: float32[4,8]) {
      %v: float32[8,8] = constant #v
      %w: float32[8,8] = constant #w
      %0 = matmul(%x, %v)
      %1 = matmul(%x, %w)
      %2 = Add(%0, %1)
      return "y"=%2
    }""")
    assert sorted(found) == ["[matmul]", "[matmul] Add"]


def test_what_is_rounded_to_16_bits_lies_in_memory_so() -> None:
    found = shapes_of("""graph "g" (%x: float32[4,8]) {
      %v: float32[8,8] = constant #v
      %w: float32[8,8] = constant #w
      %0 = matmul(%x, %v)
      %1 = Cast(%0) {to="bfloat16"}
      %2 = Cast(%1) {to="float32"}
      %3 = matmul(%x, %w)
      %4 = Add(%2, %3)
      return "y"=%4
    }""")
    assert sorted(found) == ["[matmul] Cast", "[matmul] Cast Add"]


def test_elementwise_work_before_a_reduction_fuses_with_it_but_not_before_a_product() -> None:
    found = shapes_of("""graph "g" (%x: float32[4,8]) {
      %w: float32[8,8] = constant #w
      %a: int64[1] = constant [1]
      %0 = Relu(%x)
      %1 = matmul(%0, %w)
      %2 = Relu(%1)
      %3 = Exp(%1)
      %4 = ReduceSum(%3, %a)
      %5 = Add(%2, %4)
      return "y"=%5
    }""")
    assert found == ["Relu", "[matmul]", "Exp [ReduceSum]", "Relu Add"]


def test_outputs_that_share_memory_are_copied() -> None:
    found = shapes_of("""graph "g" (%x: float32[4]) {
      return "a"=%x, "b"=%x
    }""")
    assert found == ["[Transpose]", "[Transpose]"]


def demo_plan(precision: str, threads: int = 2, target: str = "x86_avx2") -> Plan:
    """The embedded network's plan, for a device whose choices do not depend on this machine."""
    here = resources.files("qcompiler.demo")
    with (
        resources.as_file(here / "digits.onnx") as model,
        resources.as_file(here / "digits.npz") as data,
    ):
        calibration = np.load(data, allow_pickle=False)["calibration"]
        options = Options(
            target=target,
            precision=precision,
            calibration=[{"image": image[None]} for image in calibration[:16]],
            input_shapes={"image": (1, 1, 8, 8)},
            threads=threads,
        )
        return Compilation(model, options).plan


@pytest.fixture(scope="module", params=["float32", "int8"])
def plan(request: pytest.FixtureRequest) -> Plan:
    return demo_plan(request.param)


def span(step: Step, place: object) -> tuple[int, int]:
    return place.offset, place.offset + place.bytes  # type: ignore[attr-defined]


def test_no_step_writes_over_a_value_that_a_later_step_reads(plan: Plan) -> None:
    """Follow every byte of the workspace: who wrote it last must be who the reader thinks."""
    writer = np.full(plan.workspace_bytes, -1)
    made: dict[object, int] = {}
    for i, step in enumerate(plan.steps):
        for place in step.operands:
            if place.space == "workspace":
                start, stop = span(step, place)
                assert np.all(writer[start:stop] == made[place]), f"{step.name} reads lost bytes"
        if step.scratch:
            start, stop = span(step, step.scratch)
            writer[start:stop] = -2
        if step.output.space == "workspace":
            start, stop = span(step, step.output)
            assert stop <= plan.workspace_bytes
            writer[start:stop] = i
            made[step.output] = i


def test_scratch_and_operands_and_output_of_a_step_are_apart(plan: Plan) -> None:
    for step in plan.steps:
        places = [p for p in (*step.operands, step.output, step.scratch) if p is not None]
        spans = sorted(span(step, p) for p in {*places} if p.space == "workspace")
        for (_, stop), (start, _) in pairwise(spans):
            assert stop <= start, f"{step.name}: overlapping memory"


def test_everything_starts_at_a_multiple_of_64_bytes(plan: Plan) -> None:
    for step in plan.steps:
        for place in (*step.operands, step.output):
            assert place.space in ("input", "output") or place.offset % 64 == 0


def test_equal_problems_share_one_kernel(plan: Plan) -> None:
    names = [s.kernel.name for s in plan.steps]
    functions = {s.kernel.name: s.kernel.func for s in plan.steps}
    assert len({id(f) for f in functions.values()}) == len(set(names))


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_plan_is_what_it_was(precision: str, request: pytest.FixtureRequest) -> None:
    """Chosen kernels, offsets and threads move only on purpose: `pytest --update-golden`."""
    path = GOLDEN / f"plan_digits_{precision}.txt"
    found = str(demo_plan(precision, target="haswell")) + "\n"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(found)
    assert path.read_text() == found
