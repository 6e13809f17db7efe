"""manifest, machine code, weights <-> one file on disk (`model.qc`).

A zip of stored members, each at a multiple of 64 bytes: `manifest.json` (format version, inputs and
outputs, required CPU features, SHA-256 of the other members, how it was made), `code.so`,
`weights.bin`. Nothing in it is pickled. Opening it checks the format, every hash and that nothing
else is inside. All of it is read into memory and hashed on the way, so what is used is what was
checked, and nobody who writes to the file afterwards changes a model.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Union
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from qcompiler.artifact.entropy import decode, encode
from qcompiler.artifact.members import Member, aligned, layout, write
from qcompiler.artifact.shrink import LEAST_BYTES, MOST_GROWTH, Piece, expand, shrink
from qcompiler.errors import Error
from qcompiler.files import opened, replacing

FORMAT = 6
MANIFEST, CODE, WEIGHTS = "manifest.json", "code.so", "weights.bin"
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
"""What reading a file that is no whole artifact may raise."""

Json = Union[None, bool, int, float, str, list["Json"], dict[str, "Json"]]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Value:
    """A model's input or output: its name, dtype and static shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class StepFact:
    """What is known of a step after compiling: for profiles."""

    name: str
    kernel: str
    tasks: int
    macs: int = 0
    bytes: int = 0
    operands: str = ""
    """The dtype that it multiplies."""


@dataclass(frozen=True)
class Manifest:
    """All that a runtime must know before it maps the code."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    isa: str
    triple: str
    cpu_flags: tuple[str, ...]
    threads: int
    workspace_bytes: int
    steps: tuple[StepFact, ...]
    producer: Mapping[str, str]
    notes: Mapping[str, str] = field(default_factory=dict)
    members: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of every other member."""
    weights_bytes: int = 0
    """Of all weights, as kernels read them."""
    code_bytes: int = 0
    """Of the machine code, where `code.so` holds it entropy-coded; else 0."""
    pieces: tuple[Piece, ...] = ()
    """How `weights.bin` keeps them in fewer bytes (see shrink.py); none: it holds them as they are.
    """
    format: int = FORMAT


@dataclass(frozen=True)
class Origin:
    """The file an artifact was read from, as it was then."""

    path: str
    """Absolute."""
    digest: str
    """SHA-256 of its manifest, which holds those of its other members."""
    stamp: tuple[int, ...]
    """Of the file's inode: changes when the file is written or replaced."""

    @property
    def unchanged(self) -> bool:
        """Is that file still there?"""
        try:
            return _stamp(os.stat(self.path)) == self.stamp
        except OSError:
            return False


