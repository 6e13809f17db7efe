"""manifest, machine code, weights <-> one file on disk (`model.qc`).

A zip of stored members, each at a multiple of 64 bytes so that weights can be mapped into memory as
they are: `manifest.json` (format version, inputs and outputs, required CPU features, SHA-256 of the
other members, how it was made), `code.so`, `weights.bin`. Nothing in it is pickled. Opening it
checks the format, every hash and that nothing else is inside.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from qcompiler.entropy import decode, encode
from qcompiler.errors import Error
from qcompiler.files import replacing
from qcompiler.shrink import LEAST_BYTES, MOST_GROWTH, Piece, expand, shrink

FORMAT = 3
ALIGN = 64
MANIFEST, CODE, WEIGHTS = "manifest.json", "code.so", "weights.bin"
_PADDING_FIELD = 0xD935  # the zip extra field that Android's zipalign uses for alignment
_MAX_MANIFEST_BYTES = 64 << 20
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
class Artifact:
    """A compiled model: save it, or hand it to `qcompiler.load`."""

    manifest: Manifest
    code: bytes
    weights: Bytes
    blocks: tuple[tuple[int, int], ...] = ()
    """(Offset, size) of every constant in the weights, for `save` to find small forms of."""
    compress: bool = False
    """Was a small file asked for?"""

    @property
    def signature(self) -> int:
        """What its machine code must say that it was made for."""
        m = self.manifest
        inputs, outputs = ([(v.dtype, v.shape) for v in side] for side in (m.inputs, m.outputs))
        sizes = (self.weights.nbytes, m.workspace_bytes, len(m.steps), m.threads)
        return signature(inputs, outputs, sizes)

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
        members = {CODE: memoryview(code), WEIGHTS: memoryview(kept.tobytes())}
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
        return path


def signature(
    inputs: Sequence[tuple[str, Sequence[int]]],
    outputs: Sequence[tuple[str, Sequence[int]]],
    sizes: Sequence[int],
) -> int:
    """What machine code takes for granted -> 32 bits, which it repeats: (dtype, shape) of the
    inputs and outputs, bytes of the weights and of the workspace, how many steps and threads.
    """
    shapes = [[[dtype, *shape] for dtype, shape in values] for values in (inputs, outputs)]
    return zlib.crc32(json.dumps([*shapes, list(sizes)]).encode()) & 0x7FFFFFFF


def open_artifact(path: str | Path) -> Artifact:
    """Path -> artifact, its weights mapped from the file; checked before anything is used."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _read(file, str(path))
    except OSError as e:
        raise Error(f"cannot read: {e.strerror or e}", where=str(path)) from e
    except _DAMAGED as e:
        detail = f"{e}".strip("'")
        raise Error(
            f"not a whole qcompiler artifact ({detail})",
            where=str(path),
            hint="it may be truncated or changed; compile the model again",
        ) from e


def _read(file: BinaryIO, where: str) -> Artifact:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sorted(e.filename for e in entries) != sorted((MANIFEST, CODE, WEIGHTS)):
            raise ValueError("its members are not those of an artifact")
        if any(
            e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size for e in entries
        ):
            raise ValueError("a member is compressed")
        if archive.getinfo(MANIFEST).file_size > _MAX_MANIFEST_BYTES:
            raise ValueError("the manifest is too large")
        manifest = _manifest(json.loads(archive.read(MANIFEST)), where)
        offsets = {e.filename: _data_offset(file, e) for e in entries}
        sizes = {e.filename: e.file_size for e in entries}
    whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    view = np.frombuffer(whole, np.uint8)
    found = {}
    for name in (CODE, WEIGHTS):
        part = view[offsets[name] : offsets[name] + sizes[name]]
        if part.size != sizes[name] or offsets[name] % ALIGN:
            raise ValueError(f"{name} is out of place")
        if hashlib.sha256(part.data).hexdigest() != manifest.members[name]:
            raise Error(
                f"{name} is not what was compiled: its SHA-256 differs from the manifest's",
                where=where,
                hint="the file was changed or damaged; compile the model again",
            )
        found[name] = part
    weights = found[WEIGHTS]
    if manifest.pieces:
        if manifest.weights_bytes > MOST_GROWTH * weights.size + LEAST_BYTES:
            raise ValueError("the weights would grow beyond all measure")
        weights = expand(manifest.pieces, weights, manifest.weights_bytes)
    blocks = tuple((p.offset, p.bytes) for p in manifest.pieces)
    code = found[CODE]
    if manifest.code_bytes:
        if manifest.code_bytes > MOST_GROWTH * code.size:
            raise ValueError("the code would grow beyond all measure")
        code = decode(code, manifest.code_bytes)
    return Artifact(manifest, code.tobytes(), weights, blocks, manifest.code_bytes > 0)


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
    if not isinstance(raw, int) or isinstance(raw, bool) or raw < 0:
        raise TypeError("the manifest is malformed")
    return raw


def _strings(raw: Json) -> dict[str, str]:
    return {str(k): str(v) for k, v in _object(raw).items()}


def _write_zip(file: BinaryIO, members: Mapping[str, memoryview]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)  # its default date, 1980: equal inputs give equal files
            header = file.tell() + 30 + len(name) + 4
            padding = -header % ALIGN
            info.extra = struct.pack("<HH", _PADDING_FIELD, padding) + bytes(padding)
            archive.writestr(info, data)


def _data_offset(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where a member's bytes start: after its local header, whose extra field has a length of its
    own.
    """
    file.seek(entry.header_offset)
    header = file.read(30)
    name, extra = struct.unpack("<HH", header[26:30])
    return int(entry.header_offset) + 30 + int(name) + int(extra)
