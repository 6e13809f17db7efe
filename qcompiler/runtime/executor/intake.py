"""What a caller gives -> a request: checked, so that what is wrong fails alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qcompiler.artifact.artifact import Manifest
from qcompiler.errors import Error
from qcompiler.runtime.arrays import Array
from qcompiler.runtime.model import (
    array_of_dtype,
    arrays_checked,
    arrays_in_order,
    by_name,
    input_specs,
)
from qcompiler.runtime.open_batch import sizes_of


class Intake:
    """Takes inputs in order, or one mapping of them by name. `most` samples may be gathered in one
    run (0: a request is just what the model takes), so a request may have 1 to `most` of them.
    """

    def __init__(self, manifest: Manifest, most: int = 0) -> None:
        self._manifest, self._taken, self.most = manifest, input_specs(manifest.inputs), most

    def take(self, inputs: Sequence[Any]) -> tuple[list[Array], int, bool]:
        """-> arrays in order, samples, and whether they were named. Raises Error if the model does
        not take them.
        """
        named_ones = len(inputs) == 1 and isinstance(inputs[0], Mapping)
        if not self.most:
            if named_ones:
                arrays = arrays_in_order(self._taken, inputs[0])
            else:
                arrays = arrays_checked(self._taken, inputs)
            # Raises Error for those that it does not take.
            sizes_of(self._manifest, [a.shape for a in arrays])
            return arrays, 1, named_ones
        arrays = self.samples(inputs)
        rows = arrays[0].shape[0]
        if rows > self.most:
            raise Error(
                f"{rows} samples in one request, at most {self.most} are gathered",
                hint="executor.run(...) splits them",
            )
        return arrays, rows, named_ones

    def samples(self, inputs: Sequence[Any]) -> list[Array]:
        """Arrays of any number of samples, the same in each."""
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            given = by_name(self._taken, inputs[0])
        else:
            given = list(inputs)
        if len(given) != len(self._taken):
            raise Error(f"{len(given)} arrays for {len(self._taken)} inputs")
        arrays = []
        for (value, name, dtype, shape), each in zip(self._taken, given):
            array = array_of_dtype(value, dtype, each)
            if array.ndim != len(shape) or array.shape[1:] != shape[1:] or not array.shape[0]:
                wanted = ["samples", *shape[1:]]
                raise Error(
                    f"shape {list(array.shape)} given, [{', '.join(map(str, wanted))}] wanted",
                    where=f"input {name!r}",
                )
            arrays.append(array)
        if len({a.shape[0] for a in arrays}) > 1:
            raise Error("the inputs have different numbers of samples")
        return arrays
