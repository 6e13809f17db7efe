"""Calibration or input data in any common form -> {input name: array}, one sample (or batch) at a
time.

Accepted are a `.npz` or `.npy` file, a folder of such files, a folder of ONNX test data
(`input_0.pb`), arrays by name, an iterable of dicts, an onnxruntime CalibrationDataReader, and the
word "synthetic". Every array is checked against the model's input: name, dtype, shape, no NaN or
infinity. Nothing is ever unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from qcompiler.data.array_files import Table, Take, demand_file, spell, tables_of_file
from qcompiler.dtypes import Array, Dim, numpy_dtype
from qcompiler.errors import Error, compiler_needed
from qcompiler.runtime.feeds import array_of

Wanted = Mapping[str, tuple[str, Sequence[Dim]]]
"""A model's inputs: {name: (dtype, shape)}; a symbol in a shape stands for any size."""
Sample = dict[str, Array]
Labelled = Iterator[tuple[str, Mapping[str, object]]]
"""Unchecked samples, each with the text that names it in errors."""

SYNTHETIC_SAMPLES = 8
SYNTHETIC_SEED = 0
MAX_SAMPLE_BYTES = 1 << 32


@dataclass(frozen=True)
class Samples:
    """Samples that can be iterated repeatedly; if the source allows it, one is in memory at a
    time.
    """

    name: str
    """The source, without its folder: "calibration.npz"."""
    count: int | None
    """The number of samples, if it is known before reading."""
    wanted: Wanted
    read: Callable[[], Labelled]
    synthetic: bool = False

    def __iter__(self) -> Iterator[Sample]:
        empty = True
        for where, arrays in self.read():
            empty = False
            yield _checked(where, arrays, self.wanted)
        if empty:
            raise Error("no samples", where=self.name)

    def describe(self) -> dict[str, str]:
        """Facts for an artifact's manifest."""
        count = "" if self.count is None else f" ({self.count} samples)"
        return {"calibration_data": f"{self.name}{count}"}


def samples(source: object, inputs: Wanted, limit: int | None = None) -> Samples:
    """Data in any form and the model's inputs {name: (dtype, shape)} -> at most `limit` samples.

    An array with the same rank as the input holds samples along its first axis, which are grouped
    into batches of the model's size (one if that is a symbol). An array with one more dimension
    holds whole inputs; one with one dimension less is a single sample. Errors name the file, the
    sample and the input.
    """
    if not inputs:
        raise Error("the model has no inputs to give samples to")
    found = _open(source, dict(inputs))
    if found.count == 0:
        raise Error("no samples", where=found.name)
    if limit is None or (found.count is not None and found.count <= limit):
        return found

    def first() -> Labelled:
        for index, item in enumerate(found.read()):
            if index == limit:
                return
            yield item

    count = None if found.count is None else limit
    return Samples(found.name, count, found.wanted, first, found.synthetic)


def _open(source: object, wanted: Wanted) -> Samples:
    if isinstance(source, str) and source == "synthetic":
        return synthetic(wanted)
    if isinstance(source, (str, Path)):
        return _of_path(Path(source), wanted)
    if isinstance(source, Mapping):
        tables = {str(k): _table_of(array_of(v, f"arrays, array {k!r}")) for k, v in source.items()}
        return _of_tables("arrays", tables, wanted)
    if hasattr(source, "__array__") or hasattr(source, "__dlpack__"):
        return _of_tables("array", {"array": _table_of(array_of(source, "array"))}, wanted)
    with compiler_needed():
        from qcompiler.data.iterated import iterated
    return iterated(source, wanted)


def synthetic(
    wanted: Wanted, count: int = SYNTHETIC_SAMPLES, seed: int = SYNTHETIC_SEED
) -> Samples:
    """Random samples: normal floats, 8-bit integers of the full range, other integers 0 or 1."""
    shapes = {name: _pinned(name, shape) for name, (_, shape) in wanted.items()}

    def read() -> Labelled:
        rng = np.random.default_rng(seed)
        for index in range(count):
            made = {name: _made_up(rng, dtype, shapes[name]) for name, (dtype, _) in wanted.items()}
            yield f"synthetic sample {index}", made

    return Samples("synthetic", count, wanted, read, synthetic=True)


