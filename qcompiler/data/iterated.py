"""Samples that Python computes: iterables of arrays or of {input name: array}, and onnxruntime's
CalibrationDataReader. Compiling takes them; the command line does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Protocol, runtime_checkable

from qcompiler.data.samples import Labelled, Samples, Wanted
from qcompiler.errors import Error
from qcompiler.runtime.feeds import named_arrays


@runtime_checkable
class Reader(Protocol):
    """An onnxruntime CalibrationDataReader."""

    def get_next(self) -> Mapping[str, object] | None:
        """The next sample, None after the last."""


def iterated(source: object, wanted: Wanted) -> Samples:
    """An iterable or a reader -> its samples, for inputs {name: (dtype, shape)}. Raises Error for
    anything else.
    """
    if isinstance(source, Reader):
        return _of_reader(source, wanted)
    if isinstance(source, Iterable):
        return _of_iterable(source, wanted)
    raise Error(
        f"{type(source).__name__} holds no samples",
        hint="give a .npz file, a folder, a list of {input name: array}, or 'synthetic'",
    )


def _of_iterable(source: Iterable[object], wanted: Wanted) -> Samples:
    once = iter(source) is source
    started = False

    def read() -> Labelled:
        nonlocal started
        if once and started:
            raise Error("the samples can be read only once", hint="give a list, not an iterator")
        started = True
        for index, item in enumerate(source):
            where = f"sample {index}"
            if isinstance(item, Mapping):
                yield where, item
            elif len(wanted) == 1:
                yield where, {next(iter(wanted)): item}
            else:
                what = f"{type(item).__name__} where {{input name: array}} is needed"
                raise Error(what, where=where)

    return Samples("samples", len(source) if isinstance(source, Sized) else None, wanted, read)


def _of_reader(reader: Reader, wanted: Wanted) -> Samples:
    started = False

    def read() -> Labelled:
        nonlocal started
        if started:
            rewind = getattr(reader, "rewind", None)
            if rewind is None:
                raise Error("the reader can be read only once", hint="give it a rewind() method")
            rewind()
        started = True
        index = 0
        while (item := reader.get_next()) is not None:
            where = f"{type(reader).__name__}, sample {index}"
            yield where, named_arrays(item, where)
            index += 1

    return Samples(type(reader).__name__, None, wanted, read)
