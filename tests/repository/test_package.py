"""What is in the repository is what is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import qcompiler

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
INSIDE = {"passes": "qcompiler.passes", "targets": "qcompiler.targets"}
"""Where the two top folders are installed."""


def test_every_folder_with_python_in_it_is_a_package() -> None:
    folders = {
        path.parent.relative_to(ROOT)
        for top in ("qcompiler", *INSIDE)
        for path in (ROOT / top).rglob("*.py")
    }
    names = {
        ".".join((INSIDE.get(folder.parts[0], folder.parts[0]), *folder.parts[1:]))
        for folder in folders
    }
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == names


def test_the_version_is_the_same_everywhere() -> None:
    assert qcompiler.__version__ == PYPROJECT["project"]["version"]


def test_the_changelog_has_the_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == qcompiler.__version__


@pytest.mark.parametrize("name", ["passes", "targets"])
def test_a_top_folder_is_imported_from_inside_the_package(name: str) -> None:
    code = f"import {INSIDE[name]} as m; print(m.__file__)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True, check=True
    )
    assert Path(run.stdout.strip()).parts[-2:] == (name, "__init__.py")


def test_passes_and_targets_are_found_in_a_clone_that_is_not_what_is_installed() -> None:
    """As in the folder of the clone after `pip install .`: the folder there is imported first."""
    code = (
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
        "from qcompiler import plugins\n"
        "plugins.load_all()\n"
        "import qcompiler.passes, qcompiler.targets.x86\n"
        "print(qcompiler.passes.__file__, qcompiler.targets.x86.__file__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = [str(ROOT / f / "__init__.py") for f in ("passes", "targets/x86")]
    assert run.stdout.split() == found


def test_the_runtime_is_imported_without_the_compiler() -> None:
    code = (
        "import sys, qcompiler.runtime\n"
        "print(*sorted({m.split('.')[0] for m in sys.modules} & {'tvm', 'onnx', 'networkx'}))\n"
        "print(*sorted(m for m in sys.modules if m.startswith('qcompiler.kernels')))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []
