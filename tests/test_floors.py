"""Imports go down, never up; and the mechanism in qcompiler/ names no instruction set."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = [
    {"errors", "version"},
    {"files"},
    {"core", "products", "cpu", "dtypes", "feeds", "members"},
    {"entropy"},
    {"shrink"},
    {"ir", "isa", "artifact"},
    {"text", "ops", "refusals", "array_files"},
    {"columns", "histogram", "mentions"},
    {
        "rewrite",
        "matching",
        "layouts",
        "scales",
        "storage",
        "onnx_reader",
        "onnx_writer",
        "calibrate",
        "samples",
    },
    {"reconstruct"},
    {"rounding", "correction", "codebooks", "channels", "narrow", "recover", "sparsity"},
    {"pruning", "reopen"},
    {"kernels"},
    {"phases", "regions", "batches", "plan", "sharing"},
    {"tune", "plugins", "emit", "runtime"},
    {"stages", "timing", "agreement"},
    {"driver", "compare", "limits", "metrics", "torch_graph"},
    {"probe", "probe_core", "probe_threads"},
    {"retrain_weights"},
    {"mixture"},
    {"trial"},
    {"search", "retrain"},
    {"report"},
    {"report_html"},
    {"demo"},
    {"cli"},
]
ABOVE_NOTHING = {"runtime": {"artifact", "errors", "cpu", "dtypes", "feeds"}}
PASSES_MAY = {
    "ir",
    "ops",
    "rewrite",
    "matching",
    "layouts",
    "scales",
    "storage",
    "mentions",
    "calibrate",
    "reconstruct",
    "columns",
    "rounding",
    "correction",
    "codebooks",
    "channels",
    "narrow",
    "recover",
    "sparsity",
    "errors",
    "isa",
    "products",
    "text",
}
TARGETS_MAY = {"isa", "products", "kernels", "errors"}
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


def place(path: Path) -> str:
    """qcompiler/ops/math.py -> "ops"; a prefix word groups files (onnx_reader, onnx_opsets ->
    onnx_reader).
    """
    name = path.relative_to(ROOT / "qcompiler").parts[0].removesuffix(".py")
    return "onnx_reader" if name.startswith("onnx_") and name != "onnx_writer" else name


def floor(name: str) -> int:
    found = [i for i, names in enumerate(FLOORS) if name in names]
    assert found, f"{name} stands on no floor: give it one in {__file__}"
    return found[0]


def imports(path: Path) -> set[str]:
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
    return names


def modules_used(path: Path) -> set[str]:
    used = {n.split(".")[1] for n in imports(path) if n.startswith("qcompiler.")}
    files = {p.stem for p in (ROOT / "qcompiler").iterdir()}
    return {
        "onnx_reader" if u.startswith("onnx_") and u != "onnx_writer" else u for u in used & files
    }


def mechanism() -> list[Path]:
    files = [
        p
        for p in (ROOT / "qcompiler").rglob("*.py")
        if p.parent != ROOT / "qcompiler" or p.stem[:2] != "__"
    ]
    assert files
    return files


@pytest.mark.parametrize("path", mechanism(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_its_own_floor_or_lower_ones(path: Path) -> None:
    here = place(path)
    for used in modules_used(path) - {here}:
        assert floor(used) <= floor(here), f"{here} imports {used}, which stands above it"
        if here in ABOVE_NOTHING:
            assert used in ABOVE_NOTHING[here], f"{here} must not need {used}"


@pytest.mark.parametrize("path", mechanism(), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_kernels_emit_and_tuning_import_the_compiler(path: Path) -> None:
    if place(path) not in COMPILER:
        assert not {n for n in imports(path) if n.split(".")[0] == "tvm"}


@pytest.mark.parametrize("path", mechanism(), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_mechanism_names_no_instruction_set(path: Path) -> None:
    names = [p.stem for p in (ROOT / "targets").glob("[a-z]*.py")]
    found = re.search(rf"\b(?:{'|'.join((*names, *OF_TARGETS))})", path.read_text(), re.IGNORECASE)
    assert not found, f"{found[0]!r} belongs in targets/: ask the Isa value"


def test_passes_and_targets_import_only_what_a_newcomer_needs() -> None:
    for folder, may in (("passes", PASSES_MAY), ("targets", TARGETS_MAY)):
        for path in (ROOT / folder).glob("*.py"):
            used = {u for u in modules_used(path) if u not in ("passes", "targets")}
            assert used <= may, f"{path.name} imports {sorted(used - may)}"


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
