"""The documentation is true: what it shows runs, links lead somewhere, tables are current."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from oracles import onnxruntime_runs

from qcompiler.cli import main
from qcompiler.cli.arguments import parser
from qcompiler.demo import DATA, MODEL

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
MARKED = re.compile(r"^```(bash|python) run\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ORDER = {"quantization.md": 0}  # it makes the artifact that the other pages inspect


def test_marked_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = onnxruntime_runs(MODEL)
    shutil.copy(MODEL, tmp_path / "digits.onnx")
    with np.load(DATA) as data:
        np.savez(tmp_path / "images.npz", image=data["calibration"])
    ran = 0
    for page in sorted(PAGES, key=lambda p: (ORDER.get(p.name, 1), p.name)):
        for language, text in MARKED.findall(page.read_text()):
            monkeypatch.chdir(tmp_path)
            if language == "python":
                _run(["-c", text], tmp_path)
            for line in text.splitlines() if language == "bash" else ():
                if "compare" in line and not theirs:
                    continue
                assert main(shlex.split(line)[1:]) == 0, line
            ran += 1
    assert ran > 3


@pytest.mark.parametrize(
    "name", ["python_api", "cross_compile", pytest.param("keep_in_float", marks=pytest.mark.slow)]
)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    assert _run([str(ROOT / "examples" / f"{name}.py")], tmp_path)


def test_a_pass_and_a_device_are_taken_from_the_command_line(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        normalised (float[1, 3, 4, 4] x) => (float[1, 3, 4, 4] y) {
            mean = Constant <value = float {0.5}> ()
            deviation = Constant <value = float {0.229}> ()
            centred = Sub(x, mean)
            y = Div(centred, deviation)
        }
    """)
    onnx.save(model, tmp_path / "model.onnx")
    files = [str(ROOT / "examples" / name) for name in ("custom_pass.py", "custom_device.toml")]
    words = ["model.onnx", "--pass", files[0], "--target", files[1], "--dump", "dump", "--dry-run"]
    shown = _run(["-m", "qcompiler", "compile", *words], tmp_path)
    assert "x86_avx2, 1 threads" in shown  # of the two it has: the model is small
    folded = (tmp_path / "dump" / "1_fold.txt").read_text()
    assert "Mul(%x" in folded
    assert "Div(" not in folded


def test_every_example_is_tried() -> None:
    tried = Path(__file__).read_text()
    for example in (ROOT / "examples").iterdir():
        assert example.stem.startswith("__") or example.stem in tried


@pytest.mark.parametrize("name", ["generate_operators.py", "generate_options.py"])
def test_a_generated_page_is_current(name: str) -> None:
    script = ROOT / "docs" / name
    run = subprocess.run([sys.executable, str(script), "--check"], check=False)
    assert run.returncode == 0, f"run docs/{name}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda p: p.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """All flags of a parser and of its commands."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(*(flags_of(p) for p in action.choices.values()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_flag_that_a_page_names_exists(page: Path) -> None:
    scripts = [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "docs").glob("*.py")]
    ours = "".join(p.read_text() for p in scripts)
    known = flags_of(parser()) | set(re.findall(r'"(--[\w-]+)"', ours)) | {"--no-deps"}  # pip's
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text()))
    assert named <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(
        r"`((?:qcompiler|passes|targets|tests|examples|docs)/[\w/]+\.\w+)`", page.read_text()
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def _run(words: list[str], folder: Path) -> str:
    """What Python prints when it is started with these words; it must succeed."""
    run = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, f"{words}\n{run.stdout}\n{run.stderr}"
    return run.stdout
