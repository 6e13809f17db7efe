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
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from qcompiler.entropy import decode, encode
from qcompiler.errors import Error
from qcompiler.files import replacing
from qcompiler.shrink import LEAST_BYTES, MOST_GROWTH, Piece, expand, shrink

FORMAT = 5
ALIGN = 64
MANIFEST, CODE, WEIGHTS = "manifest.json", "code.so", "weights.bin"
_PADDING_FIELD = 0xD935  # the zip extra field that Android's zipalign uses for alignment
_MAX_MANIFEST_BYTES = 64 << 20
_LARGE_MEMBER_BYTES = 1 << 30  # zip has two forms of header; zipfile takes the small one to 2 GiB
_CHUNK = 1 << 20  # read and hashed at once: stays in a core's cache between the two
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

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
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
        return signature(inputs, outputs, sizes, m.cpu_flags)

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
            _write_zip(file, {MANIFEST: memoryview(manifest), **members})
            _check_written(file, str(path), hashes)
        return path


def signature(
    inputs: Sequence[tuple[str, str, Sequence[int]]],
    outputs: Sequence[tuple[str, str, Sequence[int]]],
    sizes: Sequence[int],
    cpu_flags: Iterable[str],
) -> int:
    """What machine code takes for granted -> 32 bits, which it repeats: (name, dtype, shape) of the
    inputs and outputs, bytes of the weights and of the workspace, how many steps and threads, and
    what the CPU must have.
    """
    sides = [[[name, dtype, *shape] for name, dtype, shape in side] for side in (inputs, outputs)]
    return zlib.crc32(json.dumps([*sides, list(sizes), sorted(cpu_flags)]).encode()) & 0x7FFFFFFF


def open_artifact(path: str | Path) -> Artifact:
    """Path -> artifact, all of it in memory; checked before anything is used."""
    path = Path(path)
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Error("cannot read: not a file", where=str(path))
            return _read(file, path)
    except OSError as e:
        raise Error(f"cannot read: {e.strerror or e}", where=str(path)) from e
    except MemoryError as e:
        raise Error("it does not fit into the memory that is free", where=str(path)) from e
    except _DAMAGED as e:
        detail = f"{e}".strip("'")
        raise Error(
            f"not a whole qcompiler artifact ({detail})",
            where=str(path),
            hint="it may be truncated or changed; compile the model again",
        ) from e


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe without a writer


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _read(file: BinaryIO, path: Path) -> Artifact:
    where, status = str(path), os.fstat(file.fileno())
    text, places = _layout(file)
    manifest = _manifest(json.loads(text), where)
    code, weights = (
        _Member(file, places[name], where, manifest.members[name]) for name in (CODE, WEIGHTS)
    )
    return Artifact(
        manifest,
        _code(code, manifest),
        _weights(weights, manifest),
        blocks=tuple((p.offset, p.bytes) for p in manifest.pieces),
        compress=manifest.code_bytes > 0,
        origin=Origin(str(path.absolute()), hashlib.sha256(text).hexdigest(), _stamp(status)),
    )


@dataclass(frozen=True)
class _Place:
    """Where a member's data lies in the file."""

    name: str
    offset: int
    size: int


def _layout(file: BinaryIO) -> tuple[bytes, dict[str, _Place]]:
    """An artifact's file -> its manifest, and where its members lie; raises one of `_DAMAGED` where
    they do not lie as they should.
    """
    end = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sorted(e.filename for e in entries) != sorted((MANIFEST, CODE, WEIGHTS)):
            raise ValueError("its members are not those of an artifact")
        stored = (e.compress_type == zipfile.ZIP_STORED for e in entries)
        if not all(stored) or any(e.file_size != e.compress_size for e in entries):
            raise ValueError("a member is compressed")
        if archive.getinfo(MANIFEST).file_size > _MAX_MANIFEST_BYTES:
            raise ValueError("the manifest is too large")
        text = archive.read(MANIFEST)
        places = [_Place(e.filename, _data_offset(file, e), e.file_size) for e in entries]
    for place in places:
        if place.offset % ALIGN or place.offset + place.size > end:
            raise ValueError(f"{place.name} is out of place")
    return text, {place.name: place for place in places}


class _Member:
    """A member's bytes, read in order and hashed as they come; `digest` is what their SHA-256 has
    to be.
    """

    def __init__(self, file: BinaryIO, place: _Place, where: str, digest: str) -> None:
        self._file, self._where, self._digest = file, where, digest
        self._hash = hashlib.sha256()
        self._at = place.offset
        self.name, self.size = place.name, place.size

    def fill(self, into: Bytes) -> None:
        """The next bytes, as many as there is room for."""
        view = into.data
        self._file.seek(self._at)
        self._at += len(view)
        for at in range(0, len(view), _CHUNK):
            part = view[at : at + _CHUNK]
            done = 0
            while done < len(part):
                count = self._file.readinto(part[done:])  # type: ignore[attr-defined]
                if not count:
                    raise ValueError(f"{self.name} ends early")
                done += count
            self._hash.update(part)

    def pass_over(self) -> None:
        """All bytes are hashed, and none kept."""
        scratch = np.empty(min(_CHUNK, self.size), np.uint8)
        for at in range(0, self.size, _CHUNK):
            self.fill(scratch[: self.size - at])

    def bytes(self) -> bytes:
        """All of them."""
        data = np.empty(self.size, np.uint8)
        self.fill(data)
        return data.tobytes()

    def check(self) -> None:
        """Raise Error unless what was read is what was compiled."""
        if self._hash.hexdigest() != self._digest:
            raise Error(
                f"{self.name} is not what was compiled: its SHA-256 differs from the manifest's",
                where=self._where,
                hint="the file was changed or damaged; compile the model again",
            )


def _code(member: _Member, manifest: Manifest) -> bytes:
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


def _weights(member: _Member, manifest: Manifest) -> Bytes:
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
    made = _aligned(size)
    if pieces:
        expand(pieces, member.fill, member.size, made)
    else:
        member.fill(made)
    member.check()
    made.flags.writeable = False
    return _held.setdefault(key, made)


def _aligned(size: int) -> Bytes:
    """Zeros at a multiple of 64 bytes; numpy asks for huge pages where they are many."""
    raw = np.zeros(size + ALIGN, np.uint8)
    skip = -int(raw.__array_interface__["data"][0]) % ALIGN
    return raw[skip : skip + size]


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


def _write_zip(file: BinaryIO, members: Mapping[str, memoryview]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)  # its default date, 1980: equal inputs give equal files
            large = len(data) >= _LARGE_MEMBER_BYTES
            header = file.tell() + 30 + len(name) + (20 if large else 0) + 4
            padding = -header % ALIGN
            info.extra = struct.pack("<HH", _PADDING_FIELD, padding) + bytes(padding)
            info.file_size = len(data)
            with archive.open(info, "w", force_zip64=large) as member:
                member.write(data)


def _check_written(file: BinaryIO, where: str, hashes: Mapping[str, str]) -> None:
    """Raise one of `_DAMAGED`, or Error, unless what was written can be read again."""
    file.flush()
    _, places = _layout(file)
    for name, digest in hashes.items():
        member = _Member(file, places[name], where, digest)
        member.pass_over()
        member.check()


def _data_offset(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where a member's bytes start: after its local header, whose extra field has a length of its
    own.
    """
    file.seek(entry.header_offset)
    header = file.read(30)
    name, extra = struct.unpack("<HH", header[26:30])
    return int(entry.header_offset) + 30 + int(name) + int(extra)
