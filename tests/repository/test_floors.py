"""Imports go down, never up; and the mechanism in qcompiler/ names no instruction set.

`pytest tests/repository/test_floors.py --update-golden` prints the floors into CONTRIBUTING.md.
"""

import ast
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[2]

FLOORS = (
    ("cli",),
    ("quality", "training", "demo", "export", "autotune"),
    ("driver",),
    ("stages", "tune"),
    ("pruning", "quantization", "data"),
    ("emit",),
    ("plan",),
    ("kernels",),
    ("onnx_io", "rewrite"),
    ("ops", "plugins", "runtime"),
    ("ir", "hardware", "artifact"),
    ("options", "errors", "files", "dtypes", "version"),
)
"""The rooms of qcompiler/ (a folder, or a file at its top), the highest first: what stands in a row
imports from its own row and from those below, and never in a circle.
"""
MAY = {
    "runtime": {"artifact", "hardware", "dtypes", "errors", "files", "options", "version"},
    "passes": {"ir", "ops", "rewrite", "data", "quantization", "pruning", "hardware", "errors"},
    "targets": {"hardware", "kernels", "errors"},
}
"""What these may import, and nothing else: a runtime needs no compiler, a newcomer few rooms."""
OF_TARGETS = (
    r"amx",
    r"avx",
    r"sse\d",
    r"vnni",
    r"vp?dp",
    r"tdp",
    r"neon",
    r"sve\d?\b",
    r"sme\d?\b",
    r"[su]dot\b",
    r"[su]mmla\b",
    r"[xyz]mm",
    r"arch_prctl",
    r"_?xfeature",
    r"xsave",
    r"xcomp",
    r"cpuid",
    r"sapphire",
    r"golden.cove",
)
"""How words begin that only targets/ may say: not in code, comments nor docstrings."""
COMPILER = {"kernels", "emit", "tune"}
"""Rooms that import TVM's compiler."""
MOST_ROOMS, MOST_FLOORS = 30, 12
BEGIN, END = "<!-- floors: printed by tests/repository/test_floors.py -->", "<!-- end of floors -->"


def place(path: Path) -> str:
    """qcompiler/ops/math.py -> "ops", qcompiler/files.py -> "files"."""
    return path.relative_to(ROOT / "qcompiler").parts[0].removesuffix(".py")


def floor(name: str) -> int:
    """The number of a room's row, counted from the top."""
    found = [i for i, names in enumerate(FLOORS) if name in names]
    assert found, f"{name} stands on no floor: give it one in {__file__}"
    return found[0]


