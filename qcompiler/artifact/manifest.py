"""An artifact's description <-> JSON: its inputs and outputs, its variants (machine code for one
kind of CPU each), and how its weights are stored.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Union

from qcompiler.artifact.pieces import Piece
from qcompiler.artifact.sizes import Size
from qcompiler.errors import Error
from qcompiler.files import parsed

FORMAT = 9

Json = Union[None, bool, int, float, str, list["Json"], dict[str, "Json"]]


@dataclass(frozen=True)
class Symbol:
    """A size that an artifact leaves open: its name, the least and the largest number that it may
    be, and the one that it was compiled to be best at; multiples of `step`.
    """

    name: str
    low: int
    high: int
    best: int
    step: int = 1

    def __str__(self) -> str:
        steps = f" in steps of {self.step}" * (self.step > 1)
        return f"{self.name} = {self.low} to {self.high}{steps}"


@dataclass(frozen=True)
class Batch:
    """Steps from `first` to before `last` compute so many samples, in predicted nanoseconds."""

    samples: int
    first: int
    last: int
    nanoseconds: int

    def __str__(self) -> str:
        return f"{self.samples} by steps {self.first} to {self.last - 1}"


@dataclass(frozen=True)
class Pinned:
    """Steps from `first` to before `last` compute open sizes up to these, one for each symbol but
    that of a batch.
    """

    sizes: tuple[int, ...]
    first: int
    last: int

    def __str__(self) -> str:
        return f"to {'x'.join(map(str, self.sizes))} by steps {self.first} to {self.last - 1}"


@dataclass(frozen=True)
class Value:
    """A model's input or output: its name, dtype and static shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    """Where sizes are open, one of the shapes that it may have."""
    open: tuple[int | str, ...] = ()
    """The shape with open sizes as expressions of symbols; empty if there are none."""
    room: tuple[int | str, ...] = ()
    """The same of its memory, where an input has room for what runs put behind it."""

    @property
    def dims(self) -> tuple[int | str, ...]:
        """The shape, with open sizes as expressions."""
        return self.open or self.shape

    def at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape in numbers, for numbers of the open sizes."""
        return tuple(d if isinstance(d, int) else Size.of(d).at(sizes) for d in self.dims)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class StepFact:
    """Facts of a step, for profiles."""

    name: str
    kernel: str
    tasks: int
    macs: int = 0
    bytes: int = 0
    operands: str = ""
    """The dtype that it multiplies; "" if none."""
    ram: int | None = None
    """Bytes of the workspace in use while it runs; None in artifacts of earlier versions."""
    weights: int | None = None
    """Bytes of its weights that no earlier step reads; None as above."""


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
    batches: tuple[Batch, ...] = ()
    """Of an open batch: what runs are made of, the largest first and the last of one sample."""
    pinned: tuple[Pinned, ...] = ()
    """Of other open sizes: which steps run for which, those of the largest first."""
    blobs: tuple[tuple[int, int], ...] = ()
    """(index among the manifest's blobs, offset in the weights) of each of its constants."""
    checks: tuple[Check, ...] = ()
    """Of operands that runs are given, which the shapes it was compiled for permit or not."""
    extents: tuple[tuple[str, int], ...] = ()
    """(output, offset in the workspace): where a run leaves the size of an output, as int64, if its
    data decide it; the output's shape is the largest."""
    in_place: tuple[tuple[str, str], ...] = ()
    """(input, output) that may be one memory, and then are worked on in place."""
    repeats: tuple[tuple[int, int, int], ...] = ()
    """(first step, the one after the last, offset in the workspace) of loops, the outer before the
    inner: these steps run again and again while the byte there is not 0.
    """

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
    symbols: tuple[Symbol, ...] = ()
    """The sizes that inputs leave open; that of the batch first, if variants have batches."""
    sizes: tuple[str, ...] = ()
    """Inputs that no caller gives, behind the others: these sizes in a run, as expressions of open
    ones, each an int32."""
    format: int = FORMAT

    @property
    def steps(self) -> tuple[StepFact, ...]:
        """The steps of the only variant. Raises Error where there are several."""
        if len(self.variants) != 1:
            names = ", ".join(v.isa for v in self.variants)
            raise Error("each variant has steps of its own", where=self.name, hint=f"of {names}")
        return self.variants[0].steps

    def signature(self, variant: Variant, weights_bytes: int, weights_digest: str) -> int:
        """What a variant's machine code must return as its signature: 31 bits of all that it was
        made for.
        """
        sides = [[[v.name, v.dtype, *v.shape] for v in s] for s in (self.inputs, self.outputs)]
        sizes = [weights_bytes, variant.workspace_bytes, len(variant.steps), variant.threads]
        sizes += [n for c in variant.checks for n in (c.offset, c.bytes)]
        sizes += [offset for _, offset in variant.extents]
        machine = (variant.isa, variant.triple, sorted(variant.cpu_flags))
        # older artifacts have no step, and older runtimes are to refuse any but 1
        opened: list[object] = [astuple(s)[: 4 + (s.step > 1)] for s in self.symbols]
        if self.symbols:
            opened += [*map(astuple, variant.batches), *map(astuple, variant.pinned)]
            values = (*self.inputs, *self.outputs)
            opened += [*(v.open for v in values), *(v.room for v in values if v.room)]
            opened += [self.sizes] * bool(self.sizes)
        opened += (*variant.in_place, *variant.repeats)
        text = json.dumps([*sides, sizes, *machine, weights_digest, *([opened] if opened else [])])
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
    raw = parsed(text)
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
        symbols=tuple(_symbol(s) for s in _list(raw.get("symbols", []))),
        sizes=tuple(_string(s) for s in _list(raw.get("sizes", []))),
    )
    _demand_whole(made)
    _demand_sizes(made)
    return made


