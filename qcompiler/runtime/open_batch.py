"""A run of any number of samples, as rounds of steps that compute so many at once.

As many rounds of the largest batch as fit come first, then those of smaller ones. Where the rest is
predicted to take longer than one more round of the larger batch, that round ends with the last
sample, and computes some samples again, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from qcompiler.artifact.manifest import Batch, Manifest
from qcompiler.artifact.sizes import Size
from qcompiler.errors import Error
from qcompiler.runtime.library import Frame, Memory

Rounds = tuple[Batch, int, int]
"""A batch, the first sample, and how many rounds."""


def fits(shape: Sequence[int | str], found: Sequence[int]) -> bool:
    """Is a shape one of those that an open one allows? Nothing fits an empty one."""
    same = all(isinstance(d, str) or d == n for d, n in zip(shape, found))
    return len(shape) == len(found) > 0 and same


def sizes_of(manifest: Manifest, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """The open sizes of a run with inputs of these shapes; none where all sizes are fixed. Raises
    Error where one is outside its range, not the same in all inputs, or not what it is computed
    from others.
    """
    found: dict[str, int] = {}
    for symbol in manifest.symbols:
        places = [
            (value.name, int(shape[axis]))
            for value, shape in zip(manifest.inputs, shapes)
            for axis, d in enumerate(value.dims)
            if d == symbol.name
        ]
        if len({n for _, n in places}) > 1:
            listed = ", ".join(f"{n} in {name}" for name, n in places)
            raise Error(f"{symbol.name} is not the same in all inputs: {listed}")
        count = found[symbol.name] = places[0][1]
        if count not in range(symbol.low, symbol.high + 1, symbol.step):
            hint = f"compile with --dim {symbol.name}=LO..HI for others"
            raise Error(f"{symbol.name} is {count}, the artifact takes {symbol}", hint=hint)
    for value, shape in zip(manifest.inputs, shapes):
        for d, n in zip(value.open, shape):
            if isinstance(d, str) and d not in found and n != (wanted := Size.of(d).at(found)):
                raise Error(f"{d} is {n}, and {wanted} by other inputs", where=f"input {value}")
    return found


def rounds(batches: Sequence[Batch], count: int, again: bool = True) -> Iterator[Rounds]:
    """Batches, the largest first and the last of one sample -> what computes so many samples, each
    once unless `again`.
    """
    at = 0
    for i, batch in enumerate(batches):
        times, rest = divmod(count - at, batch.samples)
        if not times:
            continue
        yield batch, at, times
        at += times * batch.samples
        if again and rest and _seconds(batches[i + 1 :], rest) > batch.nanoseconds:
            yield batch, count - batch.samples, 1
            return


def _seconds(batches: Sequence[Batch], count: int) -> int:
    """Predicted nanoseconds of so many samples, without computing any twice."""
    total = 0
    for batch in batches:
        times, count = divmod(count, batch.samples)
        total += times * batch.nanoseconds
    return total


def in_batches(
    frame: Frame,
    launch: Callable[[int, int], None],
    batches: Sequence[Batch],
    inputs: Sequence[Memory],
    outputs: Sequence[Memory],
    count: int,
    hidden: int,
    again: bool = True,
) -> None:
    """Run on arrays of so many samples; `launch(first, last)` runs steps on the frame. `hidden`:
    inputs behind these, already in the table, which are the same for all samples. `again`: may a
    sample be computed twice? Not where its inputs are overwritten.
    """
    numbered = [*enumerate(inputs), *enumerate(outputs, len(inputs) + hidden)]
    for batch, first, times in rounds(batches, count, again):
        once = times if hidden else 1
        for at in range(first, first + once * batch.samples, batch.samples):
            for i, place in numbered:
                frame.table[i] = place.address + at * (place.array.nbytes // count)
            frame.table[frame.words.parts] = times // once
            launch(batch.first, batch.last)
