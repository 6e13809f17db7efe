"""A case -> models of the same meaning, written in another way, and their artifacts against it.

Some of its nodes stand in the branch of an If, in the body of a Loop or Scan, or in a function of
the model; or its weights are given by each run; or all that it computes is among its outputs. A
Loop computes the same in every iteration, so that one is as good as many. Where a run takes the
other branch, or no iteration, zeros stand for what the nodes would have computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
    shape_inference,
)

from qcompiler.driver import Compilation
from qcompiler.errors import Error
from qcompiler.ir import Array, numpy_dtype
from qcompiler.onnx_io.reader import read
from qcompiler.onnx_io.tensors import CODES, encode
from qcompiler.options import Options
from qcompiler.runtime import load

from .checks import Outcome, compare, outcome_of
from .generate import Case
from .poison import BYTES, poisoned, stir
from .reference import references

DTYPES = {code: name for name, code in CODES.items()}
INSIDE, TAKEN, TIMES = "_inside", "taken", "times"
MOST = 2500
"""Iterations of a Loop that is never unrolled."""


@dataclass(frozen=True)
class Changed:
    """A model, what its new inputs are in each run, and the model that says what it means in it."""

    what: str
    model: ModelProto
    feeds: Sequence[Mapping[str, Array]]
    meant: Sequence[ModelProto]


def check_changed(case: Case) -> Outcome:
    """Every way in which a case can be written, compiled and run."""

    def check(outcome: Outcome) -> None:
        for changed in ways(case):
            _check(case, changed, outcome)

    return outcome_of(check)


def ways(case: Case) -> Iterator[Changed]:
    """A case -> the same in other ways; fewer where nodes of unknown sizes would have to move."""
    rng = np.random.default_rng((case.seed, 0xC4))
    for way in (branched, looped, scanned, called, given, exposed):
        changed = way(case, rng)
        if changed is not None:
            yield changed


def _check(case: Case, changed: Changed, outcome: Outcome) -> None:
    try:
        made = Compilation(changed.model, Options(threads=2)).having(device=case.device)
        artifact = made.artifact
    except Error as e:
        outcome.refused = f"{changed.what}: {e}"
        return
    runs = list(zip(case.feeds, changed.feeds, changed.meant, strict=True))
    wanted = [references(read(meant), feed, kernels=False) for feed, _, meant in runs]
    for threads in (1, 2):
        model = load(artifact, threads=threads)
        for turn in (0, 1, 2, 0):
            byte = BYTES[turn % 2]
            with poisoned(byte):
                stir(model, byte)
                got = model.run({**runs[turn][0], **runs[turn][1]})
            where = f"{changed.what}, {threads} threads, run {turn}"
            if not compare(where, got, wanted[turn], outcome):
                return


# Some nodes inside a node.


@dataclass(frozen=True)
class _Part:
    """Neighbouring nodes of a model, with what they compute for others."""

    before: Sequence[NodeProto]
    nodes: Sequence[NodeProto]
    after: Sequence[NodeProto]
    outputs: Sequence[ValueInfoProto]

    @property
    def names(self) -> list[str]:
        """Of what others read."""
        return [o.name for o in self.outputs]

    def body(self, name: str, first: Sequence[NodeProto] = ()) -> GraphProto:
        """The nodes as a graph, behind others."""
        made = {o for n in self.nodes for o in n.output if o}
        inside = [_renamed(n, made) for n in self.nodes]
        outputs = [_named(o, o.name + INSIDE) for o in self.outputs]
        return helper.make_graph([*first, *inside], name, [], outputs)


def _part(case: Case, rng: np.random.Generator) -> _Part | None:
    """Up to six nodes of a case."""
    try:
        typed = shape_inference.infer_shapes(case.model, strict_mode=True, data_prop=True)
    except Exception:  # what ONNX has no inference for
        return None
    infos = {v.name: v for v in (*typed.graph.value_info, *typed.graph.output)}
    nodes = list(case.model.graph.node)
    start = int(rng.integers(len(nodes)))
    end = min(start + int(rng.integers(1, 7)), len(nodes))
    read_ = {i for n in nodes[end:] for i in n.input} | {o.name for o in case.model.graph.output}
    names = [o for n in nodes[start:end] for o in n.output if o in read_]
    if not names or any(n not in infos or _dims(infos[n]) is None for n in names):
        return None
    outputs = [infos[n] for n in names]
    return _Part(nodes[:start], nodes[start:end], nodes[end:], outputs)


def _dims(value: ValueInfoProto) -> tuple[int, ...] | None:
    kind = value.type.tensor_type
    fixed = kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim)
    return tuple(d.dim_value for d in kind.shape.dim) if fixed else None


def _zeros(value: ValueInfoProto) -> Array:
    dims = _dims(value)
    assert dims is not None
    return np.zeros(dims, numpy_dtype(DTYPES[value.type.tensor_type.elem_type]))


def _named(value: ValueInfoProto, name: str) -> ValueInfoProto:
    made = ValueInfoProto()
    made.CopyFrom(value)
    made.name = name
    return made


def _renamed(node: NodeProto, names: set[str]) -> NodeProto:
    made = NodeProto()
    made.CopyFrom(node)
    made.input[:] = [i + INSIDE * (i in names) for i in node.input]
    made.output[:] = [o + INSIDE * (o in names) for o in node.output]
    return made


def _with(
    model: ModelProto,
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto] = (),
    held: Mapping[str, Array] | None = None,
) -> ModelProto:
    """A model of other nodes, more inputs and more weights."""
    made = ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    made.graph.input.extend(inputs)
    made.graph.initializer.extend(encode(a, n) for n, a in (held or {}).items())
    return made


def _without(model: ModelProto, part: _Part) -> ModelProto:
    """A model with zeros where the nodes of a part have computed."""
    return _with(model, [*part.before, *part.after], held={o.name: _zeros(o) for o in part.outputs})


def branched(case: Case, rng: np.random.Generator) -> Changed | None:
    """Nodes in one branch of an If, zeros in the other."""
    part = _part(case, rng)
    if part is None:
        return None
    zeros = [
        helper.make_node("Constant", [], [o.name + "_zero"], value=encode(_zeros(o), "zero"))
        for o in part.outputs
    ]
    other = helper.make_graph(
        zeros, "other", [], [_named(o, o.name + "_zero") for o in part.outputs]
    )
    taken = [True, False, True] if rng.random() < 0.5 else [False, True, True]
    node = helper.make_node(
        "If", [TAKEN], part.names, then_branch=part.body("nodes"), else_branch=other
    )
    model = _with(case.model, [*part.before, node, *part.after], [_scalar(TAKEN, "bool")])
    meant = [case.model if t else _without(case.model, part) for t in taken]
    return Changed("If", model, [{TAKEN: np.array(t)} for t in taken], meant)


def looped(case: Case, rng: np.random.Generator) -> Changed | None:
    """Nodes in a Loop of as many iterations as a run says, or of more than are unrolled."""
    part = _part(case, rng)
    if part is None:
        return None
    body = part.body("body", [helper.make_node("Identity", ["going"], ["goes"])])
    states = [_named(o, o.name + "_before") for o in part.outputs]
    body.input.extend([_scalar("iteration", "int64"), _scalar("going", "bool"), *states])
    body.output.insert(0, _scalar("goes", "bool"))
    held: dict[str, Array] = {o.name + "_first": _zeros(o) for o in part.outputs}
    small = sum(a.size for a in held.values()) < 200
    fixed = small and rng.random() < 0.3
    node = helper.make_node("Loop", [TIMES, "", *held], part.names, body=body)
    held |= {TIMES: np.array(MOST)} if fixed else {}
    inputs = [] if fixed else [_scalar(TIMES, "int64")]
    model = _with(case.model, [*part.before, node, *part.after], inputs, held)
    times = [MOST] * 3 if fixed else [int(n) for n in rng.permutation([0, 1, 3])]
    feeds: list[dict[str, Array]] = [{} if fixed else {TIMES: np.array(n)} for n in times]
    meant = [case.model if n else _without(case.model, part) for n in times]
    return Changed("Loop", model, feeds, meant)


def scanned(case: Case, rng: np.random.Generator) -> Changed | None:
    """Nodes in a Scan of few steps, whose last says what they have computed."""
    part = _part(case, rng)
    if part is None:
        return None
    body = part.body("body")
    states = [_named(o, o.name + "_before") for o in part.outputs]
    body.input.extend([*states, _scalar("step", "float32")])
    held: dict[str, Array] = {o.name + "_first": _zeros(o) for o in part.outputs}
    held["steps"] = np.zeros(int(rng.integers(1, 4)), np.float32)
    node = helper.make_node("Scan", [*held], part.names, body=body, num_scan_inputs=1)
    model = _with(case.model, [*part.before, node, *part.after], held=held)
    return Changed("Scan", model, [{}] * 3, [case.model] * 3)


def called(case: Case, rng: np.random.Generator) -> Changed | None:
    """Nodes in a function of the model, which is called once."""
    part = _part(case, rng)
    if part is None:
        return None
    made = {o for n in part.nodes for o in n.output}
    needed = [*dict.fromkeys(i for n in part.nodes for i in n.input if i and i not in made)]
    opsets = list(case.model.opset_import)
    function = helper.make_function("own", "Nodes", needed, part.names, part.nodes, opsets)
    node = helper.make_node("Nodes", needed, part.names, domain="own")
    model = _with(case.model, [*part.before, node, *part.after])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    return Changed("function", model, [{}] * 3, [case.model] * 3)


def _scalar(name: str, dtype: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, CODES[dtype], [])


# The whole.


def given(case: Case, rng: np.random.Generator) -> Changed | None:
    """Half of the floating-point weights are inputs."""
    chosen = [t for t in case.model.graph.initializer if "float" in DTYPES[t.data_type]]
    chosen = [t for t in chosen if rng.random() < 0.5]
    if not chosen:
        return None
    arrays = {t.name: numpy_helper.to_array(t) for t in chosen}
    infos = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in chosen]
    model = _with(case.model, case.model.graph.node, infos)
    kept = [t for t in case.model.graph.initializer if t.name not in arrays]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return Changed("weights given", model, [arrays] * 3, [case.model] * 3)


def exposed(case: Case, rng: np.random.Generator) -> Changed | None:
    """What any node computes is an output, too, but what data decide the size of: the meaning has
    that as the most there may be.
    """
    model = _with(case.model, case.model.graph.node)
    have = {o.name for o in model.graph.output}
    names = [o for n in model.graph.node for o in n.output if o and o not in have]
    model.graph.output.extend(ValueInfoProto(name=n) for n in names)
    try:
        model = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception:
        return None
    known = [o for o in model.graph.output if _is_known(o)]
    del model.graph.output[:]
    model.graph.output.extend(known)
    return Changed("all outputs", model, [{}] * 3, [model] * 3)


def _is_known(output: ValueInfoProto) -> bool:
    kind = output.type.tensor_type
    return kind.elem_type != 0 and all(d.HasField("dim_value") for d in kind.shape.dim)