def _pinned(name: str, shape: Sequence[Dim]) -> tuple[int, ...]:
    dims = [1 if i == 0 and isinstance(d, str) else d for i, d in enumerate(shape)]
    for d in dims:
        if isinstance(d, str):
            where = f"input {name!r}"
            raise Error(f"dimension {d!r} is not known", where=where, hint="pin it: --input-shape")
    return tuple(int(d) for d in dims)


def _made_up(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    kind = numpy_dtype(dtype)
    if dtype in ("int8", "uint8"):
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, endpoint=True).astype(kind)
    if dtype == "bool" or "int" in dtype:
        return rng.integers(0, 2, shape).astype(kind)
    return rng.standard_normal(shape).astype(kind)


def _checked(where: str, arrays: Mapping[str, object], wanted: Wanted) -> Sample:
    """One sample's arrays -> the same, checked against the model's inputs; Error if they differ."""
    strange = [str(name) for name in arrays if name not in wanted]
    if strange:
        told = ", ".join(repr(name) for name in wanted)
        raise Error(f"no input {strange[0]!r}", where=where, hint=f"the inputs are {told}")
    sizes: dict[str, int] = {}
    sample: Sample = {}
    for name, (dtype, shape) in wanted.items():
        here = f"{where}, input {name!r}"
        if name not in arrays:
            raise Error("missing", where=here)
        array = array_of(arrays[name], here)
        if array.dtype != numpy_dtype(dtype):
            raise _wrong_dtype(str(array.dtype), dtype, here)
        fits = array.ndim == len(shape) and all(
            (sizes.setdefault(d, n) if isinstance(d, str) else d) == n
            for d, n in zip(shape, array.shape)
        )
        if not fits:
            what = f"shape {spell(array.shape)} where {spell(shape)} is needed"
            batch = (
                array.ndim > 0
                and array.shape == (len(array), *shape[1:])
                and isinstance(shape[0], int)
            )
            raise Error(what, where=here, hint=_other_batch(len(array)) if batch else "")
        if "float" in dtype and not np.isfinite(array).all():
            bad = "NaN" if np.isnan(array).any() else "infinity"
            raise Error(f"it contains {bad}", where=here)
        sample[name] = array
    return sample


def _other_batch(count: int) -> str:
    """What to do with so many samples at a time, where the model takes others."""
    return (
        "give all samples in one array, as many as one batch or more; or compile for batches of"
        f" {count}: --opt-dim NAME={count} where the batch NAME stays open, else --input-shape"
    )


def _wrong_dtype(have: str, want: str, where: str) -> Error:
    return Error(
        f"{have} where {want} is needed", where=where, hint=f"convert it: array.astype({want!r})"
    )


# Arrays that hold many samples, in memory or on disk.


def _table_of(array: Array) -> Table:
    def rows(_: ExitStack) -> Take:
        left = iter(range(0, max(array.shape[:1], default=1)))

        def take(count: int) -> Array:
            begin = next(left)
            for _ in range(count - 1):
                next(left)
            return array[begin : begin + count] if array.ndim else array

        return take

    return Table(array.shape, array.dtype, rows)


def _of_tables(name: str, tables: Mapping[str, Table], wanted: Wanted) -> Samples:
    """Arrays -> samples; an array's rank says which part of it is one sample."""
    splits = {
        key: _split(f"{name}, array {key!r}", table, wanted[key])
        for key, table in _assign(name, tables, wanted).items()
    }
    counts = {key: split.count for key, split in splits.items() if split.count is not None}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{c} of {key!r}" for key, c in counts.items())
        raise Error(f"the inputs do not have equally many samples: {told}", where=name)
    total = next(iter(counts.values()), 1)

    def read() -> Labelled:
        with ExitStack() as files:
            takes = {key: split.table.rows(files) for key, split in splits.items()}
            fixed = {k: takes[k](1) for k, split in splits.items() if split.count is None}
            for index in range(total):
                moving = {key: splits[key].shaped(takes[key](splits[key].rows)) for key in counts}
                yield f"{name}, sample {index}", {**fixed, **moving}

    return Samples(name, total, wanted, read)


