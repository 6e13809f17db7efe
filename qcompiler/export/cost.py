"""Steps and code -> RAM and flash, by layer.

RAM of a layer is the workspace in use while it runs, without the caller's own arrays. Flash of a
layer is its weights and its kernel's code. What several layers share counts for the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qcompiler.errors import Error
from qcompiler.files import size


@dataclass(frozen=True)
class Known:
    """A step, its kernel, and its bytes of RAM and weights; None in an artifact that an earlier
    version has made.
    """

    name: str
    kernel: str
    ram: int | None
    weights: int | None


@dataclass(frozen=True)
class Layer:
    """Bytes of one step; None where they are not known."""

    name: str
    kernel: str
    ram: int | None
    weights: int | None
    code: int


@dataclass(frozen=True)
class Cost:
    """Bytes of a model. `arrays`: the caller's inputs and outputs; `weights`: in flash or file;
    `stack`: the most that a run takes, None where that is not known.
    """

    workspace: int
    arrays: int
    code: int
    weights: int
    in_file: bool
    layers: tuple[Layer, ...]
    stack: int | None = None

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
            "stack_bytes": self.stack,
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


def layers(steps: Sequence[Known], code: Mapping[str, int]) -> tuple[Layer, ...]:
    """Steps, and the size of each function -> the bytes of each step."""
    seen: set[str] = set()
    found = []
    for step in steps:
        own = 0 if step.kernel in seen else _code(step.kernel, code)
        seen.add(step.kernel)
        found.append(Layer(step.name, step.kernel, step.ram, step.weights, own))
    return tuple(found)


def _code(kernel: str, sizes: Mapping[str, int]) -> int:
    """Size of a kernel, which is a function or one for each of its phases."""
    phase = re.compile(re.escape(kernel) + r"(_phase\d+)?")
    return sum(size for name, size in sizes.items() if phase.fullmatch(name))


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
    stack = "an unknown number of" if cost.stack is None else f"at most {cost.stack}"
    return "\n".join(
        [
            *lines,
            f"RAM {cost.ram} bytes ({size(cost.ram)}): workspace {cost.workspace}, "
            f"inputs and outputs {cost.arrays}",
            f"flash {cost.flash} bytes ({size(cost.flash)}): code {cost.code}, "
            f"weights {cost.weights} in {kept}",
            f"stack {stack} bytes, besides",
        ]
    )
