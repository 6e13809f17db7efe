"""The wheel qcompiler-runtime: its files; it needs only numpy and conflicts with nothing."""

from __future__ import annotations

import ast
import base64
import csv
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from runtime_wheel import ROOT, built, files, here, unpacked

MOST_BYTES = 200_000
DOORS = {
    "__init__.py": {"driver", "export.c"},
    "artifact/artifact.py": {"artifact.saving"},
    "cli/arguments.py": {"cli.compiling"},
    "cli/commands.py": {"cli.describing", "cli.exporting", "cli.making", "cli.tuning"},
    "cli/executing.py": {"cli.load_page"},
    "cli/using.py": {"cli.describing", "hardware.isa", "plugins", "tune.limits"},
    "data/samples.py": {"data.iterated", "onnx_io.tensors"},
    "dtypes.py": {"ml_dtypes"},
    "runtime/executor/ray_engine.py": {"ray"},
}
"""Where the runtime's files import what it does not hold, when that is asked for: each ends in an
Error that says what is missing, as test_numpy_only.py shows.
"""

EXTRAS = {"runtime/serve/": {"starlette", "uvicorn"}}
"""What the files of a folder may import at once: only the command that needs an extra imports them.
"""


def inside() -> dict[str, Path]:
    """Module -> file, of the wheel: "qcompiler.artifact.abi"."""
    found = {}
    for path in files():
        if path.suffix == ".py":
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


def imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported together with the file) of all that a file imports."""
    for node in tree.body:
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        at_once = not isinstance(node, (ast.FunctionDef, ast.ClassDef))
        for found in () if typing_only else ast.walk(node):
            if isinstance(found, ast.Import):
                yield from ((a.name, at_once) for a in found.names)
            elif isinstance(found, ast.ImportFrom):
                assert not found.level
                name = found.module or ""
                modules = [f"{name}.{a.name}" for a in found.names]
                known = [
                    m for m in modules if (ROOT / m.replace(".", "/")).with_suffix(".py").exists()
                ]
                yield from ((m, at_once) for m in known or [name])


def is_inside(module: str, modules: dict[str, Path]) -> bool:
    return module in modules or module.split(".")[0] in {"numpy", *sys.stdlib_module_names}


def test_its_files_import_nothing_else_but_through_known_doors() -> None:
    modules = inside()
    doors: dict[str, set[str]] = {}
    for path in modules.values():
        for module, at_once in imports(ast.parse(path.read_text())):
            if is_inside(module, modules):
                continue
            name = path.relative_to(ROOT / "qcompiler").as_posix()
            if any(name.startswith(f) and module.split(".")[0] in e for f, e in EXTRAS.items()):
                continue
            assert not at_once, f"{name} imports {module}, which the runtime alone does not hold"
            doors.setdefault(name, set()).add(module.removeprefix("qcompiler."))
    assert doors == DOORS


def test_the_wheel_is_small_and_asks_for_numpy_only() -> None:
    assert built().stat().st_size < MOST_BYTES
    with zipfile.ZipFile(built()) as wheel:
        facts = next(n for n in wheel.namelist() if n.endswith("/METADATA"))
        told = wheel.read(facts).decode().splitlines()
    assert [line for line in told if line.startswith("Requires-Dist: ")] == [
        "Requires-Dist: numpy>=1.22"
    ]
    assert "Requires-Python: >=3.9" in told


def test_the_wheel_lists_its_files_and_their_hashes() -> None:
    with zipfile.ZipFile(built()) as wheel:
        names = set(wheel.namelist())
        record = next(n for n in names if n.endswith("/RECORD"))
        rows = list(csv.reader(wheel.read(record).decode().splitlines()))
        assert {path for path, _, _ in rows} == names
        for path, digest, size in rows:
            data = wheel.read(path)
            if path != record:
                made = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
                assert (digest, size) == (f"sha256={made.decode()}", str(len(data)))


def test_the_wheel_is_made_alike_every_time(tmp_path: Path) -> None:
    assert here("backend").build_wheel(str(tmp_path)) == built().name
    assert (tmp_path / built().name).read_bytes() == built().read_bytes()


NEWER = {"pairwise", "slots", "kw_only", "strict", "batched", "EllipsisType", "stdlib_module_names"}
"""Names that Python has since 3.10."""


@pytest.mark.parametrize("path", [*files(), ROOT / "runtime/shim.py"], ids=lambda p: p.name)
def test_its_files_are_python_3_9(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    used |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.keyword) and n.arg}
    used |= {n.name for n in ast.walk(tree) if isinstance(n, ast.alias)}
    assert not used & NEWER
    assert not [n for n in ast.walk(tree) if type(n).__name__ == "Match"]


def _asked(code: str, *folders: Path) -> str:
    """What a Python says that sees these folders, and nothing that is installed."""
    program = [
        sys.executable,
        "-S",
        "-c",
        f"import sys; sys.path[:0] = {list(map(str, folders))}\n{code}",
    ]
    return subprocess.run(
        program, capture_output=True, text=True, check=True, cwd="/"
    ).stdout.strip()


NUMPY = Path(np.__file__).parents[1]
WHERE = "import qcompiler; print(qcompiler.__path__[0])"


def test_the_compiler_goes_before_it_where_both_are_installed(tmp_path: Path) -> None:
    alone = unpacked(tmp_path)
    assert _asked(WHERE, alone, NUMPY) == str(alone / "_qcompiler")
    (alone / "qcompiler").mkdir()
    (alone / "qcompiler" / "__init__.py").write_text("")
    assert _asked(WHERE, alone, NUMPY) == str(alone / "qcompiler")


def test_an_editable_compiler_goes_before_it(tmp_path: Path) -> None:
    finder = (
        "from importlib.util import spec_from_file_location\n"
        "class Editable:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        places = [{str(ROOT / 'qcompiler')!r}]\n"
        "        if name == 'qcompiler':\n"
        "            init = places[0] + '/__init__.py'\n"
        "            return spec_from_file_location(\n"
        "                name, init, submodule_search_locations=places\n"
        "            )\n"
        "sys.meta_path.append(Editable)\n"
    )
    code = f"{finder}{WHERE}; from qcompiler.files import size; print(size(7))"
    assert _asked(code, unpacked(tmp_path), NUMPY).split("\n") == [str(ROOT / "qcompiler"), "7 B"]


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    run = "import runpy; sys.argv = ['', '--help']; runpy.run_module('qcompiler', None, '__main__')"
    assert "qcompiler" in _asked(run, unpacked(tmp_path), NUMPY)