def _demand_whole(made: Manifest) -> None:
    """Raise ValueError unless there are variants, of distinct names, that use exactly the stored
    constants, and leave the sizes of known outputs in their workspaces.
    """
    if not made.variants:
        raise ValueError("it has no variants")
    if len({v.isa for v in made.variants}) < len(made.variants):
        raise ValueError("two variants have one name")
    used = {blob for v in made.variants for blob, _ in v.blobs}
    if used != set(range(len(made.blobs))):
        raise ValueError("the variants' constants are not those that are kept")
    ranks = {v.name: len(v.shape) for v in made.outputs}
    for variant in made.variants:
        for name, offset in variant.extents:
            if name not in ranks or offset + 8 * ranks[name] > variant.workspace_bytes:
                raise ValueError(f"the size of the output {name!r} is not known")


def _demand_sizes(made: Manifest) -> None:
    """Raise ValueError unless all open sizes are of known symbols, and batches are of known steps,
    down to one sample.
    """
    batched = any(v.batches for v in made.variants)
    if batched and not made.symbols:
        raise ValueError("batches of a size that is not open")
    if len({s.name for s in made.symbols}) < len(made.symbols):
        raise ValueError("two open sizes have one name")
    for value in (*made.inputs, *made.outputs):
        ranks = {len(value.open), len(value.room)}
        known = {0, len(value.shape)} if made.symbols else {0}
        if not ranks <= known or not _fits(made, value, batched):
            raise ValueError(f"{value} has sizes that are not known")
    inner = {s.name: s.high for s in made.symbols[batched:]}
    for size in made.sizes:
        _at(size, inner)
    for symbol in made.symbols:
        inside = 1 <= symbol.step <= (symbol.low or symbol.step)
        inside = inside and 0 <= symbol.low <= symbol.high < 1 << 31
        if not (inside and 1 <= symbol.best <= symbol.high):
            raise ValueError(f"{symbol} is no range")
        if not any(symbol.name in v.open for v in made.inputs):
            raise ValueError(f"{symbol} is the size of no input")
    for variant in made.variants:
        sizes = [b.samples for b in variant.batches]
        apart = sizes == sorted(set(sizes), reverse=True) and sizes[-1:] == [1]
        inside = all(b.first < b.last <= len(variant.steps) for b in variant.batches)
        wanted = batched and (len(made.symbols) == 1 or sizes == [1])
        if bool(sizes) != batched or (sizes and not (apart and inside and wanted)):
            raise ValueError(f"{variant} has batches that are not known")
        _demand_pinned(variant, [s.high for s in made.symbols[batched:]])


