"""Bodies of the Open Inference Protocol, version 2 <-> arrays; with the extension for binary data.

    request: JSON, then the bytes of the inputs whose JSON says binary_data_size, in order
    response: JSON, then the bytes of the outputs that were asked for in binary, in order

https://github.com/kserve/open-inference-protocol, and Triton's protocol/extension_binary_data.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from qcompiler.artifact.artifact import Value
from qcompiler.dtypes import numpy_dtype
from qcompiler.errors import Error
from qcompiler.runtime.arrays import Array
from qcompiler.runtime.feeds import shaped
from qcompiler.version import __version__

DATATYPES: Mapping[str, str] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
}
_BINARY_ONLY = ("FP16", "BF16")
"""JSON has no such numbers, says the protocol."""
_UNSUPPORTED = ("classification", "shared_memory_region", "shared_memory_byte_size")
DEFAULT_LEVEL = 100
"""The priority of requests that name none; 1 is the highest, as in Triton."""


@dataclass(frozen=True)
class Asked:
    """A request: its inputs, which outputs it wants, and how."""

    id: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, bool]
    """Names of the outputs, in order -> are they wanted in binary?"""
    priority: int = 0
    deadline_ms: float = 0.0


@dataclass(frozen=True)
class Answer:
    """A response's body, and how many bytes of it are JSON (None: all)."""

    body: bytes
    json_bytes: int | None = field(default=None)


def asked(
    body: bytes, json_bytes: int | None, inputs: Sequence[Value], outputs: Sequence[Value]
) -> Asked:
    """A request's body, and how many bytes of it are JSON (None: all) -> what is asked of a model
    with these inputs and outputs. Raises Error for what is no such request.
    """
    size = len(body) if json_bytes is None else json_bytes
    if size > len(body):
        raise Error(f"the header says {size} bytes of JSON, the body has {len(body)}")
    told = _object(_parsed(body[:size]), "the request")
    parameters = _object(told.get("parameters", {}), "parameters")
    priority = _number(parameters.get("priority", 0), "priority")
    rest = memoryview(body)[size:]
    arrays, types = {}, {v.name: v.dtype for v in inputs}
    for each in _list(told.get("inputs"), "inputs"):
        tensor = _object(each, "an input")
        name = _text(tensor.get("name"), "an input's name")
        if name in arrays or name not in types:
            known = ", ".join(types)
            raise Error(f"no such input, or twice: {name!r}", hint=f"the inputs are {known}")
        arrays[name], rest = _array(tensor, name, types[name], rest)
    if len(rest):
        raise Error(f"{len(rest)} bytes are left behind the inputs")
    return Asked(
        id=_text(told.get("id", ""), "id"),
        inputs=arrays,
        outputs=_wanted(told.get("outputs"), parameters, outputs),
        priority=DEFAULT_LEVEL - int(priority) if priority else 0,
        deadline_ms=_number(parameters.get("timeout", 0), "timeout") * 1e-3,
    )


def answered(name: str, ask: Asked, outputs: Mapping[str, Array]) -> Answer:
    """A model's name, a request and the outputs -> the response. Raises Error where an output
    cannot be told in JSON.
    """
    made, tail = [], []
    for output, binary in ask.outputs.items():
        array = np.ascontiguousarray(outputs[output])
        kind = DATATYPES[array.dtype.name]
        told: dict[str, object] = {"name": output, "datatype": kind, "shape": list(array.shape)}
        if binary:
            told["parameters"] = {"binary_data_size": array.nbytes}
            tail.append(array.tobytes())
        elif kind in _BINARY_ONLY:
            raise Error(f"{kind} is only sent in binary", where=f"output {output!r}")
        else:
            told["data"] = array.reshape(-1).tolist()
        made.append(told)
    whole: dict[str, object] = {"model_name": name, "model_version": "1", "outputs": made}
    text = json.dumps({**whole, **({"id": ask.id} if ask.id else {})}).encode()
    return Answer(b"".join((text, *tail)), len(text) if tail else None)


def metadata(
    name: str, inputs: Sequence[Value], outputs: Sequence[Value], *, any_batch: bool
) -> dict[str, object]:
    """What a model is; -1 is an open size. `any_batch`: requests may have any number of samples."""

    def told(value: Value) -> dict[str, object]:
        shape = [d if isinstance(d, int) else -1 for d in value.dims]
        shape[:1] = [-1] if any_batch else shape[:1]
        return {"name": value.name, "datatype": DATATYPES[value.dtype], "shape": shape}

    return {
        "name": name,
        "versions": ["1"],
        "platform": "qcompiler",
        "inputs": [told(v) for v in inputs],
        "outputs": [told(v) for v in outputs],
    }


