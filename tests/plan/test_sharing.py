"""How many threads a plan is made for, unless somebody asks for a number."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from benchmarks import compile_time
from qcompiler.driver import Compilation
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Graph
from qcompiler.options import Options
from qcompiler.plan import sharing
from qcompiler.plan.plan import Plan
from qcompiler.plan.repeats import LIKELY
from qcompiler.plan.sharing import at_most, least, saving


def products(size: int) -> onnx.ModelProto:
    """Two products of square matrices in a row."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 18]>
        g (float[{size}, {size}] x) => (float[{size}, {size}] y) {{
            a = MatMul(x, w)
            b = Relu(a)
            y = MatMul(b, w)
        }}
    """)
    w = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    return model


@pytest.mark.parametrize(("size", "threads"), [(8, 1), (64, 1), (1024, 4)])
def test_threads_are_used_where_they_save_time(size: int, threads: int) -> None:
    device = "x86_avx2"
    asked = Compilation(products(size), Options(target=device, threads=4)).plan
    assert asked.device.threads == 4
    assert (saving(asked) >= least(asked.device)) is (threads > 1)


def test_a_small_network_has_one_thread_unless_more_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qcompiler.hardware.cpu.cores", lambda: 4)
    for size, threads in ((64, 1), (1024, 4)):
        assert Compilation(products(size), Options()).plan.device.threads == threads
    assert Compilation(products(64), Options(threads=3)).plan.device.threads == 3


@pytest.mark.parametrize("kind", ["conv", "product"])
@pytest.mark.parametrize("size", [8, 64, 256])
def test_what_threads_save_is_less_than_a_graph_alone_tells(kind: str, size: int) -> None:
    model = products(size) if kind == "product" else compile_time.conv(size)
    made = Compilation(model, Options(target="x86_avx2", threads=4)).plan
    assert saving(made) <= at_most(made.graph, made.device)


def test_a_small_network_is_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompiler.hardware.cpu.cores", lambda: 4)
    threads: list[int] = []
    real = sharing.plan

    def counted(graph: Graph, device: Cpu, *others: object) -> Plan:
        threads.append(device.threads)
        return real(graph, device, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(sharing, "plan", counted)
    assert Compilation(products(64), Options()).plan
    assert threads == [1]


def repeated(count: str, until: str = "") -> onnx.ModelProto:
    """A product of square matrices, repeated; `batch` of them. `until`: makes `on`, whether it goes
    on.
    """
    some = ", int64 some" if count == "some" else ""
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 18]>
        g (float[batch, 64, 64] x{some}) => (float[batch, 64, 64] y)
        <bool yes = {{1}}, int64 few = {{2}}, int64 many = {{3000}}> {{
            y = Loop <body = one (int64 i, bool going, float[batch, 64, 64] now)
                => (bool on, float[batch, 64, 64] next) {{
                m = MatMul(now, w)
                next = Tanh(m)
                {until or "on = Identity(going)"}
            }}> ({count}, yes, x)
        }}
    """)
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32) / 8
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    return model


@pytest.fixture
def _rolled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loop that can be one stays one."""
    monkeypatch.setattr("qcompiler.onnx_io.rolled.UNROLLED", -1)


@pytest.mark.usefixtures("_rolled")
@pytest.mark.parametrize(
    ("count", "until", "times"),
    [
        ("few", "", 2),
        ("many", "", 3000),
        ("many", "least = ReduceMin <keepdims = 0> (next) on = Cast <to = 9> (least)", 3000),
        ("some", "", LIKELY),
    ],
)
def test_what_threads_save_is_counted_for_every_iteration(
    count: str, until: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcompiler.hardware.cpu.cores", lambda: 4)
    made = Compilation(repeated(count, until), Options(dims={"batch": 1})).plan
    assert [r.times for r in made.repeats] == [times]
    assert made.device.threads == (4 if times == 3000 else 1)


@pytest.mark.usefixtures("_rolled")
def test_rounds_of_an_open_batch_are_predicted_with_all_iterations() -> None:
    few, many = (
        Compilation(repeated(count), Options(dims={"batch": "1..8"}, threads=1)).plan.opened
        for count in ("few", "many")
    )
    assert few is not None
    assert many is not None
    ratio = many.batches[-1].nanoseconds / few.batches[-1].nanoseconds
    assert 1000 < ratio < 1600
