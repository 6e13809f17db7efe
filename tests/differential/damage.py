"""Index -> an artifact damaged in a few places, which must be refused, or give the right values.

Bits flipped, bytes cut out, copied, put before and after, the records of the archive changed, and
manifests edited with all hashes made right again: those must do no harm, whatever they say.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

import qcompiler
from qcompiler.artifact.manifest import digest_of
from qcompiler.artifact.pieces import Piece, expand
from qcompiler.demo import DATA, MODEL
from qcompiler.errors import Error

from .shards import Job, Result

NUMBERS: Sequence[Any] = (
    0,
    1,
    -1,
    2,
    63,
    64,
    65,
    4096,
    1 << 20,
    1 << 31,
    1 << 40,
    1 << 62,
    1 << 63,
)
NUMBERS = (*NUMBERS, 1 << 200, -(1 << 63), 1.5, None, "x", [], {}, True, [1], "é")
Damage = Callable[[bytes, Mapping[str, bytes], random.Random], bytes]


def job(out: Path) -> Job:
    """What is done with an index; an artifact that is not refused and not right stays there."""
    originals(out)

    def run(index: int) -> Result:
        r = random.Random(f"damage {index}")
        path, x, want = r.choice(originals(out))
        data = path.read_bytes()
        name, harm, honest = r.choice(KINDS)
        (out / "damaged").mkdir(exist_ok=True)
        damaged = out / "damaged" / f"{index}.qc"
        damaged.write_bytes(harm(data, _members(path), r))
        result = {"kind": name, **tried(damaged, x, want, honest)}
        if not result.get("faults"):
            damaged.unlink()
        return result

    return run


@cache
def originals(out: Path) -> list[tuple[Path, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Good artifacts of the demo network: their paths, an input, and what they give for it."""
    data = np.load(DATA)["calibration"]
    image = data[:1].astype(np.float32)
    wanted: dict[str, dict[str, Any]] = {
        "float32": {},
        "int8": {"precision": "int8", "calibration": [{"image": i[None]} for i in data[:8]]},
        "compressed": {"precision": "int4-weights", "compress": True},
        "variants": {"target": "haswell,ice_lake_server,sapphire_rapids"},
    }
    found = []
    for name, more in wanted.items():
        path = out / f"{name}.qc"
        made = qcompiler.compile(MODEL, input_shapes={"image": image.shape}, threads=2, **more)
        made.save(path)
        found.append((path, image, qcompiler.load(path).run({"image": image}).popitem()[1]))
    return found


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {n: archive.read(n) for n in archive.namelist()}


def tried(path: Path, x: Any, want: Any, honest: bool) -> Result:
    """A damaged artifact -> a refusal, the right values, or a fault.

    One whose hashes were made right again may give other values: it says what it is.
    """
    try:
        model = qcompiler.load(path)
        value = model.inputs[0]
        if value.shape != x.shape or value.dtype != x.dtype.name:
            return {"note": "another input"}
        got = next(iter(model.run({value.name: x}).values()))
    except Error as e:
        return {"refused": str(e)[:200]}
    if honest and not (got.shape == want.shape and np.array_equal(got, want)):
        return {"faults": [("silent", f"{got.dtype}{got.shape} of other values")]}
    return {"faults": []}


