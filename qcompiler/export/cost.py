"""Plan and code -> RAM and flash, by layer.

RAM of a layer is the workspace in use while it runs: its inputs and outputs, its scratch memory,
and every value kept for a later layer, without the caller's own arrays. Flash of a layer is its
weights and its kernel's code. What several layers share counts for the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qcompiler.errors import Error
from qcompiler.files import size
from qcompiler.plan.places import Place, room
from qcompiler.plan.plan import Plan


@dataclass(frozen=True)
class Layer:
    """Bytes of one step; None where the plan is unknown."""

    name: str
    kernel: str
    ram: int | None
    weights: int | None
    code: int


@dataclass(frozen=True)
class Cost:
    """Bytes of a model. `arrays`: the caller's inputs and outputs; `weights`: in flash or file."""

    workspace: int
    arrays: int
    code: int
    weights: int
    in_file: bool
    layers: tuple[Layer, ...]

    @property
    def ram(self) -> int:
        """Workspace, inputs and outputs."""
        return self.workspace + self.arrays

    @property
    def flash(self) -> int:
        """Code and weights, even if these are in a file."""
        return self.code + self.weights

    @property
    def facts(self) -> dict[str, object]:
        """The same as JSON."""
        return {
            "ram_bytes": self.ram,
            "workspace_bytes": self.workspace,
            "array_bytes": self.arrays,
            "flash_bytes": self.flash,
            "code_bytes": self.code,
            "weights_bytes": self.weights,
            "layers": [
                {
                    "name": x.name,
                    "kernel": x.kernel,
                    "ram_bytes": x.ram,
                    "weights_bytes": x.weights,
                    "code_bytes": x.code,
                }
                for x in self.layers
            ],
        }


def layers(plan: Plan, code: Mapping[str, int]) -> tuple[Layer, ...]:
    """A plan, and the size of each function -> the bytes of each step."""
    held = _held(plan)
    seen: set[object] = set()
    found = []
    for step, ram in zip(plan.steps, held, strict=True):
        weights = 0
        for place in step.operands:
            if place.space == "weights" and place not in seen:
                seen.add(place)
                weights += room(place.bytes)
        kernel = step.kernel.name
        own = 0 if kernel in seen else _code(kernel, code)
        seen.add(kernel)
        found.append(Layer(step.name, kernel, ram, weights, own))
    return tuple(found)


def of_code(steps: Sequence[tuple[str, str]], code: Mapping[str, int]) -> tuple[Layer, ...]:
    """(step, kernel) of an artifact, size of each function -> what is known of each step."""
    first = {kernel: i for i, (_, kernel) in reversed(list(enumerate(steps)))}
    return tuple(
        Layer(name, kernel, None, None, _code(kernel, code) if first[kernel] == i else 0)
        for i, (name, kernel) in enumerate(steps)
    )


def _code(kernel: str, sizes: Mapping[str, int]) -> int:
    """Size of a kernel, which is a function or one for each of its phases."""
    phase = re.compile(re.escape(kernel) + r"(_phase\d+)?")
    return sum(size for name, size in sizes.items() if phase.fullmatch(name))


def _held(plan: Plan) -> list[int]:
    """Bytes of the workspace in use at every step."""
    steps = plan.steps
    held = [0] * len(steps)
    writers: dict[Place, int] = {}
    spans: list[tuple[Place, int, int]] = []
    for i, step in enumerate(steps):
        for place in step.operands:
            if place in writers:
                spans.append((place, writers[place], i))
        for place in step.writes:
            if place.space == "workspace":
                writers[place] = i
                spans.append((place, i, i))
    last: dict[tuple[Place, int], int] = {}
    for place, first, end in spans:
        last[place, first] = max(end, last.get((place, first), first))
    for i in range(len(steps)):
        alive = {place for (place, first), end in last.items() if first <= i <= end}
        held[i] = sum(room(place.bytes) for place in alive)
    return held


def demand(cost: Cost, ram: int, flash: int) -> None:
    """Raise Error, with the numbers, where a budget is exceeded; 0: no budget."""
    over = []
    if ram and cost.ram > ram:
        over.append(
            f"RAM {cost.ram} bytes of {ram} (workspace {cost.workspace}, inputs and outputs "
            f"{cost.arrays}; {_largest(cost.layers, 'ram')})"
        )
    if flash and cost.flash > flash:
        over.append(
            f"flash {cost.flash} bytes of {flash} (code {cost.code}, weights {cost.weights}; "
            f"{_largest(cost.layers, 'flash')})"
        )
    if over:
        hint = (
            "int8 takes a quarter of float32's, --compress keeps the weights of float convolutions "
            "as few as they are, --prune takes channels away"
        )
        raise Error(f"it does not fit: {'; '.join(over)}", where="budget", hint=hint)


def _largest(found: Sequence[Layer], what: str) -> str:
    def value(x: Layer) -> int:
        return (x.ram or 0) if what == "ram" else (x.weights or 0) + x.code

    most = max(found, key=value, default=None)
    if most is None or not value(most):
        return "no layer's share is known"
    return f"the most, {value(most)}, for {most.name}"


def table(cost: Cost) -> str:
    """The cost as lines of text."""
    rows = [("layer", "RAM", "weights", "code", "kernel")]
    for x in cost.layers:
        ram, weights = ("?" if v is None else str(v) for v in (x.ram, x.weights))
        rows.append((x.name, ram, weights, str(x.code), x.kernel))
    widths = [max(len(r[i]) for r in rows) for i in range(4)]
    lines = [
        "  ".join([r[0].ljust(widths[0]), *(r[i].rjust(widths[i]) for i in (1, 2, 3)), r[4]])
        for r in rows
    ]
    kept = "a file" if cost.in_file else "the object"
    return "\n".join(
        [
            *lines,
            f"RAM {cost.ram} bytes ({size(cost.ram)}): workspace {cost.workspace}, "
            f"inputs and outputs {cost.arrays}",
            f"flash {cost.flash} bytes ({size(cost.flash)}): code {cost.code}, "
            f"weights {cost.weights} in {kept}",
        ]
    )