def server() -> dict[str, object]:
    """What the server is."""
    return {"name": "qcompiler", "version": __version__, "extensions": ["binary_tensor_data"]}


def _array(
    tensor: Mapping[str, Any], name: str, dtype: str, rest: memoryview
) -> tuple[Array, memoryview]:
    """An input, of this dtype, and the bytes that follow the JSON -> its array, and those that
    follow it.
    """
    where = f"input {name!r}"
    if tensor.get("datatype") != DATATYPES[dtype]:
        told = tensor.get("datatype")
        raise Error(f"datatype {told!r} given, {DATATYPES[dtype]} wanted", where=where)
    parameters = _object(tensor.get("parameters", {}), "parameters")
    _demand_supported(parameters, where)
    shape = [_count(d, f"{where}, shape") for d in _list(tensor.get("shape"), f"{where}, shape")]
    kind = numpy_dtype(dtype)
    if "binary_data_size" not in parameters:
        return _from_json(tensor.get("data"), kind, shape, where), rest
    size = _count(parameters["binary_data_size"], f"{where}, binary_data_size")
    wanted = prod(shape) * kind.itemsize
    if size != wanted:
        raise Error(f"{size} bytes for shape {shape}, which has {wanted}", where=where)
    if size > len(rest):
        raise Error(f"{size} bytes are said to follow, {len(rest)} do", where=where)
    array = shaped(np.frombuffer(rest[:size], kind), shape, where)
    if dtype == "bool" and array.view(np.uint8).max(initial=0) > 1:
        raise Error("a byte of BOOL is neither 0 nor 1", where=where)
    return array, rest[size:]


def _from_json(data: object, dtype: np.dtype[Any], shape: Sequence[int], where: str) -> Array:
    """JSON's numbers, flat or nested -> an array; only what floats cannot hold is rounded."""
    if DATATYPES[dtype.name] in _BINARY_ONLY:
        raise Error(f"{DATATYPES[dtype.name]} is only taken in binary", where=where)
    try:
        found = np.asarray(_list(data, f"{where}, data"))
    except (ValueError, OverflowError) as e:
        raise Error("data is not rectangular, or has no numbers", where=where) from e
    kinds = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}[dtype.kind]
    if found.size and found.dtype.kind not in kinds:
        raise Error(f"data is not of numbers that fit {dtype}", where=where)
    if found.size != prod(shape):
        raise Error(f"{found.size} numbers for shape {list(shape)}", where=where)
    if dtype.kind in "iu" and found.size:
        limits = np.iinfo(dtype)
        if int(found.min()) < limits.min or int(found.max()) > limits.max:
            raise Error(f"a number does not fit {dtype}", where=where)
    return shaped(found.astype(dtype), shape, where)


def _wanted(
    told: object, parameters: Mapping[str, Any], outputs: Sequence[Value]
) -> dict[str, bool]:
    """The outputs that a request asks for (None: all) -> is each to be sent in binary?"""
    names, usual = [v.name for v in outputs], parameters.get("binary_data_output") is True
    if told is None:
        return dict.fromkeys(names, usual)
    found = {}
    for each in _list(told, "outputs"):
        output = _object(each, "an output")
        name = _text(output.get("name"), "an output's name")
        if name in found or name not in names:
            raise Error(f"no such output, or twice: {name!r}", hint=f"they are {', '.join(names)}")
        own = _object(output.get("parameters", {}), "parameters")
        _demand_supported(own, f"output {name!r}")
        found[name] = own.get("binary_data", usual) is True
    return found or dict.fromkeys(names, usual)


def _demand_supported(parameters: Mapping[str, Any], where: str) -> None:
    for name in _UNSUPPORTED:
        if name in parameters:
            raise Error(f"{name} is not supported", where=where)


def _parsed(text: bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise Error("the request is not JSON") from e


def _object(raw: object, what: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise Error(f"{what}: an object wanted")
    return raw


def _list(raw: object, what: str) -> list[Any]:
    if not isinstance(raw, list):
        raise Error(f"{what}: an array wanted")
    return raw


def _text(raw: object, what: str) -> str:
    if not isinstance(raw, str):
        raise Error(f"{what}: a string wanted")
    return raw


def _count(raw: object, what: str) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or not 0 <= raw < 1 << 40:
        raise Error(f"{what}: a count wanted")
    return raw


def _number(raw: object, what: str) -> float:
    if not isinstance(raw, (int, float)) or isinstance(raw, bool) or not 0 <= raw < 1e15:
        raise Error(f"{what}: a number that is not negative wanted")
    return raw
