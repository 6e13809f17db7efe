"""Loading ONNX files: the model, its opset imports and initializers.

Raises Error for files that are not ONNX models, too large, too old or too new.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import (
    FunctionProto,
    GraphProto,
    ModelProto,
    OperatorSetIdProto,
    SparseTensorProto,
    TensorProto,
)

from qcompiler.errors import Error
from qcompiler.files import contents, opened
from qcompiler.onnx_io.inputs import first_double
from qcompiler.onnx_io.schema import NEWEST, OLDEST
from qcompiler.onnx_io.structure import FunctionKey, domain_of, initializer_names

MAX_FILE_BYTES = (1 << 31) - 1

_TORCH = "export it from PyTorch: torch.onnx.export(model, (example,), 'model.onnx')"
_TENSORFLOW = "convert it to ONNX, by tf2onnx (pip install tf2onnx)"
_HINTS = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".safetensors"), _TORCH),
    **dict.fromkeys((".pb", ".h5", ".keras", ".tflite"), _TENSORFLOW),
    ".qc": "this is an artifact, compiled already: `qcompiler run` and `bench` take it",
}
"""What to do with files of other tools, by their suffix."""


def load(path: Path) -> ModelProto:
    """An ONNX file -> its protobuf message."""
    where = str(path)
    if os.path.isdir(path):
        raise Error("a folder, not an ONNX file", where=where)
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size > MAX_FILE_BYTES:
        raise Error(
            f"{size} bytes exceed the 2 GB limit of a protobuf file",
            where=where,
            hint="save the model with external data",
        )
    data = contents(path)
    if not data:
        raise Error("the file is empty", where=where)
    try:
        model: ModelProto = ModelProto.FromString(data)
    except DecodeError as e:
        hint = _HINTS.get(path.suffix.lower(), "")
        raise Error("not an ONNX model, or a damaged one", where=where, hint=hint) from e
    return model


def opset_versions(imports: Iterable[OperatorSetIdProto]) -> dict[str, int]:
    """Opset imports of a model or function -> {domain: version}; ONNX's own domain is ""."""
    found = {domain_of(i.domain): i.version for i in imports}
    if not found:
        raise Error("not an ONNX model: it imports no opset")
    version = found.get("", NEWEST)
    if version < OLDEST:
        raise Error(
            f"opset {version} is older than {OLDEST}",
            hint="convert it: onnx.version_converter.convert_version(model, 13)",
        )
    if version > NEWEST:
        raise Error(
            f"opset {version} is newer than {NEWEST}", hint=f"re-export with opset {NEWEST}"
        )
    return found


def functions_of(model: ModelProto) -> dict[FunctionKey, FunctionProto]:
    """The functions that a model brings along, by domain, name and overload."""
    keys = [(domain_of(f.domain), f.name, f.overload) for f in model.functions]
    found = dict(zip(keys, model.functions, strict=True))
    if len(found) != len(keys):
        raise Error(f"two functions have the name {first_double(keys)[1]!r}")
    return found


def initializers(proto: GraphProto) -> dict[str, TensorProto | SparseTensorProto]:
    """The initializers of a graph by name, dense and sparse."""
    names = [*initializer_names(proto)]
    found = dict(zip(names, (*proto.initializer, *proto.sparse_initializer), strict=True))
    if len(found) != len(names):
        raise Error(f"two initializers have the name {first_double(names)!r}")
    return found
