"""TensorProto <-> numpy array; SparseTensorProto -> numpy array. Sizes, indices, offsets and paths
from a file are checked before use.

External data must be in the model's own folder (links may not lead out of it) and is mapped into
memory, not copied.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Sequence
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from qcompiler.errors import Error
from qcompiler.files import contents
from qcompiler.ir import Array, Type, numpy_dtype

DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT16: "uint16",
    onnx.TensorProto.INT16: "int16",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.BOOL: "bool",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.UINT32: "uint32",
    onnx.TensorProto.UINT64: "uint64",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.FLOAT8E4M3FN: "float8_e4m3fn",
    onnx.TensorProto.FLOAT8E4M3FNUZ: "float8_e4m3fnuz",
    onnx.TensorProto.FLOAT8E5M2: "float8_e5m2",
    onnx.TensorProto.FLOAT8E5M2FNUZ: "float8_e5m2fnuz",
    onnx.TensorProto.UINT4: "uint4",
    onnx.TensorProto.INT4: "int4",
    onnx.TensorProto.FLOAT8E8M0: "float8_e8m0fnu",
    onnx.TensorProto.FLOAT4E2M1: "float4_e2m1fn",
    onnx.TensorProto.UINT2: "uint2",
    onnx.TensorProto.INT2: "int2",
}
CODES = {name: code for code, name in DTYPES.items()}
"""dtype -> its number in ONNX's TensorProto.DataType."""

_TYPED_FIELD = {
    "float32": "float_data",
    "float64": "double_data",
    "int64": "int64_data",
    "uint64": "uint64_data",
    "uint32": "uint64_data",
}
_DATA_FIELDS = (
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "string_data",
)
_PACKED = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}
"""dtype -> bits of an element where several share a byte."""


GROWTH = 64
"""A dense tensor may have so many bytes for each one that the file has of a sparse tensor, as a
compressed artifact may, so that a little file takes little memory.
"""
SMALL_BYTES = 1 << 16
"""Up to here a dense tensor may have any number of zeros."""


class Unsupported(Error):
    """A valid but unsupported feature; the reader collects these and reports them together."""


def dtype_name(code: int, where: str) -> str:
    """A number of ONNX's TensorProto.DataType -> "float32". Raises Unsupported."""
    if code not in DTYPES:
        known = onnx.TensorProto.DataType.values()
        spelled = onnx.TensorProto.DataType.Name(code) if code in known else f"number {code}"
        raise Unsupported(f"tensors of type {spelled} are not supported", where=where)
    return DTYPES[code]


def checked_type(type: Type, where: str) -> Type:
    """A type from a file or the user -> the same. Raises Error for impossible sizes."""
    if type.fault:
        raise Error(type.fault, where=where)
    return type


class ExternalData:
    """The bytes of a model's external data files, each mapped once.

    They must be in the folder of the given path, or of the file it links to: a download cache keeps
    all files of a model in one folder, and links to them from another.
    """

    def __init__(self, model: Path | None) -> None:
        self.model = model
        self.files: dict[str, NDArray[np.uint8]] = {}

    def bytes(self, tensor: onnx.TensorProto, size: int, where: str) -> NDArray[np.uint8]:
        """The `size` bytes of a tensor's external data, as a uint8 array."""
        entries = _entries(tensor, where)
        location = entries.get("location", "")
        file = self._file(location, where)
        offset = _natural(entries.get("offset", "0"), "offset", where)
        length = _natural(entries.get("length", str(size)), "length", where)
        if length != size:
            raise Error(
                f"external data of {length} bytes where the shape needs {size}", where=where
            )
        if offset + length > file.size:
            raise Error(
                f"bytes {offset}..{offset + length} lie outside {location!r} of {file.size}",
                where=where,
                hint="the data file is truncated or belongs to another model",
            )
        return file[offset : offset + length]

    def _file(self, location: str, where: str) -> NDArray[np.uint8]:
        if location not in self.files:
            if self.model is None:
                raise Error("external data needs a model that was read from a file", where=where)
            self.files[location] = _map_contained(self.model, location, where)
        return self.files[location]


def _entries(tensor: onnx.TensorProto, where: str) -> dict[str, str]:
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries:
            raise Error(f"external data names {entry.key!r} twice", where=where)
        entries[entry.key] = entry.value
    return entries


