"""README's commands and Python run as they are written."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from oracles import onnxruntime_runs

from qcompiler.cli import main
from qcompiler.demo import MODEL
from qcompiler.emit.link import linker
from qcompiler.errors import Error

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
    if line and not line.startswith("#")
]
IN_C = README.split("## In C\n")[1].split("\n## ")[0]


def test_the_two_commands_are_there() -> None:
    install, test = COMMANDS[:2]
    assert install.endswith("pip install . && qcompiler demo")
    assert test == "pip install -e '.[test]' && pytest"


def test_everything_that_is_shown_runs_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python in processes of its own; commands in this one, which has loaded the compiler."""
    monkeypatch.chdir(tmp_path)
    theirs = onnxruntime_runs(MODEL)
    for language, text in BLOCKS:
        if text in IN_C:
            continue  # the next test's
        if language == "python":
            _run([sys.executable, "-c", text], tmp_path)
        for line in text.splitlines():
            wanted = (theirs or "compare" not in line) and (_links() or "raspberry_pi" not in line)
            if line.startswith("qcompiler ") and wanted:
                assert main(shlex.split(line)[1:]) == 0, line


def test_the_program_in_c_runs_in_a_clone(tmp_path: Path) -> None:
    """The section's lines, after those that make the model and its images."""
    if shutil.which("cc") is None:
        pytest.skip("no cc here")
    lines = [line for line in IN_C.split("```")[1].splitlines()[1:] if not line.startswith("#")]
    files = next(text for language, text in BLOCKS if language == "python" and "savez" in text)
    _run([sys.executable, "-c", files], tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    export, *others = lines
    _run([sys.executable, "-m", *shlex.split(export)], tmp_path)
    for line in others:
        words = shlex.split(line, comments=True)
        _run([sys.executable if words[0] == "python3" else words[0], *words[1:]], tmp_path)
    assert len(lines) < 5


def _links() -> bool:
    """Whether there is a linker for 64-bit ARM here."""
    try:
        return bool(linker("aarch64-unknown-linux-gnu"))
    except Error:
        return False


def test_every_command_is_shown() -> None:
    from qcompiler.cli.arguments import parser

    usage = parser().format_help()
    commands = re.findall(r"^    (\w+)  ", usage, re.MULTILINE)
    assert {"compile", "run", "demo"} <= set(commands)
    assert {c for c in commands if f"qcompiler {c}" not in README} == set()


def test_every_path_that_is_linked_exists() -> None:
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


def _run(command: list[str], folder: Path) -> None:
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
