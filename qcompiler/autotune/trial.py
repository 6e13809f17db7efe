"""A region and choices of its kernel -> an artifact that runs them one after the other.

Each is run as a model would run it: other memory is written before, as much as the model touches
between two runs of the step, so that its weights lie where the model leaves them. In the midst of
that, as long before the step as in the model, what it reads is written, and the memory of what it
writes is used. What is chosen without records runs first and last. The steps are timed one by one
(`Model.profile`), so drift affects all alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qcompiler.artifact.artifact import Artifact
from qcompiler.autotune.tasks import Choice
from qcompiler.emit.assemble import assemble
from qcompiler.errors import Skip
from qcompiler.hardware.isa import Device
from qcompiler.ir import Array, Graph, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.kernels.facts import sealed
from qcompiler.kernels.registry import (
    Candidate,
    Decision,
    Kernel,
    Offer,
    Region,
    asked,
    choose,
    offered,
    setting,
)
from qcompiler.ops import make
from qcompiler.plan.barriers import AFTER_ALL
from qcompiler.plan.choose import APART
from qcompiler.plan.plan import laid_out
from qcompiler.plan.regions import split
from qcompiler.tune.digest import digest

_NEAR = 1 << 16

Parts = list[tuple[Region, Decision]]
"""Kernels that compute a region, one after the other."""


@dataclass(frozen=True)
class Trial:
    """An artifact; for each choice its output's number and its steps, or why it is not in it."""

    artifact: Artifact
    places: tuple[Place | Skip | None, ...]
    """None: there are as many others as were wanted."""


@dataclass(frozen=True)
class Place:
    """Where a choice stands in an artifact."""

    output: int
    steps: tuple[int, ...]
    code: str
    """Equal for choices of the same code; these share a place."""


def decided(region: Region, device: Device, choice: Choice) -> Parts | Skip:
    """The kernels that a choice makes for a region; or why it does not."""
    if choice.generator == APART:
        parts = [(part, choose(part, device)) for part in split(region)]
        lacking = [how.kernel for _, how in parts if isinstance(how.kernel, Skip)]
        return lacking[0] if lacking else parts or Skip("it has no parts")
    handed = sealed(region, device)
    for generator in asked(handed, device):
        if (generator.name, generator.version) == (choice.generator, choice.version):
            for candidate in offered(generator, handed, device, choice.threads):
                if tuple(setting(candidate.knobs).items()) == choice.knobs:
                    return _built(region, generator.name, candidate)
    return Skip("it is not offered")


def _built(region: Region, generator: str, candidate: Candidate) -> Parts | Skip:
    made = candidate.build()
    if isinstance(made, Skip):
        return made
    return [(region, Decision(made, Offer(generator, candidate)))]


def trial(
    region: Region,
    device: Device,
    choices: Sequence[Choice],
    *,
    evicted: int = 0,
    ages: Sequence[int] = (),
    known: Sequence[str] = (),
    most: int = 0,
) -> Trial | Skip:
    """A region of a graph of its own, choices, the default first -> all of them in an artifact,
    those of code that is `known` left out, but never the default, which the others' times are
    ratios to; or, besides the default, as many of different code as are wanted at `most`. A Skip
    where the default cannot be made. `evicted` and `ages`: those of a Task.
    """
    maker = _Maker(region, device, evicted, ages)
    places: list[Place | Skip | None] = []
    for choice in choices:
        if most and len(maker.outputs) > most:
            places.append(None)
            continue
        parts = decided(region, device, choice)
        if isinstance(parts, Skip):
            places.append(parts)
            continue
        code = " + ".join(digest(how.kernel) for _, how in parts if isinstance(how.kernel, Kernel))
        same = next((p for p in places if isinstance(p, Place) and p.code == code), None)
        if same is None and places and code in known:
            same = Place(-1, (), code)
        places.append(same or maker.add(parts, code))
    first = decided(region, device, choices[0])
    if isinstance(first, Skip):
        return first
    maker.add(first, "")
    return Trial(maker.artifact(), tuple(places))