def _natural(text: str, what: str, where: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise Error(f"external data has a bad {what} {text[:40]!r}", where=where)
    return int(text)


def _map_contained(model: Path, location: str, where: str) -> NDArray[np.uint8]:
    """A model's path and a file name relative to its folder -> the file's bytes. Raises Error if
    the file is outside the folder.
    """

    def refuse(why: str) -> Error:
        return Error(
            f"external data in {location[:200]!r} {why}",
            where=where,
            hint="put the data file itself, not a link, into the model's folder",
        )

    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    if not location or "\0" in location or posix.is_absolute() or windows.drive or windows.root:
        raise refuse("is not a relative path")
    if ".." in windows.parts:  # WindowsPath splits at both kinds of slash
        raise refuse("leaves the model's folder")
    folder = os.path.realpath(model.parent)
    real = os.path.realpath(os.path.join(folder, location))
    roots = (folder, os.path.dirname(os.path.realpath(model)))
    if not any(os.path.commonpath([root, real]) == root for root in roots):
        raise refuse("is a link out of the model's folder")
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(real, flags)
    except OSError as e:
        raise refuse(f"cannot be opened ({e.strerror})") from e
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise refuse("is not a file")
        if status.st_nlink > 1:  # CVE-2026-34446: another name of it may be outside
            raise refuse("is a hard link")
        if status.st_size == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), np.uint8)
    finally:
        os.close(descriptor)