def _demand_pinned(variant: Variant, highest: list[int]) -> None:
    """Raise ValueError unless known steps compute the largest sizes, then smaller and smaller."""
    last = highest
    for i, pinned in enumerate(variant.pinned):
        smaller = all(1 <= n <= m for n, m in zip(pinned.sizes, last))
        first = i > 0 or list(pinned.sizes) == highest
        inside = pinned.first <= pinned.last <= len(variant.steps)
        if not (len(pinned.sizes) == len(highest) and smaller and first and inside):
            raise ValueError(f"{variant} has sizes that are not known")
        last = list(pinned.sizes)
    if bool(variant.pinned) != bool(highest):
        raise ValueError(f"{variant} does not say which steps run")


def _fits(made: Manifest, value: Value, batched: bool) -> bool:
    """Is a value's shape that of its largest sizes, but for its first one, of a batch?"""
    first = made.symbols[:batched]
    sizes = {s.name: s.high for s in made.symbols}
    dims = value.room or value.open
    rest = dims[1:] if batched and dims else dims
    if any(s.name in Size.of(d).symbols for s in first for d in rest if isinstance(d, str)):
        return False
    if first and (not value.open or not isinstance(value.open[0], str)):
        return False
    if first and _at(value.open[0], {**sizes, first[0].name: first[0].low}) < 0:
        return False
    largest = tuple(_at(d, sizes) for d in rest)
    return largest == value.shape[len(dims) - len(rest) :] or not value.open


def _at(size: int | str, sizes: Mapping[str, int]) -> int:
    """A size in numbers. Raises ValueError where it is made of others."""
    try:
        return size if isinstance(size, int) else Size.of(size).at(sizes)
    except (Error, ZeroDivisionError) as e:
        raise ValueError(str(e)) from e


def _symbol(raw: Json) -> Symbol:
    s = _object(raw)
    s.setdefault("step", 1)
    return Symbol(_string(s["name"]), *(_int(s[k]) for k in ("low", "high", "best", "step")))


def _batch(raw: Json) -> Batch:
    b = _object(raw)
    return Batch(*(_int(b[k]) for k in ("samples", "first", "last", "nanoseconds")))


def _pinned(raw: Json) -> Pinned:
    p = _object(raw)
    sizes = tuple(_int(s) for s in _list(p["sizes"]))
    return Pinned(sizes, _int(p["first"]), _int(p["last"]))


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
        batches=tuple(_batch(b) for b in _list(v.get("batches", []))),
        pinned=tuple(_pinned(p) for p in _list(v.get("pinned", []))),
        code=_string(v["code"]),
        code_bytes=_int(v["code_bytes"]),
        weights=_string(v["weights"]),
        weights_bytes=_int(v["weights_bytes"]),
        blobs=tuple((_int(blob), _int(offset)) for blob, offset in pairs),
        checks=_checks(v["checks"], _int(v["workspace_bytes"])),
        extents=_extents(v["extents"]),
        in_place=tuple(
            (_string(i), _string(o)) for i, o in map(_list, _list(v.get("in_place", [])))
        ),
        repeats=_repeats(v),
    )


def _checks(raw: Json, workspace_bytes: int) -> tuple[Check, ...]:
    found = [_object(c) for c in _list(raw)]
    made = tuple(Check(_string(c["what"]), _int(c["offset"]), _int(c["bytes"])) for c in found)
    if any(c.offset + c.bytes > workspace_bytes for c in made):
        raise ValueError("a check lies outside the workspace")
    return made


def _repeats(v: Mapping[str, Json]) -> tuple[tuple[int, int, int], ...]:
    found = []
    for first, last, offset in map(_list, _list(v.get("repeats", []))):
        found.append((_int(first), _int(last), _int(offset)))
        inside = found[-1][0] < found[-1][1] <= len(_list(v["steps"]))
        if not inside or found[-1][2] >= _int(v["workspace_bytes"]):
            raise ValueError("a loop is not of its steps")
    return tuple(found)


def _extents(raw: Json) -> tuple[tuple[str, int], ...]:
    pairs = [_list(e) for e in _list(raw)]
    return tuple((_string(name), _int(offset)) for name, offset in pairs)


def _value(raw: Json) -> Value:
    v = _object(raw)
    shape = tuple(_int(d) for d in _list(v["shape"]))
    open_, room = (
        tuple(d if isinstance(d, str) else _int(d) for d in _list(v.get(key, [])))
        for key in ("open", "room")
    )
    return Value(str(v["name"]), str(v["dtype"]), shape, open_, room)


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
        ram=_known(s.get("ram")),
        weights=_known(s.get("weights")),
    )


def _known(raw: Json) -> int | None:
    return None if raw is None else _int(raw)


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