class _Maker:
    """Regions in the order they run, as it grows."""

    def __init__(self, region: Region, device: Device, evicted: int, ages: Sequence[int]) -> None:
        self.region, self.device = region, device
        self.inputs = {n: placeholder(n.name, n.type) for n in region.inputs if not n.is_constant}
        used = (*self.inputs, region.output)
        known = dict(zip(used, ages or (0,) * len(used), strict=True))
        if known[region.output] >= evicted:
            del known[region.output]  # nothing is left of that use
        self.turns = _turns(known, evicted)
        self.over: dict[int, int] = {}
        """Steps that write where another one does: the numbers of both."""
        self.made: list[tuple[Region, Decision]] = []
        self.outputs: list[Node] = []
        self.decisions: dict[str, Decision] = {}
        self.kernels: dict[str, Kernel] = {}

    def add(self, parts: Parts, code: str) -> Place:
        """The kernels of one choice, with what runs before them."""
        new: dict[Node, Node] = {n: n for n in self.region.inputs if n.is_constant}
        touch = None
        for size, node in self.turns:
            if size:
                self._alone(_written(size))
            if node in self.inputs:
                new[node] = self._fresh(self.inputs[node])
            elif node is not None:
                touch = len(self.made)
                self._alone(_written(node.type.bytes))
        first = len(self.made)
        for part, how in parts:
            copied = _copied(part, new)
            self.made.append((copied, replace(how, kernel=self._named(how))))
        if touch is not None:
            self.over[touch] = len(self.made) - 1
        self.outputs.append(new[self.region.output])
        return Place(len(self.outputs) - 1, tuple(range(first, len(self.made))), code)

    def artifact(self) -> Artifact:
        """All of them."""
        names = tuple(f"y{i}" for i in range(len(self.outputs)))
        graph = Graph(tuple(self.inputs.values()), tuple(self.outputs), names, "trial")
        plan = laid_out(graph, self.device, self.made)
        steps = list(plan.steps)
        for touch, real in self.over.items():
            steps[touch] = replace(steps[touch], output=steps[real].output)
            steps[real] = replace(steps[real], slot=AFTER_ALL)
        return assemble(replace(plan, steps=tuple(steps)))

    def _fresh(self, given: Node) -> Node:
        """An input -> the same, just written."""
        if not given.type.rank or not given.type.size:
            return given
        node = make("Transpose", given, perm=tuple(range(given.type.rank)))
        self._alone(node)
        return node

    def _alone(self, node: Node) -> None:
        """A node that is a region."""
        region = Region(node, (node,), tuple(dict.fromkeys(node.operands)), node)
        key = sealed(region, self.device).key
        if key not in self.decisions:
            self.decisions[key] = choose(region, self.device)
        how = self.decisions[key]
        self.made.append((region, replace(how, kernel=self._named(how))))

    def _named(self, how: Decision) -> Kernel:
        """A kernel under a name that no other code has."""
        assert isinstance(how.kernel, Kernel), how.kernel
        code = digest(how.kernel)
        if code not in self.kernels:
            name = f"{how.kernel.name}_{len(self.kernels)}"
            self.kernels[code] = replace(how.kernel, name=name)
        same = self.kernels[code]
        return replace(how.kernel, name=same.name)


def _turns(ages: Mapping[Node, int], evicted: int) -> list[tuple[int, Node | None]]:
    """How many bytes are written before each use of memory that the ages tell of, the oldest first,
    and before the step (None).
    """
    made: list[tuple[int, Node | None]] = []
    for node, age in sorted(ages.items(), key=lambda pair: -pair[1]):
        made.append((max(evicted - _coarse(age), 0), node))
        evicted = min(evicted, _coarse(age))
    return [*made, (evicted, None)]


def _coarse(age: int) -> int:
    """A power of two, so that few kernels write that much; little lies near the core."""
    return 0 if age < _NEAR else 1 << age.bit_length() - 1


def _written(size: int) -> Node:
    """A node that writes `size` bytes, or a few less."""
    words = np.array([max(size // 4, 1)], np.int64)
    return make("Expand", constant(np.zeros(1, np.int32)), constant(words))


def _copied(region: Region, new: dict[Node, Node]) -> Region:
    """A region with what it reads replaced; its nodes are added to the replacements."""
    for node in region.nodes:
        reads = tuple(None if i is None else new[i] for i in node.inputs)
        new[node] = Node(node.op, reads, node.attrs, node.types, node.name)
    nodes, inputs = (tuple(new[n] for n in old) for old in (region.nodes, region.inputs))
    root = None if region.root is None else new[region.root]
    return Region(root, nodes, inputs, new[region.output], least=region.least)


_ALL = 1 << 30
"""More than any number of positions."""


def values(region: Region, seed: int) -> Mapping[str, Array]:
    """Numbers for what a region reads besides constants, by name."""
    rng = np.random.default_rng(seed)
    given = {n.name: numbers(n.type, rng) for n in region.inputs if not n.is_constant}
    return given | {n.name: np.full(1, _ALL, np.int32) for n in region.extents}


def numbers(type: Type, rng: np.random.Generator) -> Array:
    """Floats around zero, bytes of all sizes; other numbers may be indices, so they are 0 or 1."""
    dtype, dims = numpy_dtype(type.dtype), type.dims
    if type.dtype in ("int8", "uint8"):
        return rng.integers(0, 256, dims).astype(np.uint8).view(dtype)
    if dtype.kind in "iub":
        return rng.integers(0, 2, dims).astype(dtype)
    return rng.standard_normal(dims).astype(dtype)
