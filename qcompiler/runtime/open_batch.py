"""A run of any number of samples, as rounds of steps that compute so many at once.

As many rounds of the largest batch as fit come first, then those of smaller ones. Where the rest is
predicted to take longer than one more round of the larger batch, that round ends with the last
sample, and computes some samples again, to the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qcompiler.artifact.artifact import Value, Variant
from qcompiler.artifact.manifest import Batch, Manifest, Symbol
from qcompiler.errors import Error
from qcompiler.runtime.arrays import Array, Kind
from qcompiler.runtime.library import Code, Frame, aligned, aligned_copy

Rounds = tuple[Batch, int, int]
"""A batch, the first sample, and how many rounds."""


def fits(shape: Sequence[int | str], found: Sequence[int]) -> bool:
    """Is a shape one of those that an open one allows? Nothing fits an empty one."""
    same = all(isinstance(d, str) or d == n for d, n in zip(shape, found))
    return len(shape) == len(found) > 0 and same


def samples_of(symbol: Symbol, inputs: Sequence[Value], arrays: Sequence[Array]) -> int:
    """The number of samples, the first dimension of all inputs. Raises Error where they differ or
    are too few or too many.
    """
    counts = {value.name: array.shape[0] for value, array in zip(inputs, arrays)}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{n} in {name}" for name, n in counts.items())
        raise Error(f"{symbol.name} is not the same in all inputs: {found}")
    (count,) = set(counts.values())
    if not symbol.low <= count <= symbol.high:
        hint = f"compile with --dim {symbol.name}=LO..HI for others"
        raise Error(f"{symbol.name} is {count}, the artifact takes {symbol}", hint=hint)
    return int(count)


def sizes_of(manifest: Manifest, arrays: Sequence[Array]) -> dict[str, int]:
    """The open sizes of a run with these inputs; none where all sizes are fixed. Raises Error for
    sizes that the artifact does not take.
    """
    return {s.name: samples_of(s, manifest.inputs, arrays) for s in manifest.symbols}


def rounds(batches: Sequence[Batch], count: int) -> Iterator[Rounds]:
    """Batches, the largest first and the last of one sample -> what computes so many samples."""
    at = 0
    for i, batch in enumerate(batches):
        times, rest = divmod(count - at, batch.samples)
        if not times:
            continue
        yield batch, at, times
        at += times * batch.samples
        if rest and _seconds(batches[i + 1 :], rest) > batch.nanoseconds:
            yield batch, count - batch.samples, 1
            return


def _seconds(batches: Sequence[Batch], count: int) -> int:
    """Predicted nanoseconds of so many samples, without computing any twice."""
    total = 0
    for batch in batches:
        times, count = divmod(count, batch.samples)
        total += times * batch.nanoseconds
    return total


def demand_closed(manifest: Manifest, what: str) -> None:
    """Raise Error for an open size, which `what` cannot run."""
    for symbol in manifest.symbols:
        raise Error(
            f"{what} cannot run it, as {symbol.name} is open",
            where=manifest.name,
            hint=f"compile it for a fixed size: --dim {symbol.name}=N",
        )


def in_batches(
    frame: Frame,
    code: Code,
    threads: int,
    variant: Variant,
    arrays: Sequence[Array],
    kinds: Sequence[Kind],
    count: int,
) -> list[Array]:
    """Run on the arrays of so many samples -> new outputs of these dtypes and shapes."""
    outputs = [aligned(*kind) for kind in kinds]
    places = [*map(aligned_copy, arrays), *outputs]
    each = [p.array.nbytes // count for p in places]
    for batch, first, times in rounds(variant.batches, count):
        for i, place in enumerate(places):
            frame.table[i] = place.address + first * each[i]
        frame.table[frame.words.parts] = times
        frame.run(code, threads, batch.first, batch.last)
    return [o.array for o in outputs]
