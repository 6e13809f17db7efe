"""Steps so small that LLVM would inline them: each sees what those before it wrote, and no kernel's
code stands in its callers.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from kernel_harness import isas

import qcompiler
from qcompiler import plugins
from qcompiler.driver import Compilation
from qcompiler.emit.machine import machine_code, modules
from qcompiler.emit.native import layers
from qcompiler.hardware.isa import ISAS
from qcompiler.onnx_io.reader import read
from qcompiler.ops import evaluate
from qcompiler.options import Options
from qcompiler.plan.places import Place

plugins.load_all()

ISA = pytest.mark.parametrize("isa", [i.name for i in isas() if i.name in ISAS])
MODELS = {
    "crop, pad": (
        "float[1, 2, 5, 8] x",
        "s = Constant <value_ints = [2]> () e = Constant <value_ints = [6]> ()"
        "a = Constant <value_ints = [3]> () p = Constant <value_ints = [0, 0, 1, 0, 0, 0, 1, 0]> ()"
        "t = Slice(x, s, e, a) y = Pad(t, p)",
    ),
    "shift": (
        "float[3, 4, 6] x",
        "s = Constant <value_ints = [0]> () e = Constant <value_ints = [3]> ()"
        "a = Constant <value_ints = [1]> () z = Constant <value = float[3, 1, 6] {}> ()"
        "t = Slice(x, s, e, a) y = Concat <axis = 1> (z, t)".replace("{}", "{" + "0, " * 17 + "0}"),
    ),
    "space to depth": ("float[1, 1, 4, 6] x", "y = SpaceToDepth <blocksize = 2> (x)"),
    "depth to space": ("float[1, 8, 2, 3] x", "y = DepthToSpace <blocksize = 2> (x)"),
    "pool": ("float[1, 3, 2, 2] x", "y = AveragePool <kernel_shape = [2, 2]> (x)"),
    "max": ("float[1, 3, 4, 4] x", "y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)"),
    "sums": ("float[2, 3, 5] x", "m = ReduceSum(x) t = Softmax(x) u = Add(t, m) y = Mul(u, x)"),
}


def model_of(name: str) -> onnx.ModelProto:
    given, nodes = MODELS[name]
    kept = [t for t in nodes.replace(") ", ")\n").split("\n") if t]
    text = '<ir_version: 8, opset_import: ["": 18]> g ({}) => (float y) {{ {} }}'
    model = onnx.parser.parse_model(text.format(given, "\n".join(kept)))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


@ISA
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_every_call_answers_for_its_own_data(name: str, threads: int, isa: str) -> None:
    model = model_of(name)
    made = qcompiler.load(qcompiler.compile(model, target=isa, threads=threads))
    graph, rng = read(model), np.random.default_rng(0)
    for _ in range(20):
        x = rng.standard_normal(made.inputs[0].shape).astype(np.float32)
        (want,) = evaluate(graph, {"x": x}).values()
        np.testing.assert_allclose(made(x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("isa", [n for n, i in ISAS.items() if i.multiprocessor is None])
@pytest.mark.parametrize("name", MODELS)
def test_every_kernel_is_called_and_none_is_inlined(name: str, isa: str) -> None:
    """Also on instruction sets that this machine lacks: their code is made, not run."""
    plan = Compilation(model_of(name), Options(target=isa, threads=2)).plan
    kernels = {s.kernel.name for s in plan.steps}
    dealt = modules(*layers(plan))
    names = [sorted(n for m in found for n in m.functions) for found in (dealt, layers(plan))]
    assert names[0] == names[1]
    called: set[str] = set()
    for module in dealt:
        text = machine_code(module.functions, plan.device.isa, module.text).inspect_source()
        held = set(re.findall(r"^define [^@]*@\"?([\w.]+)\"?\(", text, re.M)) & kernels
        reached = set(re.findall(r"call [^@]*@\"?([\w.]+)\"?\(", text)) & kernels
        assert not (held and reached)
        called |= reached
    assert called == kernels


@ISA
def test_only_pointers_of_other_memories_are_said_to_be_so(isa: str) -> None:
    """An output that may take over an input's memory is not promised to be elsewhere."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 18]>
        g (float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w)
            b = Conv <pads = [1, 1, 1, 1]> (a, w)
            c = Conv <pads = [1, 1, 1, 1]> (b, w)
            d = Add(c, a)
            y = Softmax(d)
        }
    """)
    weights = np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    plan = Compilation(model, Options(target=isa)).plan
    taken = []
    for step in plan.steps:
        assert bool(step.kernel.func.attrs["tirx.noalias"]) is not bool(step.kernel.in_place)
        over = {i for i, p in enumerate(step.operands) if _overlap(p, step.output)}
        assert over <= set(step.kernel.in_place)
        taken += [step.name] if over else []
    assert taken


def _overlap(a: Place, b: Place) -> bool:
    """Do two values lie in the same bytes of the workspace?"""
    if a.space != "workspace" or b.space != "workspace":
        return False
    return a.offset < b.offset + b.bytes and b.offset < a.offset + a.bytes