def _flip(data: bytes, _: Mapping[str, bytes], r: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(r.choice((1, 1, 2, 8))):
        changed[r.randrange(len(changed))] ^= 1 << r.randrange(8)
    return bytes(changed)


def _records(data: bytes, _: Mapping[str, bytes], r: random.Random) -> bytes:
    """Bytes of the archive's own headers."""
    changed = bytearray(data)
    first, last = data.find(b"PK\x01\x02"), data.rfind(b"PK\x05\x06")
    for _ in range(r.choice((1, 1, 2, 4))):
        if r.random() < 0.5:
            at = r.choice((*range(100), *range(first, len(data))))
            changed[at] = r.choice((0, 255, r.randrange(256)))
        else:
            at = r.choice((first, last)) + r.randrange(0, 18, 2)
            value = r.choice((0, 1, 0xFFFF, 0xFFFFFFFF, 0x80000000, 64, len(data)))
            changed[at : at + 4] = struct.pack("<I", value)
    return bytes(changed[: len(data)])


def _cut(data: bytes, _: Mapping[str, bytes], r: random.Random) -> bytes:
    at = r.randrange(len(data))
    return data[:at] if r.random() < 0.5 else data[:at] + data[at + r.choice((1, 64, 4096)) :]


def _grown(data: bytes, _: Mapping[str, bytes], r: random.Random) -> bytes:
    more = r.randbytes(r.choice((1, 22, 100, 65600)))
    return data + more if r.random() < 0.5 else bytes(r.choice((1, 64, 4096))) + data


def _copied(data: bytes, _: Mapping[str, bytes], r: random.Random) -> bytes:
    changed, length = bytearray(data), r.choice((16, 64, 1024))
    to, source = r.randrange(len(data)), r.randrange(len(data))
    changed[to : to + length] = data[source : source + length]
    return bytes(changed)


def archive(members: Mapping[str, bytes]) -> bytes:
    """Members as an artifact has them, each at a multiple of 64 bytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name in members:
            info = zipfile.ZipInfo(name)
            room = -(made.tell() + 30 + len(name) + 4) % 64
            info.extra = struct.pack("<HH", 0xD935, room) + bytes(room)
            file.writestr(info, members[name])
    return made.getvalue()


def _reordered(_: bytes, members: Mapping[str, bytes], r: random.Random) -> bytes:
    return archive({name: members[name] for name in r.sample(list(members), len(members))})


def _edited(_: bytes, members: Mapping[str, bytes], r: random.Random) -> bytes:
    """The manifest says something else, and all hashes fit."""
    manifest = json.loads(members["manifest.json"])
    for _ in range(r.choice((1, 1, 2))):
        _edit(manifest, r)
    return _forged({**members}, manifest)


def _edit(place: Any, r: random.Random) -> None:
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = r.choice(keys)
        inner = place[key]
        if isinstance(inner, (dict, list)) and inner and r.random() < 0.85:
            place = inner
        elif isinstance(inner, int) and r.random() < 0.5:
            place[key] = inner + r.choice((-64, -1, 1, 2, 64))
            return
        elif r.random() < 0.2:
            del place[key]
            return
        else:
            place[key] = r.choice(NUMBERS)
            return


def _variants(_: bytes, members: Mapping[str, bytes], r: random.Random) -> bytes:
    """The table of variants says something else: it is in another order, has one more or less, or
    two have exchanged what they need, or what is theirs; and all hashes fit.
    """
    manifest, given = json.loads(members["manifest.json"]), dict(members)
    variants = manifest["variants"]
    one, other = r.choice(variants), r.choice(variants)
    kind = r.choice(("order", "less", "twice", "exchanged", "field"))
    if kind == "order":
        r.shuffle(variants)
    elif kind == "less":
        variants.remove(one)
        if r.random() < 0.5:
            del given[f"{one['isa']}.so"]
    elif kind == "twice":
        variants.append({**one, "isa": r.choice((one["isa"], "x86_other", "../evil", ""))})
        given.setdefault(f"{variants[-1]['isa']}.so", members[f"{one['isa']}.so"])
    elif kind == "exchanged":
        for key in r.choice((["cpu_flags"], ["blobs", "weights", "weights_bytes"], ["code"])):
            one[key], other[key] = other[key], one[key]
        if r.random() < 0.5:
            names = [f"{v['isa']}.so" for v in (one, other)]
            given[names[0]], given[names[1]] = (members[n] for n in reversed(names))
    else:
        _edit(one, r)
    return _forged(given, manifest)


def _forged(members: dict[str, bytes], manifest: Any) -> bytes:
    """An archive of these, with all hashes right."""
    if isinstance(manifest, dict) and isinstance(manifest.get("variants"), list):
        for variant in manifest["variants"]:
            code = members.get(f"{variant.get('isa')}.so") if isinstance(variant, dict) else None
            if code is not None:
                variant["code"] = hashlib.sha256(code).hexdigest()
            with contextlib.suppress(*_NO_DIGEST):
                variant["weights"] = _digest(members["weights.bin"], manifest, variant)
    members["manifest.json"] = json.dumps(manifest).encode()
    return archive(members)


def _digest(kept: bytes, manifest: Any, variant: Any) -> str:
    """The digest of a variant's constants, however they are kept."""
    if sum(int(b["bytes"]) for b in manifest["blobs"]) > 1 << 24:
        raise ValueError("too much")
    found, begins = [], [0, *accumulate(int(b["stored"]) for b in manifest["blobs"])]
    for number, offset in variant["blobs"]:
        piece, data = Piece(**manifest["blobs"][number]), np.frombuffer(kept, np.uint8)
        into = np.zeros(piece.bytes, np.uint8)
        here = data[begins[number] : begins[number + 1]]
        expand(piece, partial(np.copyto, src=here), into)
        found.append((offset, piece.bytes, hashlib.sha256(into).digest()))
    return digest_of(found)


_NO_DIGEST = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)
"""What comes of asking for the digest of what makes no sense."""


def _weights(_: bytes, members: Mapping[str, bytes], r: random.Random) -> bytes:
    """Other weights, and hashes that fit: what is stored in few bytes must still not overrun."""
    changed = bytearray(members["weights.bin"])
    for _ in range(r.choice((1, 5, 50))):
        changed[r.randrange(len(changed))] = r.randrange(256)
    cut = bytes(changed[: len(changed) - r.choice((0, 0, 0, 1, 64))])
    made = {**members, "weights.bin": cut}
    return _forged(made, json.loads(members["manifest.json"]))


KINDS: Sequence[tuple[str, Damage, bool]] = (
    *[("bits", _flip, True)] * 4,
    *[("records", _records, True)] * 3,
    *[("cut", _cut, True)] * 2,
    ("grown", _grown, True),
    ("copied", _copied, True),
    ("reordered", _reordered, True),
    *[("edited", _edited, False)] * 6,
    *[("variants", _variants, False)] * 3,
    ("weights", _weights, False),
)
"""Names, what they do, and whether the hashes tell of it."""
