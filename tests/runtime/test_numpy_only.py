"""Running artifacts needs numpy and nothing else; what needs more says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper
from runtime_wheel import unpacked

from qcompiler import compile, load

ROOT = Path(__file__).parents[2]

BARE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in ("qcompiler", "numpy", *sys.stdlib_module_names):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
"""A Python that has numpy only."""


@pytest.fixture(scope="module", params=["all of qcompiler", "the runtime alone"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `import qcompiler` finds it."""
    if request.param == "all of qcompiler":
        return ROOT
    return unpacked(tmp_path_factory.mktemp("alone"))


def model(dtype: int = 1) -> object:
    weights = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=1),
        helper.make_node("MatMul", ["f", "w"], ["p"]),
        helper.make_node("Cast", ["p"], ["y"], to=dtype),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", dtype, [2, 8])],
        [helper.make_tensor_value_info("y", dtype, [2, 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("numpy_only")
    data = {"x": np.random.default_rng(1).standard_normal((8, 2, 8)).astype(np.float32)}
    compile(model()).save(folder / "float32.qc")
    compile(model(), precision="int8", calibration=data).save(folder / "int8.qc")
    compile(model(), precision="bfloat16").save(folder / "bfloat16.qc")
    compile(model(16)).save(folder / "inputs_of_bfloat16.qc")
    np.savez(folder / "data.npz", x=data["x"][0])
    (folder / "model.onnx").write_bytes(model().SerializeToString())  # type: ignore[attr-defined]
    return folder


RUN = """
import contextlib, io, json
from qcompiler.cli import main

def run(words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return code, out.getvalue(), err.getvalue()

print(json.dumps([run(words) for words in json.loads(sys.argv[1])]))
"""

Said = tuple[int, str, str]
"""Exit code, stdout, stderr."""


def bare(place: Path, code: str, *words: str) -> str:
    """What a program says in such a Python."""
    given = [sys.executable, "-c", BARE + code, *words]
    if place != ROOT:  # no site-packages, where an editable qcompiler would go first
        seen = f"import sys; sys.path[:0] = {[str(place), str(Path(np.__file__).parents[1])]}\n"
        given = [sys.executable, "-S", "-c", seen + BARE + code, *words]
    return subprocess.run(given, capture_output=True, text=True, check=True, cwd="/").stdout


def commands(place: Path, *given: list[object]) -> list[Said]:
    """Several commands, one after the other in one process."""
    found = json.loads(bare(place, RUN, json.dumps([[str(w) for w in words] for words in given])))
    return [(code, out, err) for code, out, err in found]


@pytest.mark.parametrize("precision", ["float32", "int8", "bfloat16"])
def test_artifacts_run_with_numpy_only(place: Path, folder: Path, precision: str) -> None:
    artifact, data, out = folder / f"{precision}.qc", folder / "data.npz", folder / "out.npz"
    few = ["bench", artifact, "--iterations", 3]
    told: list[list[object]] = [
        ["run", artifact, "--inputs", data, "--outputs", out],
        ["run", artifact],
        few,
        [*few, "--per-step"],
        ["inspect", artifact, "--plan"],
    ]
    told += [[*words, "--json"] for words in told]
    for words, (code, said, error) in zip(told, commands(place, *told), strict=True):
        assert (code, error) == (0, "")
        assert "--json" not in words or json.loads(said)
    with np.load(data) as given, np.load(out) as found:
        np.testing.assert_array_equal(found["y"], load(artifact).run(dict(given))["y"])


def test_targets_say_what_the_machine_has(place: Path) -> None:
    words, as_json = commands(place, ["targets"], ["targets", "--json"])
    assert words[0] == 0
    assert "the compiler is not installed" in words[1]
    assert json.loads(as_json[1])["this_machine"]["processors"] >= 1


def test_inputs_that_numpy_has_no_dtype_for_name_the_package(place: Path, folder: Path) -> None:
    artifact = folder / "inputs_of_bfloat16.qc"
    for code, _, error in commands(place, ["run", artifact], ["bench", artifact]):
        assert code == 1
        assert error.startswith("error: x: bfloat16[2,8]: numpy has no bfloat16 without")
        assert "pip install ml_dtypes" in error


def test_what_needs_the_compiler_says_so(place: Path, folder: Path) -> None:
    model = folder / "model.onnx"
    said = commands(
        place,
        ["compile", model, "-o", folder / "new.qc"],
        ["quantize", model, "--calibration", "synthetic", "-o", folder / "new.onnx"],
        ["compile", "--precision", "int8", model, "--calibration", "synthetic"],
        ["export", model, "-o", folder / "c", "--flash", "1M"],
        ["records", "show", model],
        ["inspect", model],
        ["inspect", model, "--plan"],
        ["demo", "-o", folder / "demo"],
    )
    if place != ROOT:
        page = ["--hint", "latency", "--report", folder / "page.html"]
        said += commands(place, ["bench", folder / "float32.qc", *page])
    for code, _, error in said:
        assert code == 1
        missing = "its package " if place == ROOT else "the runtime alone "
        assert error.startswith(f"error: this needs the compiler, and {missing}")
        assert len(error.splitlines()) == 2
    wanted = [f"qcompiler.compile({str(model)!r})"]
    if place != ROOT:
        wanted += [f"open_artifact({str(folder / 'int8.qc')!r}).save({str(folder / 'new.qc')!r})"]
    for call in wanted:
        done = bare(
            place,
            "import qcompiler\n"
            "from qcompiler.artifact.artifact import open_artifact\n"
            f"try: {call}\n"
            "except qcompiler.Error as e: print(e.what)",
        )
        assert "this needs the compiler" in done


@pytest.mark.slow
def test_a_real_environment_of_numpy_only(folder: Path, tmp_path: Path) -> None:
    """As docs/artifact.md says: the runtime alone."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [tmp_path / "venv" / "bin" / "python", "-m", "pip", "install", "-q"]
    subprocess.run([*pip, f"numpy=={np.__version__}"], check=True)
    subprocess.run([*pip, ROOT / "runtime"], check=True)
    tool = tmp_path / "venv" / "bin" / "qcompiler"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for words in (
        ["run", folder / "int8.qc", "--inputs", folder / "data.npz"],
        ["bench", folder / "float32.qc", "--iterations", "3", "--per-step"],
        ["inspect", folder / "int8.qc"],
        ["targets"],
    ):
        done = subprocess.run(
            [tool, *words],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, done.stderr
