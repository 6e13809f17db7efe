"""Arrays that several processes see: anonymous memory, by its descriptor, which is gone with the
last process that has it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from qcompiler.artifact.abi import ALIGN, GUARD
from qcompiler.artifact.artifact import Artifact, Binary, Manifest
from qcompiler.artifact.manifest import read, written
from qcompiler.errors import Error
from qcompiler.runtime.arrays import Array, Kind
from qcompiler.runtime.model import input_specs

_PAGE = 4096


class Arena:
    """The inputs and outputs of one worker's runs, in memory that grows as they need it."""

    def __init__(self, file: int = -1) -> None:
        """`file`: the descriptor of the other side's arena; -1: make a new one."""
        self.file = _new(_PAGE) if file < 0 else file
        self._whole = _mapped(self.file, _PAGE, writable=True)
        self._closing = weakref.finalize(self, _close, self.file)
        self._closing.atexit = False

    def arrays(self, kinds: Sequence[Kind]) -> list[Array]:
        """Where arrays of these dtypes and shapes lie: at the same places for both sides, of which
        the one that asks first makes room.
        """
        offsets, size = [], 0
        for dtype, shape in kinds:
            offsets.append(size)
            size += _up(prod(shape) * dtype.itemsize + GUARD, ALIGN)
        self._hold(_up(size + GUARD, _PAGE))
        return [
            np.ndarray(shape, dtype, self._whole, at) for (dtype, shape), at in zip(kinds, offsets)
        ]

    def _hold(self, size: int) -> None:
        if size <= len(self._whole):
            return
        there = os.fstat(self.file).st_size
        if there < size:
            there = max(size, 2 * there)
            os.ftruncate(self.file, there)
        self._whole = _mapped(self.file, there, writable=True)

    def close(self) -> None:
        """Close the descriptor; what is mapped stays as long as it is used."""
        self._closing()


class SharedModel:
    """Machine code and weights of a model, in memory that nobody can change any more. `description`
    is what another process needs besides the descriptor.
    """

    def __init__(self, artifact: Artifact) -> None:
        (binary,) = artifact.binaries
        weights, code = binary.weights, binary.code
        at = _up(weights.nbytes + GUARD, _PAGE)
        self.file = _new(at + len(code))
        _write(self.file, weights.data, 0)
        _write(self.file, memoryview(code), at)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, seals)
        self.description: Mapping[str, Any] = {
            **description_of(artifact),
            "weights": weights.nbytes,
            "code": [at, len(code)],
        }
        self._closing = weakref.finalize(self, _close, self.file)
        self._closing.atexit = False

    def close(self) -> None:
        """Close the descriptor."""
        self._closing()


def description_of(artifact: Artifact) -> dict[str, Any]:
    """An artifact of one variant -> what another process must know besides code and weights."""
    (variant,), (binary,) = artifact.manifest.variants, artifact.binaries
    alone = replace(artifact.manifest, variants=(replace(variant, blobs=()),), blobs=())
    return {"manifest": written(alone).decode(), "digest": binary.digest}


def opened(file: int, description: Mapping[str, Any]) -> Artifact:
    """A shared model's descriptor, and its description -> the artifact, its weights mapped."""
    size, (at, length) = description["weights"], description["code"]
    whole = _mapped(file, at + length, writable=False)
    weights = np.frombuffer(whole, np.uint8, size)
    binary = Binary(bytes(whole[at : at + length]), weights)
    binary.__dict__["digest"] = description["digest"]  # checked by the process that shares it
    return Artifact(read(description["manifest"].encode(), "a shared model"), (binary,))


def kinds_of(manifest: Manifest, sizes: Mapping[str, int]) -> list[Kind]:
    """dtypes and shapes of all inputs, then all outputs, for these open sizes; without any, one of
    the shapes that they may have.
    """
    specs = input_specs((*manifest.inputs, *manifest.outputs))
    return [(dtype, value.at(sizes) if sizes else shape) for value, _, dtype, shape in specs]


def filled(arrays: Sequence[Array], places: Sequence[Array]) -> None:
    """Copy arrays to the first of these places."""
    for array, place in zip(arrays, places):
        np.copyto(place, array)


def _new(size: int) -> int:
    """A descriptor of `size` bytes, zeros."""
    if not hasattr(os, "memfd_create"):
        raise Error("this system has no anonymous files for processes to share")
    file = os.memfd_create("qcompiler-shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(file, size)
    except OSError:
        os.close(file)
        raise
    return file


def _write(file: int, data: memoryview, at: int) -> None:
    while data:
        done = os.pwrite(file, data[: 1 << 30], at)
        data, at = data[done:], at + done


def _mapped(file: int, size: int, *, writable: bool) -> mmap.mmap:
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    return mmap.mmap(file, size, mmap.MAP_SHARED, prot)


def _close(file: int) -> None:
    with contextlib.suppress(OSError):
        os.close(file)


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
