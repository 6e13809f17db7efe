"""Artifacts -> one file (artifact.py has its form, and the way back)."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qcompiler.artifact.abi import ALIGN
from qcompiler.artifact.artifact import (
    MANIFEST,
    WEIGHTS,
    Artifact,
    Binary,
    Key,
    Variant,
    sha256,
)
from qcompiler.artifact.encode import encode
from qcompiler.artifact.manifest import written
from qcompiler.artifact.members import Member, changed, layout
from qcompiler.artifact.shrink import shrink
from qcompiler.files import replacing

_PADDING_FIELD = 0xD935  # the zip extra field that Android's zipalign uses for alignment
_LARGE_BYTES = 1 << 30  # zip has two forms of header; zipfile takes the small one up to 2 GiB


def save(artifact: Artifact, path: Path, *, compress: bool) -> Path:
    """Write to a temporary file and rename it, so that no incomplete file is ever seen.
    `compress`: entropy-code weights and code.
    """
    blobs = artifact.blobs
    pieces, kept = shrink(list(blobs.values()), code=compress)
    numbers = {key: number for number, key in enumerate(blobs)}
    members: dict[str, Sequence[memoryview]] = {}
    variants: list[Variant] = []
    for variant, binary in zip(artifact.manifest.variants, artifact.binaries, strict=True):
        code = encode(np.frombuffer(binary.code, np.uint8)) if compress else binary.code
        members[variant.member] = [memoryview(code)]
        variants.append(_stored(variant, binary, numbers, code, coded=compress))
    members[WEIGHTS] = [blob.data for blob in kept]
    manifest = written(replace(artifact.manifest, variants=tuple(variants), blobs=pieces))
    with replacing(path) as file:
        write(file, {MANIFEST: [memoryview(manifest)], **members})
        _, places = layout(file, MANIFEST)
        for name, data in members.items():
            if Member(file, places[name]).digest != sha256(data):
                raise changed(name, str(path))
    return path


def _stored(
    variant: Variant, binary: Binary, numbers: Mapping[Key, int], code: bytes, *, coded: bool
) -> Variant:
    """A variant's description in a file. `numbers`: indices of the blobs; `code`: its member,
    entropy-coded if `coded`.
    """
    return replace(
        variant,
        code=sha256([code]),
        code_bytes=len(binary.code) if coded else 0,
        weights=binary.digest,
        weights_bytes=binary.weights.nbytes,
        blobs=tuple((numbers[size, digest], offset) for offset, size, digest in binary.constants),
    )


def write(file: BinaryIO, members: Mapping[str, Sequence[memoryview]]) -> None:
    """Write members, of several parts each, as a zip to an empty file."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            size = sum(map(len, data))
            info = zipfile.ZipInfo(name)  # its default date, 1980: equal inputs give equal files
            large = size >= _LARGE_BYTES
            header = file.tell() + 30 + len(name.encode()) + (20 if large else 0) + 4
            padding = -header % ALIGN
            info.extra = struct.pack("<HH", _PADDING_FIELD, padding) + bytes(padding)
            info.file_size = size
            with archive.open(info, "w", force_zip64=large) as member:
                for part in data:
                    member.write(part)
    file.flush()


def joined(artifacts: Sequence[Artifact]) -> Artifact:
    """Artifacts of one model for different instruction sets, the most preferred last -> an artifact
    of all variants.
    """
    manifests = [a.manifest for a in artifacts]
    first = manifests[0]
    if len(artifacts) == 1:
        return artifacts[0]
    if any((m.inputs, m.outputs) != (first.inputs, first.outputs) for m in manifests):
        raise ValueError("these artifacts are of different models")
    same = {k: v for k, v in first.notes.items() if all(m.notes.get(k) == v for m in manifests)}
    variants = tuple(
        replace(v, notes={**{k: n for k, n in m.notes.items() if k not in same}, **v.notes})
        for m in manifests
        for v in m.variants
    )
    apart = all(m.apart for m in manifests)
    manifest = replace(first, variants=variants, notes=same, apart=apart)
    return replace(
        artifacts[0], manifest=manifest, binaries=tuple(b for a in artifacts for b in a.binaries)
    )
