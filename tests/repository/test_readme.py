"""README's commands and Python run as they are written."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from oracles import onnxruntime_runs

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


def test_the_two_commands_are_there() -> None:
    install, test = COMMANDS[:2]
    assert install.endswith("pip install . && qcompiler demo")
    assert test == "pip install -e '.[test]' && pytest"


def test_everything_that_is_shown_runs_in_its_order(tmp_path: Path) -> None:
    theirs = onnxruntime_runs(MODEL)
    for language, text in BLOCKS:
        if language == "python":
            _run([sys.executable, "-c", text], tmp_path)
        for line in text.splitlines():
            wanted = (theirs or "compare" not in line) and (_links() or "raspberry_pi" not in line)
            if line.startswith("qcompiler ") and wanted:
                _run([sys.executable, "-m", *shlex.split(line)], tmp_path)


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
