"""One file on disk (`model.qc`) -> manifest, machine code, weights (saving.py has the way back).

A zip of stored members, each at a multiple of 64 bytes: `manifest.json` (manifest.py), the machine
code of every variant (`ISA.so`), and `weights.bin`, the constants of all variants, equal ones once.
Nothing in it is pickled. Opening checks the format, that nothing else is inside, and every byte of
the variants it reads. All bytes are read into memory and hashed while reading, so what is used is
what was checked, and later changes of the file do not affect a model.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from qcompiler.artifact.entropy import decode
from qcompiler.artifact.manifest import (
    Check,
    Manifest,
    StepFact,
    Value,
    Variant,
    digest_of,
    read,
)
from qcompiler.artifact.members import Member, aligned, aside, changed, layout, parts
from qcompiler.artifact.pieces import LEAST_BYTES, MOST_GROWTH, demand_apart, expand
from qcompiler.errors import Error, compiler_needed
from qcompiler.files import opened

__all__ = [
    "Artifact",
    "ArtifactFile",
    "Binary",
    "Bytes",
    "Check",
    "Manifest",
    "Origin",
    "StepFact",
    "Value",
    "Variant",
    "open_artifact",
    "reading",
]

MANIFEST, WEIGHTS = "manifest.json", "weights.bin"
_DAMAGED = (
    zipfile.BadZipFile,
    RuntimeError,  # zipfile: an encrypted member, one of a later version; json: nested too deeply
    EOFError,
    OverflowError,
    ValueError,
    KeyError,
    TypeError,
    struct.error,
)
"""What reading a file may raise that is not a complete artifact."""

Bytes = NDArray[np.uint8]
Constant = tuple[int, int, bytes]
"""A constant in weights: offset, bytes, SHA-256."""
Key = tuple[int, bytes]
"""Equal for equal constants: bytes, SHA-256."""


@dataclass(frozen=True)
class Origin:
    """The file that an artifact was read from, as it was then."""

    path: str
    """Absolute."""
    digest: str
    """SHA-256 of its manifest, which holds those of its other members."""
    stamp: tuple[int, ...]
    """The file's inode, size and times, which change when it is written or replaced."""

    @property
    def unchanged(self) -> bool:
        """Is that file still there, unchanged?"""
        try:
            return _stamp(os.stat(self.path)) == self.stamp
        except OSError:
            return False


@dataclass(frozen=True, eq=False)
class Binary:
    """A variant's machine code, and the weights as its kernels read them."""

    code: bytes
    weights: Bytes
    blocks: tuple[tuple[int, int], ...] = ()
    """(offset, bytes) of every constant in the weights, with zeros between; empty: the weights are
    one constant.
    """

    @cached_property
    def constants(self) -> tuple[Constant, ...]:
        """The constants in its weights."""
        whole = ((0, self.weights.nbytes),) if self.weights.nbytes else ()
        return tuple(
            (offset, size, hashlib.sha256(self.weights[offset : offset + size].data).digest())
            for offset, size in self.blocks or whole
        )

    @cached_property
    def digest(self) -> str:
        """The digest of its weights."""
        return digest_of(self.constants)


@dataclass(frozen=True, eq=False)
class Artifact:
    """A compiled model: save it, or pass it to `qcompiler.load`."""

    manifest: Manifest
    binaries: tuple[Binary, ...]
    """One for each of the manifest's variants."""
    compress: bool = False
    """Whether `save` entropy-codes by default."""
    origin: Origin | None = None

    def only(self, index: int) -> Artifact:
        """The artifact with one of its variants."""
        variants, binaries = (self.manifest.variants[index],), (self.binaries[index],)
        return replace(self, manifest=replace(self.manifest, variants=variants), binaries=binaries)

    @property
    def signatures(self) -> tuple[int, ...]:
        """What each variant's machine code must return as its signature."""
        pairs = zip(self.manifest.variants, self.binaries)
        return tuple(self.manifest.signature(v, b.weights.nbytes, b.digest) for v, b in pairs)

    @property
    def bytes(self) -> int:
        """Size of machine code and weights; equal constants count once."""
        return sum(len(b.code) for b in self.binaries) + self.weights_bytes

    @property
    def weights_bytes(self) -> int:
        """Size of all constants; equal ones count once."""
        return sum(size for size, _ in self.blobs)

    @property
    def shared_bytes(self) -> int:
        """Bytes that variants save by sharing equal constants."""
        each = ({(size, digest) for _, size, digest in b.constants} for b in self.binaries)
        return sum(size for keys in each for size, _ in keys) - self.weights_bytes

    @property
    def blobs(self) -> dict[Key, Bytes]:
        """Size and SHA-256 of every constant of any variant -> its bytes."""
        return {
            (size, digest): binary.weights[offset : offset + size]
            for binary in self.binaries
            for offset, size, digest in binary.constants
        }

    def save(self, path: str | Path, *, compress: bool | None = None) -> Path:
        """Write the artifact to a temporary file and rename it, so that no incomplete file is ever
        seen. `compress`: entropy-code weights and code, which are decoded when it is opened (None:
        as requested when it was compiled).
        """
        with compiler_needed():
            from qcompiler.artifact.saving import save
        return save(self, Path(path), compress=self.compress if compress is None else compress)


def is_artifact(path: str | Path) -> bool:
    """Is it an artifact, rather than an ONNX file? Raises Error where it cannot be read."""
    with opened(path) as file:
        return file.read(4) == b"PK\x03\x04"


