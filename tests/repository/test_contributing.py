"""CONTRIBUTING's examples are real: each file is dropped into a copy of the package and found."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"^```(python|toml|bash)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
FILES = {
    match[1]: text for _, text in BLOCKS if (match := re.match(r"# ([\w/]+\.(?:py|toml))\n", text))
}


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The package as a wheel installs it, with the bytecode that Python has made so far, in a
    folder that nothing else uses.
    """
    unfinished = shutil.ignore_patterns("*.pyc.*")  # written by another process at this moment
    shutil.copytree(ROOT / "qcompiler", tmp_path / "qcompiler", ignore=unfinished)
    for top in ("passes", "targets"):
        shutil.copytree(ROOT / top, tmp_path / "qcompiler" / top, ignore=unfinished)
    return tmp_path


def test_an_operator_a_pass_and_a_device_each_touch_one_file(installed: Path) -> None:
    assert [Path(name).parts[0] for name in FILES] == ["qcompiler", "passes", "targets"]
    for name, text in FILES.items():
        inside = name if name.startswith("qcompiler/") else f"qcompiler/{name}"
        assert not (installed / inside).exists(), "an example must not be there already"
        (installed / inside).write_text(text)
    shown = "".join(_run(installed, language, text) for language, text in BLOCKS)
    assert "float32[3]" in shown
    assert "soft_cap" in shown


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".py")])
def test_an_example_is_in_style(name: str, tmp_path: Path) -> None:
    file = tmp_path / Path(name).name
    file.write_text(FILES[name].split("\n", 1)[1])
    config = ["--config", str(ROOT / "pyproject.toml"), str(file)]
    for command in (["format", "--check"], ["check"]):
        run = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *config],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr


def _run(folder: Path, language: str, text: str) -> str:
    """What a block that is not a file prints."""
    commands = [[sys.executable, "-c", text]] if language == "python" else []
    if language == "bash":
        lines = [line for line in text.splitlines() if line.startswith("qcompiler ")]
        commands = [[sys.executable, "-m", *shlex.split(line)] for line in lines]
    if any(text == file for file in FILES.values()):
        commands = []
    printed = ""
    for command in commands:
        run = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
        printed += run.stdout
    return printed