@cache
def imports(path: Path) -> frozenset[str]:
    """The qcompiler modules that a file imports at run time, anywhere in it."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(n)
        for i in ast.walk(tree)
        if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.unparse(i.test)
        for n in ast.walk(i)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{a.name}" for a in node.names)
        elif isinstance(node, ast.Import):
            names.update(a.name for a in node.names)
    return frozenset(names)


def rooms_used(path: Path) -> set[str]:
    """The rooms that a file imports from."""
    used = {n.split(".")[1] for n in imports(path) if n.startswith("qcompiler.")}
    return used & {p.stem for p in (ROOT / "qcompiler").iterdir()}


def mechanism() -> list[Path]:
    """Every file of qcompiler/ but its `__init__` and `__main__`."""
    files = [
        p
        for p in (ROOT / "qcompiler").rglob("*.py")
        if p.parent != ROOT / "qcompiler" or p.stem[:2] != "__"
    ]
    assert files
    return files


def printed() -> str:
    """The floors, the highest first, as CONTRIBUTING shows them."""
    rows = [" ".join(names) for names in FLOORS]
    beside = {
        floor("pruning"): "passes",
        floor("kernels"): "targets",
        floor("runtime"): "runtime",
    }
    ranked = sorted(MAY["passes"] | MAY["runtime"] | MAY["targets"], key=lambda n: (floor(n), n))
    for row, name in beside.items():
        may = ", ".join(n for n in ranked if n in MAY[name])
        rows[row] = f"{rows[row]:<29} {name}/ may import: {may}"
    return "\n".join(("```", *rows, "```"))


def test_a_module_imports_its_own_floor_or_lower_ones() -> None:
    for path in mechanism():
        here, name = place(path), path.relative_to(ROOT)
        for used in rooms_used(path) - {here}:
            assert floor(used) >= floor(here), f"{name} imports {used}, which stands above it"
            assert used in MAY.get(here, {used}), f"{name} must not need {used}"


def test_the_house_can_be_overlooked() -> None:
    top = (ROOT / "qcompiler").iterdir()
    standing = {p.stem for p in top if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert len(standing) <= MOST_ROOMS
    assert len(FLOORS) <= MOST_FLOORS
    assert {n for row in FLOORS for n in row} == standing - {"__init__", "__main__"}


@pytest.mark.parametrize(
    "folder", ["qcompiler", "qcompiler/kernels/cpu", "qcompiler/kernels/gpu", "passes", "targets"]
)
def test_rooms_import_each_other_in_no_circle(folder: str) -> None:
    arrows: nx.DiGraph[str] = nx.DiGraph()
    inside = "qcompiler." + "".join(f"{p}." for p in folder.split("/") if p != "qcompiler")
    for path in (ROOT / folder).rglob("*.py"):
        here = path.relative_to(ROOT / folder).parts[0].removesuffix(".py")
        used = {n.removeprefix(inside).split(".")[0] for n in imports(path) if n.startswith(inside)}
        rooms = {
            u for u in used if (ROOT / folder / u).is_dir() or (ROOT / folder / f"{u}.py").exists()
        }
        arrows.add_edges_from((here, u) for u in rooms - {here})
    assert list(nx.simple_cycles(arrows)) == []


def test_contributing_shows_the_floors(request: pytest.FixtureRequest) -> None:
    page = ROOT / "CONTRIBUTING.md"
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin
    assert end
    wanted = f"{before}{BEGIN}\n{printed()}\n{END}{after}"
    if request.config.getoption("--update-golden"):
        page.write_text(wanted)
        return
    assert text == wanted, "print them: pytest tests/repository/test_floors.py --update-golden"


def test_only_kernels_emit_and_tuning_import_the_compiler() -> None:
    users = {p for p in mechanism() if any(n.split(".")[0] == "tvm" for n in imports(p))}
    assert not {p.relative_to(ROOT) for p in users if place(p) not in COMPILER}


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("stages.run_stage", set()),
        ("emit.assemble.assemble", {"autotune"}),  # of kernels by themselves
        ("plan.sharing.planned", {"plan"}),
        ("plan.plan.plan", {"plan"}),
    ],
)
def test_only_the_driver_runs_the_pipeline(name: str, others: set[str]) -> None:
    users = {place(p) for p in mechanism() if f"qcompiler.{name}" in imports(p)}
    assert users, "it has another name"
    assert users <= {"driver", *others}, "every form of a model comes from a Compilation"


def test_the_mechanism_names_no_instruction_set() -> None:
    names = [p.stem for p in python_files("targets")]
    word = re.compile(rf"\b(?:{'|'.join((*names, *OF_TARGETS))})", re.IGNORECASE)
    found = {p.relative_to(ROOT): m[0] for p in mechanism() if (m := word.search(p.read_text()))}
    assert not found, "this belongs in targets/: ask the Isa value"


def python_files(folder: str) -> Iterable[Path]:
    """The files of passes/ or targets/ that are in a room of it."""
    found = sorted(p for p in (ROOT / folder).glob("*/*.py") if p.stem != "__init__")
    assert found
    return found


@pytest.mark.parametrize("folder", ["passes", "targets"])
def test_passes_and_targets_import_only_what_a_newcomer_needs(folder: str) -> None:
    for path in python_files(folder):
        used = rooms_used(path) - {"passes", "targets"}
        assert used <= MAY[folder], f"{path.name} imports {sorted(used - MAY[folder])}"


def test_the_mechanism_never_imports_passes_or_targets() -> None:
    for path in mechanism():
        if path.stem == "plugins":
            continue
        wanted = {
            n
            for n in imports(path)
            if re.match(r"qcompiler\.(passes|targets)\b|(passes|targets)\b", n)
        }
        assert not wanted, f"{path} imports {wanted}"