def open_artifact(path: str | Path) -> Artifact:
    """Path -> artifact, checked, in memory."""
    with reading(path) as file:
        return file.whole()


@contextmanager
def reading(path: str | Path) -> Iterator[ArtifactFile]:
    """Path -> the open artifact, whose variants are read one by one."""
    with opened(path) as file:
        yield ArtifactFile(file, Path(path))


@contextmanager
def _damage_as_error(path: Path) -> Iterator[None]:
    """Turn what reading an incomplete artifact raises into an Error."""
    try:
        yield
    except OSError as e:
        raise Error(f"cannot be read ({e.strerror or e})", where=str(path)) from e
    except MemoryError as e:
        raise Error("it does not fit into the memory that is free", where=str(path)) from e
    except _DAMAGED as e:
        detail = f"{e}".strip("'")
        raise Error(
            f"not a whole qcompiler artifact ({detail})",
            where=str(path),
            hint="it is a model: `qcompiler compile` makes an artifact of it"
            if path.suffix == ".onnx"
            else "it may be truncated or changed; compile the model again",
        ) from e


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def sha256(parts: Iterable[memoryview | bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


_held: WeakValueDictionary[tuple[str, int], Bytes] = WeakValueDictionary()
"""Weights in use, by digest and size; equal ones are in memory once."""


class ArtifactFile:
    """An artifact's file, open for reading. Raises Error where it is damaged or no artifact."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        with _damage_as_error(path):
            status = os.fstat(file.fileno())
            text, self._places = layout(file, MANIFEST)
            self.manifest = read(text, str(path))
            codes = {v.member for v in self.manifest.variants}
            if set(self._places) != {MANIFEST, WEIGHTS} | codes:
                raise ValueError("its members are not those of an artifact")
            if sum(p.stored for p in self.manifest.blobs) != self._places[WEIGHTS].size:
                raise ValueError("the weights are not as many as their blocks keep")
        digest = hashlib.sha256(text).hexdigest()
        self.origin = Origin(str(path.absolute()), digest, _stamp(status))

    def only(self, index: int) -> Artifact:
        """The artifact with one of its variants; the bytes of others are not read."""
        variant = self.manifest.variants[index]
        manifest = replace(self.manifest, variants=(variant,))
        return self._made(manifest, (self._binary(variant),))

    def whole(self) -> Artifact:
        """The artifact with all variants."""
        return self._made(self.manifest, tuple(self._binary(v) for v in self.manifest.variants))

    def _made(self, manifest: Manifest, binaries: tuple[Binary, ...]) -> Artifact:
        compress = any(v.code_bytes > 0 for v in manifest.variants)
        return Artifact(manifest, binaries, compress, self.origin)

    def _binary(self, variant: Variant) -> Binary:
        with _damage_as_error(self._path):
            code, weights = self._code(variant), self._weights(variant)
        pieces = self.manifest.blobs
        made = Binary(code, weights, tuple((at, pieces[n].bytes) for n, at in variant.blobs))
        made.__dict__["digest"] = variant.weights  # checked while reading
        return made

    def _code(self, variant: Variant) -> bytes:
        """A variant's machine code, decoded."""
        member = Member(self._file, self._places[variant.member])
        stored, digest = np.empty(member.size, np.uint8), hashlib.sha256()
        member.fill(stored, 0, digest.update)
        if digest.hexdigest() != variant.code:
            raise changed(variant.member, str(self._path))
        if not variant.code_bytes:
            return stored.tobytes()
        if variant.code_bytes > MOST_GROWTH * member.size:
            raise ValueError("the code would grow beyond all measure")
        return decode(stored, variant.code_bytes).tobytes()

    def _weights(self, variant: Variant) -> Bytes:
        """A variant's weights, as kernels read them: 64-byte aligned and read-only."""
        pieces, size = self.manifest.blobs, variant.weights_bytes
        demand_apart(((offset, pieces[number].bytes) for number, offset in variant.blobs), size)
        key = (variant.weights, size)
        if (same := _held.get(key)) is not None:
            return same
        kept = (pieces[number].stored for number in {n for n, _ in variant.blobs})
        if size > sum(MOST_GROWTH * stored + LEAST_BYTES for stored in kept):
            raise ValueError("the weights would grow beyond all measure")
        made = aligned(size)
        if self._filled(variant, made) != variant.weights:
            raise changed(WEIGHTS, str(self._path))
        made.flags.writeable = False
        return _held.setdefault(key, made)

    def _filled(self, variant: Variant, weights: Bytes) -> str:
        """Write a variant's constants into zeros, hashing them meanwhile -> their digest."""
        pieces, member = self.manifest.blobs, Member(self._file, self._places[WEIGHTS])
        begins = [0, *accumulate(p.stored for p in pieces)]
        hashes = [hashlib.sha256() for _ in variant.blobs]
        with aside(weights.nbytes) as hashed:
            for (number, offset), digest in zip(variant.blobs, hashes):
                piece, consume = pieces[number], partial(hashed, digest.update)
                into, raw = weights[offset : offset + piece.bytes], piece.kind == "raw"
                fill = partial(member.fill, at=begins[number], consume=consume if raw else None)
                expand(piece, fill, into)
                for part in () if raw else parts(into.data):
                    consume(part)
        return digest_of(
            (offset, pieces[number].bytes, digest.digest())
            for (number, offset), digest in zip(variant.blobs, hashes)
        )
