"""Golden cases of every rule and pass: tests/passes/<folder>/<file of the pass>.txt.

A file names the passes to run, followed by cases after lines of `===`: a title, the input graph's
text, `->`, and the expected one; or `left alone: why`, the reason given by --explain. Options of
the pass may follow the title: `with max_bytes=16`. Types and attributes may be omitted; a constant
`#name` is filled with seeded random numbers. Each case checks the text, that results on random
inputs stay the same, and that running the passes again changes nothing.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import qcompiler.passes

from qcompiler import ops, plugins, stages
from qcompiler.hardware.isa import Cpu, Isa
from qcompiler.hardware.products import VectorMac
from qcompiler.ir import Array, Attr, Graph, Type, numpy_dtype, text
from qcompiler.rewrite import PASSES, Rule, rewrite

FOLDER = Path(__file__).parents[0]
OURS = ("fold", "fuse", "layout")


@dataclass(frozen=True)
class Case:
    """One graph before and after."""

    file: str
    title: str
    options: str
    before: str
    after: str | None
    reason: str = ""

    @property
    def passes(self) -> list[str]:
        """`fold_scale, fold_bias` in a file's first line names several that work together."""
        return _names(self.file)


def _file(path: Path) -> str:
    """The path of a pass or of its cases -> "fold/bias"."""
    return f"{path.parent.name}/{path.stem}"


@cache
def _names(file: str) -> list[str]:
    first = (FOLDER / f"{file}.txt").read_text().splitlines()[0]
    assert first.startswith("passes: "), f"{file}.txt starts with the passes it tests"
    return [n.strip() for n in first.removeprefix("passes: ").split(",")]


def cases() -> list[Case]:
    """All cases of all files."""
    found = []
    for path in sorted(FOLDER.rglob("*.txt")):
        for block in re.split(r"(?m)^===+\n", path.read_text())[1:]:
            head, _, rest = block.partition("\nbefore\n")
            assert rest, f"{path.name}: no `before` in {head!r}"
            title, _, options = head.strip().partition("\nwith ")
            before, arrow, after = rest.partition("\n->\n")
            if not arrow:
                before, alone, reason = rest.partition("\nleft alone")
                assert alone, f"{path.name}, {title}: neither `->` nor `left alone`"
                found.append(Case(_file(path), title, options, before, None, reason.strip(": \n")))
            else:
                found.append(Case(_file(path), title, options, before, after))
    return found


CASES = cases()


def read(source: str, arrays: dict[str, Array] | None = None) -> Graph:
    """Text -> graph; a #constant is the array in `arrays`, or random numbers."""
    random = np.random.default_rng(0)

    def fill(name: str, type: Type) -> Array:
        if arrays is not None and name in arrays:
            return arrays[name]
        return sample(random, type)

    return text.read(source, fill, ops.make)


def sample(random: np.random.Generator, type: Type) -> Array:
    """Random numbers of a type: all bytes, small integers, floats around zero."""
    dtype = numpy_dtype(type.dtype)
    if dtype.kind == "b":
        return np.asarray(random.random(type.dims) < 0.5)
    if dtype.kind in "iu":
        wide = dtype.itemsize > 1
        low, high = (-9, 9) if wide else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        return random.integers(max(low, np.iinfo(dtype).min), high, type.dims).astype(dtype)
    return random.standard_normal(type.dims).astype(dtype)


DEVICES = {
    "u8_only": VectorMac(("u8", "i8", "i32"), 16, 4, lambda *a: a),
    "i8_only": VectorMac(("i8", "i8", "i32"), 16, 4, lambda *a: a),
}