def decode(tensor: onnx.TensorProto, external: ExternalData, where: str) -> Array:
    """TensorProto -> read-only array. Never makes more elements than the file has data for."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return _strings(tensor, where)
    dtype = dtype_name(tensor.data_type, where)
    shape = checked_type(Type(dtype, tuple(map(int, tensor.dims))), where).dims
    if tensor.HasField("segment"):
        raise Unsupported("tensors in segments are not supported", where=where)
    count = prod(shape)
    stored = _bytes(dtype, count) if dtype in _PACKED else count * numpy_dtype(dtype).itemsize
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        array = _from_bytes(external.bytes(tensor, stored, where), dtype, count)
    elif tensor.HasField("raw_data"):
        raw = np.frombuffer(tensor.raw_data, np.uint8)
        if raw.size != stored:
            raise Error(
                f"{raw.size} bytes of data where {dtype}{list(shape)} needs {stored}", where=where
            )
        array = _from_bytes(raw, dtype, count)
    else:
        array = _from_fields(tensor, dtype, count, where)
    array = array.reshape(shape)
    array.setflags(write=False)
    return array


def read_tensor(path: Path) -> Array:
    """A file of a TensorProto, as ONNX test data have it -> its array."""
    where = f"{path.parent.name}/{path.name}"
    try:
        tensor = onnx.TensorProto.FromString(contents(path))
    except DecodeError as e:
        raise Error(f"not an ONNX tensor ({e})", where=where) from e
    return decode(tensor, ExternalData(None), where)


def _strings(tensor: onnx.TensorProto, where: str) -> Array:
    """TensorProto of strings -> array of str."""
    if len(tensor.string_data) != prod(tensor.dims):
        raise Error(f"{len(tensor.string_data)} strings for {list(tensor.dims)}", where=where)
    try:
        values = [s.decode() for s in tensor.string_data]
    except UnicodeDecodeError as e:
        raise Error("a string is not text (UTF-8)", where=where) from e
    array = np.empty(len(values), object)
    array[:] = values
    array = array.reshape(tuple(tensor.dims))
    array.setflags(write=False)
    return array


def _from_bytes(raw: NDArray[np.uint8], dtype: str, count: int) -> Array:
    if dtype in _PACKED:
        return _unpack(raw, dtype, count)
    if dtype == "bool":
        return np.not_equal(raw, 0)
    array: Array = raw.view(numpy_dtype(dtype))
    return array if array.flags.aligned else array.copy()


def _bytes(dtype: str, count: int) -> int:
    """Bytes of so many elements of which several share a byte."""
    return -(-count * _PACKED[dtype] // 8)


def _unpack(raw: NDArray[np.uint8], dtype: str, count: int) -> Array:
    """Bytes of several small numbers each, the lowest bits first -> one number per element."""
    bits = _PACKED[dtype]
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = (raw[:, None] >> shifts & ((1 << bits) - 1)).ravel()[:count]
    if dtype.startswith("float"):
        return np.ascontiguousarray(parts).view(numpy_dtype(dtype))
    numbers = parts.astype(np.int8)
    if dtype.startswith("int"):
        numbers = (numbers ^ (1 << (bits - 1))) - (1 << (bits - 1))
    return numbers.astype(numpy_dtype(dtype))


def _from_fields(tensor: onnx.TensorProto, dtype: str, count: int, where: str) -> Array:
    field = _TYPED_FIELD.get(dtype, "int32_data")
    wrong = [f for f in _DATA_FIELDS if f != field and len(getattr(tensor, f))]
    if wrong:
        raise Error(f"{dtype} data is in {wrong[0]}", where=where)
    values: Sequence[int | float] = getattr(tensor, field)
    needed = _bytes(dtype, count) if dtype in _PACKED else count
    if len(values) != needed:
        raise Error(f"{len(values)} values of data where {needed} are needed", where=where)
    if field != "int32_data":
        return np.array(values, numpy_dtype(dtype) if dtype != "uint32" else np.uint64).astype(
            numpy_dtype(dtype), copy=False
        )
    bits = np.array(values, np.int32)
    if dtype in _PACKED:
        return _unpack(bits.astype(np.uint8), dtype, count)
    if dtype == "bool":
        return np.not_equal(bits, 0)
    if numpy_dtype(dtype).kind in "iu":
        return bits.astype(numpy_dtype(dtype))
    width = numpy_dtype(dtype).itemsize  # float16 and smaller: the number is the bit pattern
    return bits.astype(f"uint{8 * width}").view(numpy_dtype(dtype))


def dense(sparse: onnx.SparseTensorProto, external: ExternalData, where: str) -> Array:
    """SparseTensorProto -> read-only array, of zeros but for its values.

    `indices` int64[n, rank] or int64[n] (row-major) say where the values[n] stand, in ascending
    order. Raises Error for places outside the shape, and for far more zeros than values.
    """
    values = decode(sparse.values, external, f"{where}, values")
    indices = decode(sparse.indices, external, f"{where}, indices")
    shape = checked_type(Type(values.dtype.name, tuple(map(int, sparse.dims))), where).dims
    if values.dtype == object or np.zeros(1, values.dtype).astype(np.float32)[0] != 0:
        raise Unsupported(f"sparse tensors of {values.dtype.name} are not supported", where=where)
    size, stored = prod(shape) * values.dtype.itemsize, values.nbytes + indices.nbytes
    if size > max(SMALL_BYTES, GROWTH * stored):
        hint = "store it as a dense tensor, or as a ScatterND into a ConstantOfShape"
        raise Error(f"{stored} bytes would become {size}", where=where, hint=hint)
    array = np.zeros(prod(shape), values.dtype)
    array[_places(indices, values.size, shape, where)] = values.ravel()
    array = array.reshape(shape)
    array.setflags(write=False)
    return array


def _places(indices: Array, count: int, shape: tuple[int, ...], where: str) -> NDArray[np.int64]:
    """The indices of a sparse tensor's `count` values -> row-major places, int64[count]."""
    rank = len(shape)
    if indices.dtype != np.int64 or indices.shape not in ((count,), (count, rank)):
        given = f"{indices.dtype.name}{list(indices.shape)}"
        raise Error(f"{given} cannot be indices of {count} values in {rank} axes", where=where)
    dims = shape if indices.ndim == 2 else (prod(shape),)
    rows = indices.astype(np.int64, copy=False).reshape(count, len(dims))
    if np.any((rows < 0) | (rows >= np.array(dims, np.int64))):
        raise Error(f"an index lies outside {list(shape)}", where=where)
    strides = [prod(dims[i + 1 :]) for i in range(len(dims))]
    places: NDArray[np.int64] = rows @ np.array(strides, np.int64)
    if not (places[:-1] < places[1:]).all():
        raise Error("the indices do not ascend, as ONNX wants them to", where=where)
    return places


def encode(array: Array, name: str = "") -> onnx.TensorProto:
    """Array -> TensorProto with raw data."""
    dtype = array.dtype.name
    if dtype not in CODES:
        raise Error(f"ONNX has no tensors of {dtype}", where=name)
    tensor = onnx.TensorProto(name=name, data_type=CODES[dtype], dims=array.shape)
    if dtype in _PACKED:
        bits, flat = _PACKED[dtype], np.ascontiguousarray(array).ravel()
        whole = flat.view(np.uint8) if dtype.startswith("float") else flat.astype(np.int8)
        codes = whole.view(np.uint8) & ((1 << bits) - 1)
        codes = np.append(codes, np.zeros(-codes.size % (8 // bits), np.uint8))
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        packed = np.bitwise_or.reduce(codes.reshape(-1, 8 // bits) << shifts, axis=1)
        tensor.raw_data = packed.astype(np.uint8).tobytes()
    else:
        tensor.raw_data = np.ascontiguousarray(array).tobytes()
    return tensor
