"""A failing case -> a smaller one that fails in the same way, written as files.

Outputs are dropped, values are made inputs (so that what made them goes), nodes are passed by, and
dimensions made smaller, as long as the failure stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

from qcompiler.errors import Error
from qcompiler.ir import Array
from qcompiler.onnx_io.reader import read
from qcompiler.onnx_io.tensors import CODES, ExternalData, decode, encode
from qcompiler.ops import evaluate

from .generate import Case

Fails = Callable[[Case], bool]


def shrink(case: Case, fails: Fails, tries: int = 150) -> Case:
    """The smallest case found within `tries` tries."""
    left = tries
    found = True
    while found and left > 0:
        found = False
        for smaller in _smaller(case):
            left -= 1
            if _sound(smaller) and fails(smaller):
                case, found = smaller, True
                break
            if left <= 0:
                break
    return case


def _sound(case: Case) -> bool:
    """A case that can be read and means something."""
    try:
        evaluate(read(case.model), case.feeds[0])
    except (Error, ValueError, AssertionError, IndexError, KeyError):
        return False
    return True


def _smaller(case: Case) -> Iterator[Case]:
    yield from _fewer_outputs(case)
    yield from _ended_early(case)
    yield from _cut(case)
    yield from _passed_by(case)
    yield from _narrower(case)


def _copy(case: Case) -> ModelProto:
    model = ModelProto()
    model.CopyFrom(case.model)
    return model


def _with(case: Case, model: ModelProto, feeds: tuple[Mapping[str, Array], ...] = ()) -> Case:
    """The case with another model, what it no longer needs taken away."""
    graph = model.graph
    wanted = {o.name for o in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            kept.insert(0, node)
            wanted |= set(node.input)
    del graph.node[:]
    graph.node.extend(kept)
    for entries in (graph.initializer, graph.input):
        left = [e for e in entries if e.name in wanted]
        del entries[:]
        entries.extend(left)
    names = {i.name for i in graph.input}
    feeds = feeds or case.feeds
    return replace(
        case, model=model, feeds=tuple({k: v for k, v in f.items() if k in names} for f in feeds)
    )


def _fewer_outputs(case: Case) -> Iterator[Case]:
    count = len(case.model.graph.output)
    for kept in case.model.graph.output if count > 1 else ():
        model = _copy(case)
        del model.graph.output[:]
        model.graph.output.append(kept)
        yield _with(case, model)
    for i in range(count if count > 2 else 0):
        model = _copy(case)
        del model.graph.output[i]
        yield _with(case, model)


def _ended_early(case: Case) -> Iterator[Case]:
    """A value in the middle is the only output."""
    read_ = {n for node in case.model.graph.node for n in node.input}
    for name in [o for node in case.model.graph.node for o in node.output if o in read_]:
        model = _copy(case)
        del model.graph.output[:]
        model.graph.output.append(onnx.ValueInfoProto(name=name))
        yield _with(case, model)


def _values(case: Case) -> list[dict[str, Array]]:
    """Every value of the model, on every feed."""
    model = _copy(case)
    made = [o for n in model.graph.node for o in n.output if o]
    have = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in made if n not in have)
    graph = read(model)
    return [evaluate(graph, f) for f in case.feeds]


def _cut(case: Case) -> Iterator[Case]:
    """A value becomes an input: from the end, so that much goes at once."""
    try:
        values = _values(case)
    except (Error, ValueError, AssertionError, IndexError, KeyError):
        return
    outputs = {o.name for o in case.model.graph.output}
    outputs |= values[0].keys() - {n for node in case.model.graph.node for n in node.input}
    for node in reversed(case.model.graph.node):
        for name in node.output:
            if name in outputs or name not in values[0]:
                continue
            array = values[0][name]
            if array.dtype.name not in CODES:
                continue
            model = _copy(case)
            for other in model.graph.node:
                for k, output in enumerate(other.output):
                    if output == name:
                        other.output[k] = f"{name}_cut"
            code = CODES[array.dtype.name]
            model.graph.input.append(helper.make_tensor_value_info(name, code, array.shape))
            feeds = [{**f, name: v[name]} for f, v in zip(case.feeds, values, strict=True)]
            yield _with(case, model, tuple(feeds))


def _passed_by(case: Case) -> Iterator[Case]:
    """What a node makes is what it reads."""
    for i, node in enumerate(case.model.graph.node):
        for name in dict.fromkeys(n for n in node.input if n):
            model = _copy(case)
            gone = model.graph.node[i].output[0]
            del model.graph.node[i]
            for other in model.graph.node:
                for k, read_ in enumerate(other.input):
                    if read_ == gone:
                        other.input[k] = name
            if gone in {o.name for o in model.graph.output}:
                continue
            yield _with(case, model)


def _narrower(case: Case) -> Iterator[Case]:
    """A length that occurs in inputs and weights is made smaller everywhere."""
    graph = case.model.graph
    lengths = {d.dim_value for i in graph.input for d in i.type.tensor_type.shape.dim}
    lengths |= {d for t in graph.initializer for d in t.dims}
    for old in sorted(lengths - {0, 1}, reverse=True):
        for new in dict.fromkeys((1, 2, old // 2, old - 1)):
            if 0 < new < old:
                yield _resized(case, old, new)


def _resized(case: Case, old: int, new: int) -> Case:
    def cut(array: Array) -> Array:
        if array.dtype == np.int64 and array.ndim == 1 and array.size < 8:
            return np.where(array == old, new, array)
        return array[tuple(slice(new if d == old else d) for d in array.shape)]

    model = _copy(case)
    for tensor in model.graph.initializer:
        array = decode(tensor, ExternalData(None), tensor.name)
        tensor.CopyFrom(encode(np.ascontiguousarray(cut(array)), tensor.name))
    for info in model.graph.input:
        for d in info.type.tensor_type.shape.dim:
            d.dim_value = new if d.dim_value == old else d.dim_value
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    feeds = [
        {k: v[tuple(slice(new if d == old else d) for d in v.shape)] for k, v in f.items()}
        for f in case.feeds
    ]
    return _with(case, model, tuple(feeds))


def save(case: Case, folder: Path, text: str) -> Path:
    """The case as files: the model, the inputs, and what was wrong -> the model's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{case.kind}-{case.seed}.onnx"
    onnx.save(case.model, path)
    arrays = {f"{i}/{k}": v for i, feed in enumerate(case.feeds) for k, v in feed.items()}
    np.savez(path.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    d = case.device
    facts = (
        f"{case.title}\nprecision {case.precision}, caches {d.l1_bytes} {d.l2_bytes} {d.l3_bytes}"
    )
    path.with_suffix(".txt").write_text(f"{facts}\n{text}\n")
    return path