@dataclass(frozen=True, eq=False)
class Artifact:
    """A compiled model: save it, or hand it to `qcompiler.load`."""

    manifest: Manifest
    code: bytes
    weights: Bytes
    blocks: tuple[tuple[int, int], ...] = ()
    """(Offset, size) of every constant in the weights, for `save` to find small forms of."""
    compress: bool = False
    """Was a small file asked for?"""
    origin: Origin | None = None

    @property
    def signature(self) -> int:
        """What its machine code must say that it was made for."""
        m = self.manifest
        sides = (m.inputs, m.outputs)
        inputs, outputs = ([(v.name, v.dtype, v.shape) for v in side] for side in sides)
        sizes = (self.weights.nbytes, m.workspace_bytes, len(m.steps), m.threads)
        return signature(inputs, outputs, sizes, m.cpu_flags, self.weights_digest)

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the weights, as kernels read them."""
        return hashlib.sha256(self.weights.data).hexdigest()

    @property
    def bytes(self) -> int:
        """Size of machine code and weights."""
        return len(self.code) + self.weights.nbytes

    def save(self, path: str | Path, *, compress: bool | None = None) -> Path:
        """Write the artifact: to a temporary file beside it, then renamed, so that no half file is
        ever seen. `compress`: weights and code entropy-coded, to be decoded when it is opened (left
        out: as asked for when it was compiled).
        """
        compress = self.compress if compress is None else compress
        path = Path(path)
        pieces, kept = shrink(self.weights, self.blocks, code=compress)
        code = encode(np.frombuffer(self.code, np.uint8)) if compress else self.code
        members = {CODE: memoryview(code), WEIGHTS: np.ascontiguousarray(kept).data}
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
        size = self.weights.nbytes
        facts = replace(
            self.manifest,
            members=hashes,
            weights_bytes=size,
            pieces=pieces,
            code_bytes=len(self.code) if compress else 0,
        )
        manifest = json.dumps(asdict(facts), indent=1).encode()
        with replacing(path) as file:
            write(file, {MANIFEST: memoryview(manifest), **members})
            _, places = layout(file, MANIFEST, (CODE, WEIGHTS))
            for name, digest in hashes.items():
                member = Member(file, places[name], str(path), digest)
                member.pass_over()
                member.check()
        return path


def signature(
    inputs: Sequence[tuple[str, str, Sequence[int]]],
    outputs: Sequence[tuple[str, str, Sequence[int]]],
    sizes: Sequence[int],
    cpu_flags: Iterable[str],
    weights_digest: str,
) -> int:
    """What machine code takes for granted -> 32 bits, which it repeats: (name, dtype, shape) of the
    inputs and outputs, bytes of the weights and of the workspace, how many steps and threads, what
    the CPU must have, and the SHA-256 of the weights.
    """
    sides = [[[name, dtype, *shape] for name, dtype, shape in side] for side in (inputs, outputs)]
    told = json.dumps([*sides, list(sizes), sorted(cpu_flags), weights_digest])
    return zlib.crc32(told.encode()) & 0x7FFFFFFF


def open_artifact(path: str | Path) -> Artifact:
    """Path -> artifact, all of it in memory; checked before anything is used."""
    path = Path(path)
    try:
        with opened(path) as file:
            return _read(file, path)
    except OSError as e:
        raise Error(f"cannot be read ({e.strerror or e})", where=str(path)) from e
    except MemoryError as e:
        raise Error("it does not fit into the memory that is free", where=str(path)) from e
    except _DAMAGED as e:
        detail = f"{e}".strip("'")
        raise Error(
            f"not a whole qcompiler artifact ({detail})",
            where=str(path),
            hint="it may be truncated or changed; compile the model again",
        ) from e


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _read(file: BinaryIO, path: Path) -> Artifact:
    where, status = str(path), os.fstat(file.fileno())
    text, places = layout(file, MANIFEST, (CODE, WEIGHTS))
    manifest = _manifest(json.loads(text), where)
    code, weights = (
        Member(file, places[name], where, manifest.members[name]) for name in (CODE, WEIGHTS)
    )
    made = Artifact(
        manifest,
        _code(code, manifest),
        _weights(weights, manifest),
        blocks=tuple((p.offset, p.bytes) for p in manifest.pieces),
        compress=manifest.code_bytes > 0,
        origin=Origin(str(path.absolute()), hashlib.sha256(text).hexdigest(), _stamp(status)),
    )
    if not manifest.pieces:  # they were hashed when they were read
        made.__dict__["weights_digest"] = manifest.members[WEIGHTS]
    return made


def _code(member: Member, manifest: Manifest) -> bytes:
    """The machine code, as it runs."""
    data = member.bytes()
    member.check()
    if not manifest.code_bytes:
        return data
    if manifest.code_bytes > MOST_GROWTH * len(data):
        raise ValueError("the code would grow beyond all measure")
    return decode(np.frombuffer(data, np.uint8), manifest.code_bytes).tobytes()


_held: WeakValueDictionary[tuple[str, int, tuple[Piece, ...]], Bytes] = WeakValueDictionary()
"""Weights in use, by what they were made from: equal ones are in memory once."""


def _weights(member: Member, manifest: Manifest) -> Bytes:
    """The weights, as kernels read them: 64-byte aligned, and not to be written."""
    size, pieces = manifest.weights_bytes, manifest.pieces
    key = (manifest.members[WEIGHTS], size, pieces)
    if (same := _held.get(key)) is not None:
        member.pass_over()
        member.check()
        return same
    if pieces and size > MOST_GROWTH * member.size + LEAST_BYTES:
        raise ValueError("the weights would grow beyond all measure")
    if not pieces and size != member.size:
        raise ValueError("the weights have another size")
    made = aligned(size)
    if pieces:
        expand(pieces, member.fill, member.size, made)
    else:
        member.fill(made)
    member.check()
    made.flags.writeable = False
    return _held.setdefault(key, made)


def _manifest(raw: Json, where: str) -> Manifest:
    if not isinstance(raw, dict):
        raise TypeError("the manifest is not an object")
    if raw.get("format") != FORMAT:
        raise Error(
            f"artifact format {raw.get('format')!r}; this version reads format {FORMAT}",
            where=where,
            hint="compile the model again with this version",
        )
    fields = dict(raw)
    return Manifest(
        name=str(fields["name"]),
        inputs=tuple(_value(v) for v in _list(fields["inputs"])),
        outputs=tuple(_value(v) for v in _list(fields["outputs"])),
        isa=str(fields["isa"]),
        triple=str(fields["triple"]),
        cpu_flags=tuple(map(str, _list(fields["cpu_flags"]))),
        threads=_int(fields["threads"]),
        workspace_bytes=_int(fields["workspace_bytes"]),
        steps=tuple(_step(s) for s in _list(fields["steps"])),
        producer=_strings(fields["producer"]),
        notes=_strings(fields["notes"]),
        members=_strings(fields["members"]),
        weights_bytes=_int(fields["weights_bytes"]),
        code_bytes=_int(fields["code_bytes"]),
        pieces=tuple(_piece(p) for p in _list(fields["pieces"])),
    )


def _value(raw: Json) -> Value:
    v = _object(raw)
    return Value(str(v["name"]), str(v["dtype"]), tuple(_int(d) for d in _list(v["shape"])))


def _piece(raw: Json) -> Piece:
    p = _object(raw)
    keys = ("offset", "bytes", "stored", "word", "bits", "odd")
    return Piece(kind=str(p["kind"]), **{k: _int(p[k]) for k in keys})


def _step(raw: Json) -> StepFact:
    s = _object(raw)
    return StepFact(
        name=str(s["name"]),
        kernel=str(s["kernel"]),
        tasks=_int(s["tasks"]),
        macs=_int(s["macs"]),
        bytes=_int(s["bytes"]),
        operands=str(s["operands"]),
    )


def _object(raw: Json) -> dict[str, Json]:
    if not isinstance(raw, dict):
        raise TypeError("the manifest is malformed")
    return raw


def _list(raw: Json) -> list[Json]:
    if not isinstance(raw, list):
        raise TypeError("the manifest is malformed")
    return raw


def _int(raw: Json) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or not 0 <= raw < 1 << 63:
        raise TypeError("the manifest is malformed")
    return raw


def _strings(raw: Json) -> dict[str, str]:
    return {str(k): str(v) for k, v in _object(raw).items()}
