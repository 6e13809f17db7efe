"""Operators on strings, which run in Python before a model's machine code: arrays of str -> arrays.

A program is a JSON object: `inputs` and `outputs` (all of the model's, in order), `strings` (the
inputs that are text, with their shapes), `constants`, `steps` (operator, attributes, and the names
of what it reads and makes) and `feeds` (what the machine code takes from them).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.artifact.artifact import Value
from qcompiler.errors import Error

NOTE = "text"
"""The manifest's note that holds the program."""

Array = NDArray[Any]
Attrs = Mapping[str, Any]

_WRONG = ValueError, LookupError, TypeError, AttributeError, OverflowError


def concat(attrs: Attrs, x: Array, y: Array) -> tuple[Array, ...]:
    """Strings, one after the other."""
    return (np.asarray(np.add(x, y), object),)


def equal(attrs: Attrs, x: Array, y: Array) -> tuple[Array, ...]:
    """Whether strings are equal."""
    return (np.asarray(np.equal(x, y), np.bool_),)


def full_match(attrs: Attrs, x: Array) -> tuple[Array, ...]:
    """Whether whole strings fit a regular expression."""
    pattern = re.compile(str(attrs["pattern"] or ""))
    found = [pattern.fullmatch(s) is not None for s in x.ravel()]
    return (np.array(found, np.bool_).reshape(x.shape),)


def split(attrs: Attrs, x: Array) -> tuple[Array, ...]:
    """Strings -> their parts, filled up with empty ones, and the number of parts of each."""
    most = attrs["maxsplit"]
    rows = [s.split(attrs["delimiter"] or None, -1 if most is None else most) for s in x.ravel()]
    counts = np.array([len(row) for row in rows], np.int64).reshape(x.shape)
    made = np.full((len(rows), max(map(len, rows), default=0)), "", object)
    for i, row in enumerate(rows):
        made[i, : len(row)] = row
    return made.reshape(*x.shape, made.shape[1]), counts


def normalized(attrs: Attrs, x: Array) -> tuple[Array, ...]:
    """[C] or [1, C] without the stop words, in upper or lower case; one empty string if none is
    left.
    """
    change = {"LOWER": str.lower, "UPPER": str.upper}.get(attrs["case_change_action"], str)
    exact = bool(attrs["is_case_sensitive"])
    away = {s if exact else s.lower() for s in attrs["stopwords"] or ()}
    kept = [s for s in x.ravel() if (s if exact else s.lower()) not in away]
    made = np.array([change(s) for s in kept] or [""], object)
    return (made.reshape(1, -1) if x.ndim == 2 else made,)


MEANINGS: dict[str, Callable[..., tuple[Array, ...]]] = {
    "Equal": equal,
    "Identity": lambda attrs, x: (x,),
    "RegexFullMatch": full_match,
    "StringConcat": concat,
    "StringNormalizer": normalized,
    "StringSplit": split,
}


class Program:
    """The steps of a model's text."""

    def __init__(self, note: str) -> None:
        """Raises Error for what is no program."""
        try:
            raw = json.loads(note)
            self.inputs, self.outputs = _names(raw["inputs"]), _names(raw["outputs"])
            self._strings = {k: _dims(v) for k, v in raw["strings"].items()}
            self._constants = {
                k: np.array(v[1], object).reshape(v[0]) for k, v in raw["constants"].items()
            }
            known = {*self._strings, *self._constants}
            self._steps = []
            for op, attrs, read, made in raw["steps"]:
                step = (str(op), MEANINGS[op], dict(attrs), _names(read), _names(made))
                self._steps.append(step)
                _demand_known(read, known)
                known.update(made)
            self._feeds, self._made = dict(raw["feeds"]), dict(raw["made"])
            _demand_known([*self._feeds.values(), *self._made.values()], known)
            _demand_known(self._strings, self.inputs)
        except (*_WRONG, RecursionError) as e:
            raise _changed(f"{type(e).__name__}: {e}") from e

    @property
    def operators(self) -> str:
        """What runs in Python."""
        return ", ".join(dict.fromkeys(str(op) for op, *_ in self._steps))

    def taken(self, inputs: Sequence[Value]) -> list[str]:
        """Inputs of machine code -> those of the model: strings, and what is not made of them."""
        strings = (f"{k}: string[{','.join(map(str, d))}]" for k, d in self._strings.items())
        return [*strings, *(str(v) for v in inputs if v.name not in self._feeds)]

    def run_with(
        self, inputs: Mapping[str, Any], run: Callable[[Mapping[str, Any]], dict[str, Array]]
    ) -> dict[str, Any]:
        """The model's inputs, and what runs its machine code -> its outputs."""
        taken, made = self.run(inputs)
        made.update(run(taken))
        _demand_known(self.outputs, made)
        return {name: made[name] for name in self.outputs}

    def run(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
        """The model's inputs -> what its machine code takes, and the outputs that are made here."""
        missing = [n for n in self.inputs if n not in inputs]
        unknown = [n for n in inputs if n not in self.inputs]
        if missing or unknown:
            what = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is unknown"
            raise Error(f"input {what}", hint=f"the model's inputs are {', '.join(self.inputs)}")
        values, sizes = dict(self._constants), dict[str, int]()
        for name, shape in self._strings.items():
            values[name] = strings_of(name, shape, inputs[name], sizes)
        for op, meaning, attrs, read, made in self._steps:
            try:
                results = meaning(attrs, *(values[i] for i in read))
            except (*_WRONG, re.error) as e:  # open sizes that do not fit each other; a bad pattern
                raise Error(str(e), where=op) from e
            if len(results) != len(made):
                raise _changed(f"{op} makes {len(results)} values, not {len(made)}")
            values.update(zip(made, results))
        rest = {n: v for n, v in inputs.items() if n not in self._strings}
        rest.update((taken, values[name]) for taken, name in self._feeds.items())
        return rest, {name: np.array(values[value]) for name, value in self._made.items()}


def _names(raw: Any) -> list[str]:
    if not isinstance(raw, list) or not all(isinstance(n, str) for n in raw):
        raise TypeError("names wanted")
    return raw


def _dims(raw: Any) -> list[int | str]:
    if not isinstance(raw, list) or not all(isinstance(d, (int, str)) for d in raw):
        raise TypeError("a shape wanted")
    return raw


def _demand_known(names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise _changed(f"nothing makes {name!r}")


def _changed(why: str) -> Error:
    what = f"its program of strings cannot be read: {why}"
    return Error(what, hint="the file was changed; compile the model again")


def strings_of(name: str, shape: Sequence[Any], given: object, sizes: dict[str, int]) -> Array:
    """An input of text as given -> an array of str. `sizes`: those open ones that other inputs
    have, to which its own are added. Raises Error.
    """
    where = f"input {name!r}"
    try:
        array = np.asarray(given)
    except ValueError as e:  # ragged lists
        raise Error(f"{type(given).__name__} given, strings wanted", where=where) from e
    if array.dtype.kind not in "UO" or not all(isinstance(s, str) for s in array.ravel()):
        raise Error(f"{array.dtype} given, strings wanted", where=where)
    wanted, pairs = [sizes.get(d, d) for d in shape], zip(shape, array.shape)
    fits = [n == (sizes.setdefault(d, n) if isinstance(d, str) else d) for d, n in pairs]
    if array.ndim != len(shape) or not all(fits):
        raise Error(f"shape {list(array.shape)} given, {wanted} wanted", where=where)
    return array.astype(object)
