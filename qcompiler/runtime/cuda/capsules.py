"""DLPack, by ctypes: tensors of other libraries -> where they lie; memory of ours -> capsules.

The structures are those of version 1.0 (https://dmlc.github.io/dlpack/latest/c_api.html), and of
those before it, which many libraries still give; who frees what is in "Python Specification for
DLPack".
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from typing import Any

from qcompiler.errors import Error

CUDA, MANAGED = 2, 13  # kDLCUDA, kDLCUDAManaged
VERSION = (1, 0)
_PLAIN, _VERSIONED = b"dltensor", b"dltensor_versioned"
_USED = {_PLAIN: b"used_dltensor", _VERSIONED: b"used_dltensor_versioned"}
_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "bool": 6}
_EIGHTS = {"float8_e4m3fn": 10, "float8_e4m3fnuz": 11, "float8_e5m2": 12, "float8_e5m2fnuz": 13}


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("number", ctypes.c_int32)]


class _Dtype(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
    ]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("rank", ctypes.c_int32),
        ("dtype", _Dtype),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    ]


class _Plain(ctypes.Structure):
    _fields_ = [
        ("tensor", _Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


class _Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_Object, _Text, _Address = ctypes.py_object, ctypes.c_char_p, ctypes.c_void_p


def _python(name: str, result: Any, *taken: Any) -> Any:
    """A function of Python's own library; a capsule that is being freed is an address."""
    return ctypes.PYFUNCTYPE(result, *taken)((name, ctypes.pythonapi))


_new = _python("PyCapsule_New", _Object, _Address, _Text, _Destructor)
_is_named = _python("PyCapsule_IsValid", ctypes.c_int, _Object, _Text)
_pointer = _python("PyCapsule_GetPointer", _Address, _Object, _Text)
_rename = _python("PyCapsule_SetName", ctypes.c_int, _Object, _Text)
_freed_is_named = _python("PyCapsule_IsValid", ctypes.c_int, _Address, _Text)
_freed_pointer = _python("PyCapsule_GetPointer", _Address, _Address, _Text)


def code_of(dtype: str) -> tuple[int, int]:
    """A dtype's name -> DLPack's code and bits. Raises Error if it has none."""
    if dtype == "bool":
        return _CODES["bool"], 8
    if dtype in _EIGHTS:
        return _EIGHTS[dtype], 8
    found = re.fullmatch(r"([a-z]+)(\d+)", dtype)
    if found is None or found[1] not in _CODES or int(found[2]) < 8:
        raise Error(f"DLPack has no {dtype}", hint="give and take numpy arrays")
    return _CODES[found[1]], int(found[2])


def _told(code: int, bits: int) -> str:
    """DLPack's code and bits -> what errors call them."""
    eight = next((n for n, c in _EIGHTS.items() if (c, 8) == (code, bits)), "")
    word = next((n for n, c in _CODES.items() if c == code), f"code {code} ")
    return eight or (word if word == "bool" and bits == 8 else f"{word}{bits}")


class Borrowed:
    """A tensor of another library, which stays as it is until this is freed.

    `stream`: where the borrower's work will run; the other library lets it wait for its own.
    Raises Error where it gives nothing.
    """

    def __init__(self, given: Any, stream: int, where: str) -> None:
        capsule = _asked(given, stream, where)
        name = next((n for n in (_VERSIONED, _PLAIN) if _is_named(capsule, n)), None)
        if name is None:
            raise Error(f"{type(given).__name__} gives no tensor of DLPack", where=where)
        address = _pointer(capsule, name)
        kind = _Versioned if name == _VERSIONED else _Plain
        managed = kind.from_address(address)
        if isinstance(managed, _Versioned) and managed.major != VERSION[0]:
            raise Error(f"DLPack {managed.major} given, {VERSION[0]} wanted", where=where)
        _rename(capsule, _USED[name])  # from here on it is ours to free
        self._managed: int | None = address
        self._deleter = managed.deleter
        tensor: _Tensor = managed.tensor
        self.address = (tensor.data or 0) + tensor.offset
        self.device = (tensor.device.kind, tensor.device.number)
        self.code = (tensor.dtype.code, tensor.dtype.bits)
        self.dtype = _told(*self.code) + ("s" if tensor.dtype.lanes != 1 else "")
        self.shape = tuple(tensor.shape[i] for i in range(tensor.rank))
        steps = tensor.strides
        self.strides = tuple(steps[i] for i in range(tensor.rank)) if steps else None

    @property
    def contiguous(self) -> bool:
        """Whether elements follow each other in the order of C."""
        if self.strides is None or 0 in self.shape:
            return True
        pairs = zip(self.shape, self.strides, compact(self.shape))
        return all(own == want for size, own, want in pairs if size != 1)

    def __del__(self) -> None:
        address, self._managed = getattr(self, "_managed", None), None
        if address is not None and self._deleter:
            _Deleter(self._deleter)(address)


def _asked(given: Any, stream: int, where: str) -> Any:
    """What another library exports for a stream."""
    try:
        try:
            return given.__dlpack__(stream=stream, max_version=VERSION)
        except TypeError:  # a library of before version 1.0
            return given.__dlpack__(stream=stream)
    except Exception as e:
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        hint = "give tensor.detach()" if hasattr(given, "detach") else ""
        raise Error(f"{type(given).__name__}: {reason}", where=where, hint=hint) from e


def compact(shape: Sequence[int]) -> tuple[int, ...]:
    """The steps along each dimension of elements in the order of C."""
    steps, step = [], 1
    for size in reversed(shape):
        steps.append(step)
        step *= size
    return tuple(reversed(steps))


_lent: dict[int, Any] = {}
"""By the address of a structure that others hold: what must live as long."""


def _give_back(address: int) -> None:
    _lent.pop(address, None)


_given_back = _Deleter(_give_back)


def _drop(capsule: int) -> None:
    """Free what nobody has taken out of a capsule."""
    for name in _USED:
        if _freed_is_named(capsule, name):
            _give_back(_freed_pointer(capsule, name))


_dropped = _Destructor(_drop)


def capsule_of(
    owner: object,
    address: int,
    dtype: str,
    shape: Sequence[int],
    device: tuple[int, int],
    versioned: bool,
) -> Any:
    """Memory of a GPU -> a capsule; `owner` lives until who takes it gives it back."""
    rank, code = len(shape), code_of(dtype)
    room = ctypes.c_int64 * max(rank, 1)
    sizes, steps = room(*shape), room(*compact(shape))
    tensor = _Tensor(address, _Device(*device), rank, _Dtype(*code, 1), sizes, steps, 0)
    deleter = ctypes.cast(_given_back, ctypes.c_void_p)
    made: _Plain | _Versioned
    if versioned:
        made = _Versioned(*VERSION, None, deleter, 0, tensor)
    else:
        made = _Plain(tensor, None, deleter)
    at = ctypes.addressof(made)
    _lent[at] = (made, sizes, steps, owner)
    return _new(at, _VERSIONED if versioned else _PLAIN, _dropped)
