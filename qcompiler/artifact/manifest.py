"""An artifact's description <-> JSON: its inputs and outputs, its variants (machine code for one
kind of CPU each), and how its weights are stored.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Union

from qcompiler.artifact.shrink import Piece
from qcompiler.errors import Error

FORMAT = 9

Json = Union[None, bool, int, float, str, list["Json"], dict[str, "Json"]]


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
    """What profiles need to know of a step."""

    name: str
    kernel: str
    tasks: int
    macs: int = 0
    bytes: int = 0
    operands: str = ""
    """The dtype that it multiplies; "" if none."""


@dataclass(frozen=True)
class Check:
    """Booleans that a run leaves in its workspace, and what is wrong if one of them is false."""

    what: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class Variant:
    """What must be known of machine code for one instruction set before it is mapped, and where a
    file holds it: from `code` on, empty until it is saved.
    """

    isa: str
    triple: str
    cpu_flags: tuple[str, ...]
    """What the CPU must report."""
    threads: int
    workspace_bytes: int
    steps: tuple[StepFact, ...]
    notes: Mapping[str, str] = field(default_factory=dict)
    """Notes that differ between variants."""
    code: str = ""
    """SHA-256 of the member `member`."""
    code_bytes: int = 0
    """Size of the machine code if the member holds it entropy-coded; else 0."""
    weights: str = ""
    """The digest of its weights (see `digest_of`)."""
    weights_bytes: int = 0
    blobs: tuple[tuple[int, int], ...] = ()
    """(index among the manifest's blobs, offset in the weights) of each of its constants."""
    checks: tuple[Check, ...] = ()
    """Of operands that runs are given, which the shapes it was compiled for permit or not."""

    @property
    def member(self) -> str:
        """The name of the member that holds its code."""
        return f"{self.isa}.so"

    def __str__(self) -> str:
        return self.isa


@dataclass(frozen=True)
class Manifest:
    """What a runtime must know before it maps code."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    variants: tuple[Variant, ...]
    """The most preferred last: of the variants that a CPU can run, the last is used."""
    producer: Mapping[str, str]
    notes: Mapping[str, str] = field(default_factory=dict)
    blobs: tuple[Piece, ...] = ()
    """How `weights.bin` stores the constants of all variants, in order; equal ones once."""
    apart: bool = False
    """Whether every sample of the batch, the first dimension of all inputs and outputs, is known to
    be computed by itself, so that requests may be gathered into batches.
    """
    format: int = FORMAT

    @property
    def steps(self) -> tuple[StepFact, ...]:
        """The steps of the only variant. Raises Error where there are several."""
        if len(self.variants) != 1:
            names = ", ".join(v.isa for v in self.variants)
            raise Error("each variant has steps of its own", where=self.name, hint=f"of {names}")
        return self.variants[0].steps

    def signature(self, variant: Variant, weights_bytes: int, weights_digest: str) -> int:
        """What a variant's machine code must return as its signature."""
        inputs, outputs = (
            [(v.name, v.dtype, v.shape) for v in side] for side in (self.inputs, self.outputs)
        )
        sizes: tuple[int, ...] = (
            weights_bytes,
            variant.workspace_bytes,
            len(variant.steps),
            variant.threads,
        )
        sizes += tuple(n for c in variant.checks for n in (c.offset, c.bytes))
        machine = (variant.isa, variant.triple, variant.cpu_flags)
        return signature(inputs, outputs, sizes, machine, weights_digest)


def signature(
    inputs: Sequence[tuple[str, str, Sequence[int]]],
    outputs: Sequence[tuple[str, str, Sequence[int]]],
    sizes: Sequence[int],
    machine: tuple[str, str, Iterable[str]],
    weights_digest: str,
) -> int:
    """What machine code expects of its manifest -> 31 bits, which the code returns too. `inputs`,
    `outputs`: (name, dtype, shape); `sizes`: bytes of weights and workspace, numbers of steps and
    threads; `machine`: instruction set, triple, flags that the CPU must have.
    """
    sides = [[[name, dtype, *shape] for name, dtype, shape in side] for side in (inputs, outputs)]
    isa, triple, cpu_flags = machine
    text = json.dumps([*sides, list(sizes), isa, triple, sorted(cpu_flags), weights_digest])
    return zlib.crc32(text.encode()) & 0x7FFFFFFF


def digest_of(constants: Iterable[tuple[int, int, bytes]]) -> str:
    """(offset, bytes, SHA-256) of all constants in weights -> the SHA-256 of that list, which is
    equal for equal constants at equal offsets.
    """
    whole = hashlib.sha256()
    for offset, size, digest in constants:
        whole.update(offset.to_bytes(8, "little") + size.to_bytes(8, "little") + digest)
    return whole.hexdigest()


def written(manifest: Manifest) -> bytes:
    """A manifest -> JSON."""
    return json.dumps(asdict(manifest), separators=(",", ":")).encode()


def read(text: bytes, where: str) -> Manifest:
    """JSON -> the manifest. Raises Error for another format; TypeError, ValueError or KeyError if
    it is no manifest.
    """
    raw = json.loads(text)
    if not isinstance(raw, dict):
        raise TypeError("the manifest is not an object")
    if raw.get("format") != FORMAT:
        raise Error(
            f"artifact format {raw.get('format')!r}; this version reads format {FORMAT}",
            where=where,
            hint="compile the model again with this version",
        )
    made = Manifest(
        name=str(raw["name"]),
        inputs=tuple(_value(v) for v in _list(raw["inputs"])),
        outputs=tuple(_value(v) for v in _list(raw["outputs"])),
        variants=tuple(_variant(v) for v in _list(raw["variants"])),
        producer=_strings(raw["producer"]),
        notes=_strings(raw["notes"]),
        blobs=tuple(_piece(p) for p in _list(raw["blobs"])),
        apart=_bool(raw["apart"]),
    )
    _demand_whole(made)
    return made


def _demand_whole(made: Manifest) -> None:
    """Raise ValueError unless there are variants, of distinct names, that use exactly the stored
    constants.
    """
    if not made.variants:
        raise ValueError("it has no variants")
    if len({v.isa for v in made.variants}) < len(made.variants):
        raise ValueError("two variants have one name")
    used = {blob for v in made.variants for blob, _ in v.blobs}
    if used != set(range(len(made.blobs))):
        raise ValueError("the variants' constants are not those that are kept")


def _variant(raw: Json) -> Variant:
    v = _object(raw)
    pairs = [_list(b) for b in _list(v["blobs"])]
    return Variant(
        isa=_string(v["isa"]),
        triple=_string(v["triple"]),
        cpu_flags=tuple(_string(f) for f in _list(v["cpu_flags"])),
        threads=_int(v["threads"]),
        workspace_bytes=_int(v["workspace_bytes"]),
        steps=tuple(_step(s) for s in _list(v["steps"])),
        notes=_strings(v["notes"]),
        code=_string(v["code"]),
        code_bytes=_int(v["code_bytes"]),
        weights=_string(v["weights"]),
        weights_bytes=_int(v["weights_bytes"]),
        blobs=tuple((_int(blob), _int(offset)) for blob, offset in pairs),
        checks=_checks(v["checks"], _int(v["workspace_bytes"])),
    )


def _checks(raw: Json, workspace_bytes: int) -> tuple[Check, ...]:
    found = [_object(c) for c in _list(raw)]
    made = tuple(Check(_string(c["what"]), _int(c["offset"]), _int(c["bytes"])) for c in found)
    if any(c.offset + c.bytes > workspace_bytes for c in made):
        raise ValueError("a check lies outside the workspace")
    return made


def _value(raw: Json) -> Value:
    v = _object(raw)
    return Value(str(v["name"]), str(v["dtype"]), tuple(_int(d) for d in _list(v["shape"])))


def _piece(raw: Json) -> Piece:
    p = _object(raw)
    keys = ("bytes", "stored", "word", "bits", "odd")
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


def _bool(raw: Json) -> bool:
    if not isinstance(raw, bool):
        raise TypeError("the manifest is malformed")
    return raw


def _string(raw: Json) -> str:
    if not isinstance(raw, str):
        raise TypeError("the manifest is malformed")
    return raw


def _strings(raw: Json) -> dict[str, str]:
    return {str(k): str(v) for k, v in _object(raw).items()}