def run(case: Case, graph: Graph, explain: list[str] | None = None) -> Graph:
    """The case's passes, until nothing changes."""
    plugins.load_passes()

    def report(name: str, node: object, reason: str) -> None:
        if explain is not None:
            explain.append(reason)

    options = case.options
    device = None
    if match := re.search(r"device=(\w+)", options):
        isa = Isa(match[1], "", (), frozenset(), 32, 64, (DEVICES[match[1]],))
        device = Cpu(match[1], isa, 1)
        options = options.replace(match[0], "").strip(" ,")
    rules = [p for n in case.passes if isinstance(p := PASSES[n], Rule)]
    others = [n for n in case.passes if not isinstance(PASSES[n], Rule)]
    while True:
        before = graph
        graph = rewrite(graph, rules, report)
        for name in others:
            given = stages.parse(f"{name}{{{options}}}")[1]
            graph = stages.build(name, given, device, report)(graph)
        if graph is before:
            return graph


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.file}: {c.title}")
def test_a_pass_makes_of_a_graph_what_its_case_says(case: Case) -> None:
    graph = read(case.before)
    explained: list[str] = []
    made = run(case, graph, explained)
    if case.after is None:
        assert made is graph
        assert not case.reason or case.reason in explained
        return
    wanted = read(case.after, text.write(made)[1])
    assert anonymous(made) == anonymous(wanted)
    same_meaning(graph, made)
    assert run(case, made) is made, "twice is not once"


def anonymous(graph: Graph) -> list[str]:
    """A graph's nodes, one per line, numbered: what each computes from which inputs."""
    numbers = {n: i for i, n in enumerate(graph.nodes)}
    lines = []
    for node in graph.nodes:
        inputs = ", ".join("_" if i is None else f"%{numbers[i]}" for i in node.inputs)
        small = not node.is_constant or node.array.size <= text.INLINE_ELEMENTS
        attrs = {k: short(v) for k, v in sorted(node.attrs.items()) if small}
        types = ", ".join(map(str, node.types))
        lines.append(f"%{numbers[node]}: {types} = {node.op}({inputs}) {attrs}")
    return [
        *lines,
        *(
            f"return {n}=%{numbers[o]}"
            for n, o in zip(graph.output_names, graph.outputs, strict=True)
        ),
    ]


def short(value: Attr) -> str:
    """An attribute or a constant's elements, floats to six digits."""
    if isinstance(value, np.ndarray):
        return short(tuple(value.ravel().tolist()))
    if isinstance(value, tuple):
        return f"[{', '.join(map(short, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def same_meaning(before: Graph, after: Graph, tolerance: float = 1e-5) -> None:
    """Both graphs agree on random inputs: integers exactly, floats nearly."""
    random = np.random.default_rng(1)
    inputs = {i.name: sample(random, i.type) for i in before.inputs}
    wanted, made = ops.evaluate(before, inputs), ops.evaluate(after, inputs)
    for name, array in wanted.items():
        assert array.shape == made[name].shape
        assert array.dtype == made[name].dtype
        if array.dtype.kind in "biu":
            np.testing.assert_array_equal(made[name], array)
        else:
            scale = float(np.abs(array.astype(np.float64)).max(initial=1e-30))
            np.testing.assert_allclose(
                made[name].astype(np.float64),
                array.astype(np.float64),
                rtol=tolerance,
                atol=tolerance * scale,
            )


def test_every_pass_has_a_golden_case() -> None:
    plugins.load_passes()
    ours = {n for n in PASSES if stages.stage_of(n) in OURS}
    tested = {n for path in FOLDER.rglob("*.txt") for n in _names(_file(path))}
    assert ours <= tested, f"no case for {sorted(ours - tested)}"


def reasons() -> list[tuple[str, str]]:
    """Every (file, Skip reason) in our passes, with {...} as .*."""
    found = []
    folder = Path(qcompiler.passes.__path__[0])
    for path in sorted(folder.rglob("*.py")):
        if path.parent.name not in OURS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Skip":
                given = node.args[0]
                parts = given.values if isinstance(given, ast.JoinedStr) else [given]
                constants = (p.value if isinstance(p, ast.Constant) else None for p in parts)
                pattern = "".join(".*" if c is None else re.escape(str(c)) for c in constants)
                found.append((_file(path), pattern))
    return sorted(set(found))


@pytest.mark.parametrize(("file", "reason"), reasons())
def test_every_reason_to_leave_something_alone_has_a_case(file: str, reason: str) -> None:
    given = [c.reason for c in CASES if c.file == file and c.after is None]
    assert any(re.fullmatch(reason, g) for g in given)
