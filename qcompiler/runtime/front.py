"""What a model takes and returns where that is not the arrays of its machine code: strings, which
Python handles, and sequences, which are lists of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import Any

from qcompiler.artifact.manifest import Manifest
from qcompiler.errors import Error
from qcompiler.runtime.feeds import named_arrays
from qcompiler.runtime.text import NOTE, Program

Run = Callable[[Mapping[str, Any]], dict[str, Any]]
"""{input name: array} -> {output name: array}."""
SEQUENCE = "sequence "
"""A manifest's note "sequence NAME" is how long that is."""


class Front:
    """The strings and sequences of a model, by its manifest; false if it has none. Raises Error for
    notes that cannot be read.
    """

    def __init__(self, manifest: Manifest) -> None:
        notes = manifest.notes
        self._text = Program(notes[NOTE]) if NOTE in notes else None
        try:
            at = len(SEQUENCE)
            self._lists = {k[at:]: int(v) for k, v in notes.items() if k.startswith(SEQUENCE)}
        except ValueError as e:
            raise Error(f"the length of a sequence: {e}", where=manifest.name) from e
        inputs, outputs = ([v.name for v in side] for side in (manifest.inputs, manifest.outputs))
        if self._text:
            inputs, outputs = self._text.inputs, self._text.outputs
        if max(self._lists.values(), default=0) > len(inputs) + len(outputs):
            raise Error("a sequence has more tensors than the model", where=manifest.name)
        pieces = {p for name in self._lists for p in self._pieces(name)}
        named = (n.rpartition("[")[0] if n in pieces else n for n in inputs)
        self.inputs = list(dict.fromkeys(named))
        """The model's inputs in order, but for sequences of no tensors."""

    def __bool__(self) -> bool:
        return bool(self._text or self._lists)

    def demand_none(self, who: str) -> None:
        """Raise Error if there are strings or sequences, which `who` does not take."""
        self.demand_no_strings(who)
        if self._lists:
            raise Error(f"{who} takes no sequences", where=f"input {next(iter(self._lists))!r}")

    def demand_no_strings(self, who: str) -> None:
        """Raise Error if there are strings, which `who` does not take."""
        if self._text is not None:
            hint = "run it by Model.run, or cut the operators on strings off"
            raise Error(f"{who} takes no model of strings", hint=hint)

    def named(self, given: Sequence[Any]) -> dict[str, Any]:
        """Inputs in order -> by name. Raises Error unless there is one for each."""
        if len(given) != len(self.inputs):
            wanted = f"{len(self.inputs)} inputs: {', '.join(self.inputs)}"
            raise Error(f"{len(given)} values for {wanted}")
        return dict(zip(self.inputs, given))

    def run(self, inputs: Mapping[str, Any], run: Run) -> dict[str, Any]:
        """The model's inputs by name, and what runs its machine code -> its outputs."""
        named_arrays(inputs, "inputs", "values in the inputs' order: model(x, y)")
        run = partial(self._text.run_with, run=run) if self._text else run
        return self._run_of_lists(inputs, run) if self._lists else run(inputs)

    def _run_of_lists(self, inputs: Mapping[str, Any], run: Run) -> dict[str, Any]:
        flat: dict[str, Any] = {n: v for n, v in inputs.items() if n not in self._lists}
        for name in self._lists:
            if name not in inputs:
                continue
            pieces = self._pieces(name)
            if twice := [p for p in pieces if p in inputs]:
                raise Error("it is an element of a sequence", where=f"input {twice[0]!r}")
            flat.update(zip(pieces, _list(name, inputs[name], len(pieces))))
        made: dict[str, Any] = dict(run(flat))
        for name in self._lists:
            pieces = self._pieces(name)
            if pieces[0] in made if pieces else name not in inputs:
                made[name] = [made.pop(p) for p in pieces]
        return made

    def _pieces(self, name: str) -> list[str]:
        """The tensors that a sequence is."""
        return [f"{name}[{i}]" for i in range(self._lists[name])]


def _list(name: str, given: Any, length: int) -> list[Any]:
    """A sequence as given, checked for its length."""
    where = f"input {name!r}"
    try:
        made = None if isinstance(given, (str, bytes, Mapping, Set)) else list(given)
    except TypeError:
        made = None
    if made is None:
        raise Error(f"{type(given).__name__} given, a list of arrays wanted", where=where)
    if len(made) != length:
        what = f"{len(made)} tensors given, {length} wanted"
        raise Error(what, where=where, hint="compile for another length")
    return made