def _assign(name: str, tables: Mapping[str, Table], wanted: Wanted) -> dict[str, Table]:
    """Assign arrays to inputs: by name, or the only array that fits the only input."""
    if all(key in tables for key in wanted):
        return {key: tables[key] for key in wanted}
    told = ", ".join(f"{k!r} {t.dtype}{spell(t.shape)}" for k, t in tables.items()) or "none"
    hint = f"the arrays are {told}"
    if len(wanted) > 1:
        missing = next(key for key in wanted if key not in tables)
        raise Error(f"no array {missing!r}", where=name, hint=hint)
    ((key, (dtype, shape)),) = wanted.items()
    fitting = [t for t in tables.values() if t.dtype == numpy_dtype(dtype) and _fits(t, shape)]
    if len(tables) == 1:  # if it does not fit, a later error says why
        fitting = list(tables.values())
    if len(fitting) != 1:
        raise Error(f"no array {key!r}, and {len(fitting)} that fit it", where=name, hint=hint)
    return {key: fitting[0]}


def _fits(table: Table, shape: Sequence[Dim]) -> bool:
    """Whether parts of an array can be inputs of this shape."""
    have = table.shape
    more = len(have) - len(shape)
    if more not in (-1, 0, 1):
        return False
    parts = have[1:] if more >= 0 else have
    needs = shape if more == 1 else shape[1:]
    return all(isinstance(d, str) or d == n for n, d in zip(parts, needs))


@dataclass(frozen=True)
class _Split:
    """How an array is divided into samples."""

    table: Table
    rows: int
    """Rows per sample."""
    count: int | None
    """Samples in the array; None: a single value, the same for every sample."""
    more: int
    """The array's rank minus that of the input."""

    def shaped(self, rows: Array) -> Array:
        return rows[0] if self.more > 0 else rows[np.newaxis] if self.more < 0 else rows


def _split(where: str, table: Table, want: tuple[str, Sequence[Dim]]) -> _Split:
    dtype, shape = want
    if table.dtype != numpy_dtype(dtype):
        raise _wrong_dtype(str(table.dtype), dtype, where)
    if not shape and not table.shape:
        return _Split(table, 1, None, 0)
    if not _fits(table, shape):
        have = spell(table.shape)
        raise Error(f"shape {have} does not hold samples of {spell(shape)}", where=where)
    more = len(table.shape) - len(shape)
    length = table.shape[0] if table.shape else 1
    if more > 0:
        split = _Split(table, 1, length, more)
    elif more < 0:
        split = _Split(table, length, 1, more)
    else:
        batch = 1 if isinstance(shape[0], str) else max(int(shape[0]), 1)
        if 0 < length < batch:
            what = f"{length} samples do not fill the model's batch of {batch}"
            raise Error(what, where=where, hint=_other_batch(length))
        split = _Split(table, batch, length // batch, more)
    if split.rows * prod(table.shape[1:]) * table.dtype.itemsize > MAX_SAMPLE_BYTES:
        raise Error(f"one sample is larger than {MAX_SAMPLE_BYTES >> 30} GB", where=where)
    return split


# Files.


def _of_path(path: Path, wanted: Wanted) -> Samples:
    if path.is_dir():
        return _of_folder(path, wanted)
    if not path.is_file():
        raise Error("no such file or folder", where=str(path))
    return _of_tables(path.name, tables_of_file(path), wanted)


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sort key that puts img2 before img10."""
    return [(int(t), "") if t.isdecimal() else (-1, t) for t in re.split(r"(\d+)", path.name)]


def _of_folder(folder: Path, wanted: Wanted) -> Samples:
    files = sorted((p for p in folder.iterdir() if p.suffix in (".npy", ".npz")), key=_natural)
    for path in files:
        demand_file(path)  # check all files before compiling anything
    if files:

        def read() -> Labelled:
            for path in files:
                yield from _of_tables(path.name, tables_of_file(path), wanted).read()

        return Samples(folder.name, None, wanted, read)
    inside = sorted((p for p in folder.iterdir() if p.is_dir()), key=_natural)
    sets = [p for p in (folder, *inside) if (p / "input_0.pb").is_file()]
    if not sets:
        raise Error("no .npy, .npz or input_0.pb files in it", where=str(folder))

    def read_sets() -> Labelled:
        with compiler_needed():
            from qcompiler.onnx_io.tensors import read_tensor
        for path in sets:
            where = path.name
            yield where, {n: read_tensor(path / f"input_{i}.pb") for i, n in enumerate(wanted)}

    return Samples(folder.name, len(sets), wanted, read_sets)
