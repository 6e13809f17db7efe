"""Every command, as people type it: what it says, what it writes, and how it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from oracles import onnxruntime_outputs, session

from qcompiler import Error, cli, compile, driver, load, plugins
from qcompiler.demo import main as demo_main
from qcompiler.driver import Compilation
from qcompiler.hardware import cpu, isa
from qcompiler.options import Options, Watch

SHAPE = (2, 8)
Words = Sequence[object]


def network() -> onnx.ModelProto:
    """Two layers and a Softmax; the batch is open."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "hidden"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "v"], ["s"], "scores"),
        helper.make_node("Softmax", ["s"], ["y"], "softmax"),
    ]
    weights = {"w": (8, 16), "b": (16,), "v": (16, 4)}
    graph = helper.make_graph(
        nodes,
        "two layers",
        [helper.make_tensor_value_info("x", 1, ["N", 8])],
        [helper.make_tensor_value_info("y", 1, ["N", 4])],
        [
            numpy_helper.from_array(rng.standard_normal(s, np.float32), n)
            for n, s in weights.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read; nothing writes here."""
    folder = tmp_path_factory.mktemp("cli")
    onnx.save(network(), folder / "model.onnx")
    rng = np.random.default_rng(1)
    np.savez(folder / "data.npz", x=rng.standard_normal((32, 8), np.float32))
    words = ["compile", folder / "model.onnx", "--input-shape", "x=2x8", "-o", folder / "model.qc"]
    assert cli.main([*map(str, words), "--no-progress"]) == 0
    return folder


@pytest.fixture
def model(folder: Path) -> Path:
    return folder / "model.onnx"


@pytest.fixture
def artifact(folder: Path) -> Path:
    return folder / "model.qc"


class Said:
    """What one command answered."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, object]:
        answer = json.loads(self.out, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
        assert isinstance(answer, dict)
        return answer


Say = Callable[..., Said]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Words -> what the command did; a clean end is demanded."""

    def run(*words: object, code: int = 0) -> Said:
        try:
            found = cli.main([*map(str, words)])
        except SystemExit as e:
            found = int(e.code or 0)
        out, err = capsys.readouterr()
        assert found == code, err
        assert "Traceback" not in out + err
        return Said(found, out, err)

    return run


@pytest.fixture
def refused(say: Say, tmp_path: Path) -> Callable[..., str]:
    """Words -> the one error they end in; no file may be new in the test's own folder."""

    def run(*words: object, code: int = 1) -> str:
        before = sorted(tmp_path.rglob("*"))
        said = say(*words, code=code)
        assert said.out == ""
        if code == 1:
            assert said.err.startswith("error: ")
            lines = said.err.splitlines()
            assert len(lines) <= 2
            assert all(line.startswith("hint: ") for line in lines[1:])
        assert sorted(tmp_path.rglob("*")) == before
        return said.err

    return run


Refused = Callable[..., str]


# compile


def test_compile_says_what_it_made(say: Say, model: Path, tmp_path: Path) -> None:
    made = tmp_path / "a.qc"
    said = say("compile", model, "--input-shape", "x=2x8", "-o", made)
    assert f"{model} -> {made}: float32" in said.out
    assert load(made).inputs[0].shape == SHAPE


def test_compile_in_json(say: Say, model: Path, tmp_path: Path) -> None:
    made = tmp_path / "a.qc"
    answer = say("compile", model, "--input-shape", "x=2x8", "-o", made, "--json").json
    assert answer["artifact"] == str(made)
    assert answer["bytes"] == made.stat().st_size


def test_the_artifact_stands_beside_its_model_when_nothing_else_is_said(
    say: Say, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "net.v2.onnx").write_bytes(model.read_bytes())
    say("compile", tmp_path / "net.v2.onnx", "--input-shape", "x=1x8")
    assert (tmp_path / "net.v2.qc").is_file()


def test_an_artifact_is_replaced_by_a_newer_one(say: Say, model: Path, tmp_path: Path) -> None:
    made = tmp_path / "a.qc"
    for rows in (1, 3):
        say("compile", model, "--input-shape", f"x={rows}x8", "-o", made)
        assert load(made).inputs[0].shape == (rows, 8)
    assert [p.name for p in tmp_path.iterdir()] == ["a.qc"]


def test_explain_tells_which_kernels_lost(say: Say, model: Path) -> None:
    words = ("inspect", model, "--plan", "--explain", "--input-shape", "x=2x8")
    said = say(*words)
    assert said.code == 0
    assert "predicted us" in said.out
    lines = [line.split() for line in said.out.splitlines()]
    assert any("tiled" in line and "chosen" in line for line in lines)
    assert any("plain" in line and "lost" in line for line in lines)
    weighed = [
        c for step in json.loads(say(*words, "--json").out)["steps"] for c in step["candidates"]
    ]
    assert {"chosen", "lost"} == {c["verdict"] for c in weighed}
    assert all(c["seconds"] > 0 for c in weighed)


@pytest.mark.parametrize("flags", [("--explain",), ("--dump", "stages")])
def test_flags_of_compiling_say_that_nothing_is_compiled(
    say: Say, model: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    assert f"{flags[0]} does nothing here" in say("inspect", model, *flags, code=1).err
    say("compile", model, "--input-shape", "x=1x8", "-o", tmp_path / "a.qc")
    say("inspect", tmp_path / "a.qc", "--plan", *flags, code=1)


def test_explain_tells_why_rules_were_not_used(say: Say, model: Path, tmp_path: Path) -> None:
    words = ("compile", model, "--input-shape", "x=2x8", "-o", tmp_path / "a.qc", "--explain")
    assert "not used because" in say(*words).out
    assert isinstance(say(*words, "--json").json["skips"], list)


def test_dump_writes_the_graph_after_every_stage(say: Say, model: Path, tmp_path: Path) -> None:
    dumped = tmp_path / "stages"
    say("compile", model, "--input-shape", "x=2x8", "-o", tmp_path / "a.qc", "--dump", dumped)
    names = sorted(p.stem for p in dumped.glob("*.txt"))
    assert names[0] == "0_read"
    assert [n.split("_")[1] for n in names][-1] == "layout"
    assert "Gemm" in (dumped / "0_read.txt").read_text()
    assert "matmul" in (dumped / f"{names[-1]}.txt").read_text()


def test_a_dry_run_plans_and_writes_nothing(say: Say, model: Path, tmp_path: Path) -> None:
    words = ("compile", model, "--input-shape", "x=2x8", "-o", tmp_path / "a.qc", "--dry-run")
    assert say(*words).out.startswith("plan ")
    assert "steps" in say(*words, "--json").json
    assert not list(tmp_path.iterdir())


def test_static_int8_asks_for_data(refused: Refused, model: Path, tmp_path: Path) -> None:
    words = ("compile", model, "--precision", "int8", "--input-shape", "x=1x8")
    said = refused(*words, "-o", tmp_path / "a.qc")
    assert "needs calibration data" in said
    assert "--calibration synthetic" in said


def test_int8_from_a_file_of_samples(say: Say, folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "a.qc"
    words = ("--precision", "int8", "--calibration", folder / "data.npz", "--input-shape", "x=1x8")
    say("compile", folder / "model.onnx", *words, "-o", made)
    notes = load(made).manifest.notes
    assert any("data.npz" in value for value in notes.values())
    assert not any("synthetic" in value for value in notes.values())


def test_an_artifact_says_that_its_calibration_was_made_up(
    say: Say, model: Path, tmp_path: Path
) -> None:
    made = tmp_path / "a.qc"
    words = ("--precision", "int8", "--calibration", "synthetic", "--input-shape", "x=1x8")
    say("compile", model, *words, "-o", made)
    assert any("synthetic" in value for value in load(made).manifest.notes.values())
    assert "synthetic" in say("inspect", made).out


DYNAMIC = ("--input-shape", "x=1x8", "--precision", "int8-dynamic")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--input-shape", "x=2x"], "x"),
        (["--input-shape", "x"], "is not NAME="),
        (["--input-shape", "x=axb"], "is not NAME="),
        (["--input-shape", "x=-1x8"], "is not NAME="),
        (["--input-shape", "z=1x8"], "z"),
        (["--input-shape", "x=1x9"], "9"),
        (["--input-shape", "x=1x8x1"], "x"),
        (["--input-shape", "x=1x8", "--target", "pentium"], "pentium"),
        (["--input-shape", "x=1x8", "--target", "./absent.toml"], "absent.toml"),
        (["--input-shape", "x=1x8", "--pass", "no_such_pass"], "no_such_pass"),
        (["--input-shape", "x=1x8", "--pass", "quantize_static{bits=8"], "cannot read"),
        (["--input-shape", "x=1x8", "--disabled-pass", "nothing"], "nothing"),
        (["--input-shape", "x=1x8", "--pass", "./absent.py"], "absent.py"),
        ([*DYNAMIC, "--exclude", "haed"], "haed"),
        ([*DYNAMIC, "--exclude", ""], "'' names no node"),
        (["--input-shape", "x=1x8", "--prune", "2:4", "--prune-include", "haed"], "haed"),
        (["--input-shape", "x=1x8", "--prune", "2:4", "--prune-exclude", "haed"], "haed"),
        (["--input-shape", "x=1x8", "--pass", 'quantize_dynamic{exclude=["haed"]}'], "haed"),
        (["--input-shape", "x=1x8", "--pass", 'quantize_weights{layers=["haed=8"]}'], "haed"),
    ],
)
def test_words_that_do_not_fit_the_model(
    words: list[str], told: str, refused: Refused, model: Path, tmp_path: Path
) -> None:
    assert told in refused("compile", model, *words, "-o", tmp_path / "a.qc")


def test_a_batch_that_is_open_is_one_and_the_artifact_says_so(
    say: Say, model: Path, tmp_path: Path
) -> None:
    made = tmp_path / "a.qc"
    told = "batch: 1, since the model leaves N open; to change it: --input-shape x=<N>x8"
    assert told in say("compile", model, "-o", made).out
    assert load(made).inputs[0].shape == (1, 8)
    assert told.removeprefix("batch: ") in say("inspect", made).out
    assert "batch" in say("compile", model, "-o", made, "--json").json["notes"]  # type: ignore[operator]
    assert told in say("inspect", model, "--plan").out
    assert "batch: " not in say("compile", model, "--input-shape", "x=2x8", "-o", made).out


@pytest.mark.parametrize(
    "shapes",
    [
        {"x": [1, "S"]},
        {"x": ["S", "N", 8]},
        {"x": ["seq_len", 8]},
        {"x": ["N"]},
        {"x": ["N", 8], "z": ["M", 8]},
        {"x": ["N", 8], "z": [2, "N"]},
    ],
    ids=str,
)
def test_other_sizes_that_are_open_are_an_error(
    shapes: dict[str, list[int | str]], refused: Refused, tmp_path: Path
) -> None:
    """Also where no operator of the model is known: sizes are looked at first."""
    inputs = [helper.make_tensor_value_info(n, 1, s) for n, s in shapes.items()]
    outputs = [helper.make_tensor_value_info("y", 1, None)]
    graph = helper.make_graph([helper.make_node("Nonsense", ["x"], ["y"])], "g", inputs, outputs)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(made, tmp_path / "open.onnx")
    said = refused("compile", tmp_path / "open.onnx", "-o", tmp_path / "a.qc")
    assert "is open" in said
    assert "--input-shape x=" in said


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["destroy"],
        ["compile"],
        ["compile", "a.onnx", "--precision", "int7"],
        ["compile", "a.onnx", "--calibration-method", "nearest"],
        ["compile", "a.onnx", "--threads", "-1"],
        ["compile", "a.onnx", "--threads", "many"],
        ["compile", "a.onnx", "--calibration-samples", "0"],
        ["run"],
        ["run", "a.qc", "--fill-mode", "sevens"],
        ["run", "a.qc", "--seed", "-1"],
        ["compile", "a.onnx", "--evaluation-samples", "-3"],
        ["bench", "a.qc", "--iterations", "1e3"],
        ["compare", "a.qc"],
        ["compare", "a.qc", "a.onnx", "--samples", "0"],
    ],
)
def test_wrong_usage_ends_with_2(words: list[str], refused: Refused) -> None:
    said = refused(*words, code=2)
    assert said.startswith("usage: qcompiler")
    assert [line.partition(" ")[0] for line in said.splitlines()] == ["usage:", "error:", "hint:"]


def test_an_unknown_flag_names_the_nearest(refused: Refused) -> None:
    said = refused("compile", "a.onnx", "--precison", "int8", code=2)
    assert "--precison, did you mean --precision?" in said
    assert "did you mean" not in refused("compile", "a.onnx", "--zzz", code=2)


@pytest.mark.parametrize(
    ("name", "hint"), [("net.pt", "torch.onnx.export"), ("net.h5", "tf2onnx"), ("net.qc", "run")]
)
def test_a_file_of_another_tool_gets_a_hint(
    name: str, hint: str, refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 of another tool")
    assert hint in refused("compile", tmp_path / name, "-o", tmp_path / "new.qc")


def test_an_unknown_target_names_the_nearest(refused: Refused, folder: Path) -> None:
    assert "did you mean zen4" in refused("compile", folder / "model.onnx", "--target", "zen9")
    assert "qcompiler targets" in refused("compile", folder / "model.onnx", "--target", "???")


def test_what_is_no_model_is_one_error() -> None:
    with pytest.raises(Error, match="dict given, an ONNX file"):
        compile({})  # type: ignore[arg-type]


def test_a_model_is_no_artifact(refused: Refused, folder: Path) -> None:
    assert "qcompiler compile" in refused("run", folder / "model.onnx")


def test_the_version(say: Say) -> None:
    assert say("--version").out.startswith("qcompiler ")


# quantize


def test_quantize_writes_what_onnxruntime_and_compile_read_alike(
    say: Say, folder: Path, tmp_path: Path
) -> None:
    made = tmp_path / "net.qdq.onnx"
    words = ("--calibration", folder / "data.npz", "--input-shape", "x=2x8")
    said = say("quantize", folder / "model.onnx", *words, "-o", made, "--json").json
    assert said["quantized_values"] == 2
    onnx.checker.check_model(onnx.load(made), full_check=True)
    say("compile", made, "-o", tmp_path / "again.qc")
    say("compile", folder / "model.onnx", "--precision", "int8", *words, "-o", tmp_path / "a.qc")
    x = np.load(folder / "data.npz")["x"][:2]
    direct = load(tmp_path / "a.qc")(x)
    np.testing.assert_array_equal(load(tmp_path / "again.qc")(x), direct)
    (theirs,) = onnxruntime_outputs(made, {"x": x}, ours=True).values()
    np.testing.assert_allclose(theirs, direct, atol=1e-5)


def test_quantize_refuses_to_overwrite_its_model(refused: Refused, model: Path) -> None:
    words = ("quantize", model, "--calibration", "synthetic", "--input-shape", "x=1x8")
    assert "overwrite" in refused(*words, "-o", model)


# calibration data that is no good


def nan_in(x: np.ndarray) -> np.ndarray:
    x[3, 2] = np.nan
    return x


@pytest.mark.parametrize(
    ("name", "arrays", "told"),
    [
        ("nan", {"x": nan_in(np.ones((9, 8), np.float32))}, "NaN"),
        ("infinite", {"x": np.full((9, 8), np.inf, np.float32)}, "inf"),
        ("double", {"x": np.ones((9, 8))}, "float64"),
        ("shape", {"x": np.ones((9, 7), np.float32)}, "7"),
        ("rank", {"image": np.ones((9, 8, 1, 1), np.float32)}, "does not hold"),
        ("none", {"x": np.ones((0, 8), np.float32)}, "no samples"),
        ("pickled", {"x": np.array([{"a": 1}], object)}, "pickle"),
    ],
)
def test_bad_calibration_data(
    name: str,
    arrays: dict[str, np.ndarray],
    told: str,
    refused: Refused,
    model: Path,
    tmp_path: Path,
) -> None:
    np.savez(tmp_path / f"{name}.npz", **arrays)
    words = ("--precision", "int8", "--calibration", tmp_path / f"{name}.npz")
    said = refused("compile", model, *words, "--input-shape", "x=1x8", "-o", tmp_path / "a.qc")
    assert told in said
    assert f"{name}.npz" in said


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 but no more", b"\x93NUMPY\x01\x00", b"words"])
def test_calibration_files_that_are_no_data(
    data: bytes, refused: Refused, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "data.npz").write_bytes(data)
    words = ("--precision", "int8", "--calibration", tmp_path / "data.npz")
    assert "data.npz" in refused("compile", model, *words, "--input-shape", "x=1x8")


def test_calibration_data_that_is_absent(refused: Refused, model: Path, tmp_path: Path) -> None:
    words = ("--precision", "int8", "--calibration", tmp_path / "absent.npz")
    assert "absent.npz" in refused("compile", model, *words, "--input-shape", "x=1x8")


# models that are none


def flipped(whole: bytes) -> bytes:
    """The length of a weight's data, changed by one bit."""
    at = whole.index(network().graph.initializer[0].raw_data) - 1
    return whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: b"",
        lambda whole: whole[:1],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: b"\x89PNG\r\n\x1a\n" + bytes(100),
        lambda whole: b"this is no model\n" * 10,
        flipped,
    ],
    ids=["empty", "a byte", "half", "one byte short", "picture", "words", "flipped bit"],
)
@pytest.mark.parametrize("command", ["compile", "inspect"])
def test_files_that_are_no_models(
    command: str,
    spoil: Callable[[bytes], bytes],
    refused: Refused,
    model: Path,
    tmp_path: Path,
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(spoil(model.read_bytes()))
    assert str(bad) in refused(command, bad, "--input-shape", "x=1x8")


@pytest.mark.parametrize("command", ["compile", "inspect"])
def test_folders_and_absent_files_are_no_models(
    command: str, refused: Refused, tmp_path: Path
) -> None:
    assert str(tmp_path) in refused(command, tmp_path)
    assert "absent.onnx" in refused(command, tmp_path / "absent.onnx")
    assert refused(command, ".")


def test_an_artifact_is_no_model(refused: Refused, artifact: Path, tmp_path: Path) -> None:
    assert str(artifact) in refused("compile", artifact, "-o", tmp_path / "a.qc")


# places that cannot be written


def test_an_output_in_a_missing_folder_is_refused_at_once(
    refused: Refused, model: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "read", lambda *_: pytest.fail("the work was begun"))
    place = tmp_path / "no" / "such" / "a.qc"
    assert "no folder" in refused("compile", model, "--input-shape", "x=1x8", "-o", place)
    assert "no folder" in refused("run", artifact, "--outputs", place)


def test_an_output_that_is_no_file_stays(refused: Refused, model: Path, tmp_path: Path) -> None:
    words = ("compile", model, "--input-shape", "x=1x8", "-o")
    assert "this is a folder" in refused(*words, tmp_path)
    assert "cannot be replaced" in refused(*words, "/dev/null").replace("can be", "cannot be")
    assert not Path("/dev/null").is_file()
    (tmp_path / "file").write_text("kept")
    assert "no folder" in refused(*words, tmp_path / "file" / "a.qc")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_model_is_not_overwritten(refused: Refused, model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.onnx"
    copy.write_bytes(model.read_bytes())
    assert "overwrite" in refused("compile", copy, "--input-shape", "x=1x8", "-o", copy)
    assert copy.read_bytes() == model.read_bytes()


def test_data_is_not_overwritten(refused: Refused, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data.npz"
    copy.write_bytes((folder / "data.npz").read_bytes())
    words = ("compile", folder / "model.onnx", "--precision", "int8", "--calibration", copy)
    assert "overwrite" in refused(*words, "-o", copy)
    assert "overwrite" in refused(*words, "-o", tmp_path / "a.qc", "--report", copy)
    for name in ("a.qc", "report.json"):
        told = refused(*words, "-o", tmp_path / "a.qc", "--report", tmp_path / name)
        assert "two files of one name" in told
    assert copy.read_bytes() == (folder / "data.npz").read_bytes()


def test_labels_without_a_limit_are_refused(refused: Refused, folder: Path) -> None:
    words = ("compile", folder / "model.onnx", "--labels", folder / "data.npz")
    assert "add --max-drop" in refused(*words)


@pytest.mark.parametrize("rate", ["nan", "0", "inf"])
def test_a_learning_rate_that_means_nothing(refused: Refused, folder: Path, rate: str) -> None:
    words = ("retrain", folder / "model.onnx", "--data", folder / "data.npz", "--rate", rate)
    assert "learning rate" in refused(*words)


def test_a_value_beyond_memory_is_refused(refused: Refused, tmp_path: Path) -> None:
    size = 1 << 20
    graph = helper.make_graph(
        [helper.make_node("Expand", ["x", "s"], ["y"])],
        "large",
        [helper.make_tensor_value_info("x", 1, [1])],
        [helper.make_tensor_value_info("y", 1, [size, size])],
        [numpy_helper.from_array(np.array([size, size]), "s")],
    )
    onnx.save(helper.make_model(graph), tmp_path / "large.onnx")
    assert "more than the 2147483647 that are supported" in refused(
        "compile", tmp_path / "large.onnx"
    )


def test_a_full_disk_leaves_no_file(
    refused: Refused, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    said = refused("compile", model, "--input-shape", "x=1x8", "-o", tmp_path / "a.qc")
    assert "No space left" in said


@pytest.mark.parametrize("place", ["qcompiler.driver.assemble", "qcompiler.artifact.saving.write"])
def test_an_interrupted_compile_leaves_no_file(
    place: str, refused: Refused, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)
    words = ("compile", model, "--input-shape", "x=1x8", "-o", tmp_path / "a.qc")
    assert "interrupted" in refused(*words, code=130)


# run, bench, compare, inspect, targets


def test_run_shows_and_writes_the_outputs(
    say: Say, folder: Path, artifact: Path, tmp_path: Path
) -> None:
    made = tmp_path / "out.npz"
    said = say("run", artifact, "--inputs", folder / "data.npz", "--outputs", made, "--print-time")
    assert "ran in" in said.out
    x = np.load(folder / "data.npz")["x"][:2]
    with np.load(made, allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["y"], load(artifact)(x))


def test_run_in_json(say: Say, artifact: Path) -> None:
    answer = say("run", artifact, "--fill-mode", "ones", "--json").json
    assert answer["outputs"]["y"]["shape"] == [2, 4]  # type: ignore[index]


def test_inputs_that_do_not_fit(refused: Refused, artifact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", x=np.ones((2, 9), np.float32))
    np.savez(tmp_path / "long.npz", x=np.ones(SHAPE, np.int64))
    two = np.ones(SHAPE, np.float32)
    np.savez(tmp_path / "other.npz", y=two, z=two)
    for name, told in (("wide", "9"), ("long", "int64"), ("other", "'z'"), ("absent", "absent")):
        for command in ("run", "bench"):
            assert told in refused(command, artifact, "--inputs", tmp_path / f"{name}.npz")


def test_bench_reports_percentiles_and_steps(say: Say, artifact: Path) -> None:
    words = ("bench", artifact, "--iterations", 20, "--percentile", "50,99.9", "--per-step")
    answer = say(*words, "--json").json
    assert answer["runs"] == 20
    assert answer["p50_ms"] <= answer["p99.9_ms"]  # type: ignore[operator]
    assert len(answer["steps"]) == len(load(artifact).variant.steps)  # type: ignore[arg-type]
    assert "GOP/s" in say(*words).out


def test_a_bench_of_no_seconds_still_runs_once(say: Say, artifact: Path) -> None:
    assert say("bench", artifact, "--duration", 0, "--warmup", 0, "--json").json["runs"] == 1


def test_percentiles_that_are_none(refused: Refused, artifact: Path) -> None:
    for words in ("", "50,", "101", "nan", "median"):
        assert "--percentile" in refused("bench", artifact, "--percentile", words)


def test_compare_with_onnxruntime(say: Say, model: Path, artifact: Path) -> None:
    session(model)  # or a skip
    said = say("compare", artifact, model, "--rtol", "1e-5", "--top1", "1")
    assert "cosine" in said.out
    answer = say("compare", artifact, model, "--json").json
    assert answer["failures"] == []
    assert answer["outputs"][0]["max_error"] < 1e-6  # type: ignore[index]


def test_compare_ends_with_1_beyond_a_limit(say: Say, model: Path, artifact: Path) -> None:
    session(model)  # or a skip
    said = say("compare", artifact, model, "--cosine", "1.1", code=1)
    assert "beyond the limit: y: cosine" in said.out


def test_compare_with_another_model(
    refused: Refused, model: Path, artifact: Path, tmp_path: Path
) -> None:
    session(model)  # or a skip
    other = network()
    other.graph.node[-1].output[0] = other.graph.output[0].name = "probabilities"
    onnx.save(other, tmp_path / "other.onnx")
    wider = network()
    wider.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5
    onnx.save(wider, tmp_path / "wider.onnx")
    assert "is it the same model" in refused("compare", artifact, tmp_path / "other.onnx")
    assert "cannot run it" in refused("compare", artifact, tmp_path / "wider.onnx")
    assert "cannot load it" in refused("compare", artifact, artifact)


def test_inspect_a_model(say: Say, model: Path) -> None:
    assert "x: float32[N,8]" in say("inspect", model).out
    assert say("inspect", model, "--json").json["operators"] == {
        "Gemm": 1,
        "Relu": 1,
        "MatMul": 1,
        "Softmax": 1,
    }
    assert "Gemm(" in say("inspect", model, "--text").out
    words = ("inspect", model, "--plan", "--input-shape", "x=1x8")
    assert say(*words).out.startswith("plan ")
    assert "steps" in say(*words, "--json").json


def test_inspect_an_artifact(say: Say, artifact: Path) -> None:
    assert "x: float32[2,8]" in say("inspect", artifact).out
    assert "hidden" in say("inspect", artifact, "--plan").out
    assert say("inspect", artifact, "--json").json["name"] == "two layers"


def test_targets_name_this_machine(say: Say) -> None:
    answer = say("targets", "--json").json
    here = [i["name"] for i in answer["instruction_sets"] if i["here"] == "host"]  # type: ignore[attr-defined]
    assert here == [isa.host().isa.name]
    assert here[0] in say("targets").out


# artifacts that must not run


def test_an_artifact_for_another_cpu(
    refused: Refused, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"fpu"}))
    for command in ("run", "bench"):
        said = refused(command, artifact)
        assert "this CPU lacks" in said
        assert "qcompiler targets" in said


def test_an_artifact_for_an_instruction_set_that_this_cpu_lacks(
    say: Say, refused: Refused, model: Path, tmp_path: Path
) -> None:
    plugins.load_all()
    here = cpu.features()
    lacking = [
        i.name for i in isa.ISAS.values() if "x86_64" in i.triple and not i.cpu_flags <= here
    ]
    if not lacking:
        pytest.skip("this CPU has every instruction set")
    made = tmp_path / "a.qc"
    say("compile", model, "--input-shape", "x=1x8", "--target", lacking[0], "-o", made)
    assert "this CPU lacks" in refused("run", made)


@pytest.mark.parametrize("member", [".so", "weights.bin", "manifest.json"])
def test_a_tampered_artifact(member: str, refused: Refused, artifact: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.qc"
    with zipfile.ZipFile(artifact) as old, zipfile.ZipFile(changed, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith(member):
                data = re.sub(b'"format":\\d+', b'"format":99', data) if "json" in member else b"x"
            new.writestr(entry.filename, data)
    for command in ("run", "bench", "inspect"):
        assert str(changed) in refused(command, changed)


def test_damaged_artifacts(refused: Refused, artifact: Path, tmp_path: Path) -> None:
    whole = artifact.read_bytes()
    damaged = tmp_path / "damaged.qc"
    middle = len(whole) // 2
    flip = whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
    for data in (b"", whole[:100], whole[:middle], whole[:-1], flip):
        damaged.write_bytes(data)
        assert str(damaged) in refused("run", damaged)
    for place in (tmp_path, tmp_path / "absent.qc"):
        assert str(place) in refused("run", place)


# artifacts for several targets


def test_several_targets_are_compiled_listed_and_run(
    say: Say, refused: Refused, model: Path, tmp_path: Path
) -> None:
    shape, made = ("--input-shape", "x=1x8"), tmp_path / "fat.qc"
    plans = json.loads(
        say("compile", model, *shape, "--target", "haswell,zen4", "--dry-run", "--json").out
    )
    assert [p["target"] for p in plans["plans"]] == ["x86_avx2", "x86_avx512bf16"]
    told = say("compile", model, *shape, "--target", "x86-64:all", "-o", made).out
    names = [i.name for i in isa.family("x86-64")]
    assert f"for {', '.join(names)}, " in told
    assert re.search(r"6 variants, .* of weights, of which .* \(\d+%\) are shared", told)
    listed = say("inspect", made, "--plan").out
    assert all(re.search(rf"^{n} +(yes|no \()", listed, re.MULTILINE) for n in names)
    assert "are shared and kept once" in listed
    facts = json.loads(say("inspect", made, "--json").out)
    assert [v["isa"] for v in facts["variants"]] == names
    assert facts["shared_bytes"] > 0
    here = [i.name for i in isa.family("x86-64") if not i.lacks]
    for name in here:
        say("run", made, "--variant", name)
        answer = json.loads(say("bench", made, "--variant", name, "--iterations", 1, "--json").out)
        assert answer["variant"] == name
    assert json.loads(say("bench", made, "--iterations", 1, "--json").out)["variant"] == here[-1]
    assert "there is no variant 'vax'" in refused("run", made, "--variant", "vax")
    for name in set(names) - set(here):
        assert f"which the variant {name} needs" in refused("run", made, "--variant", name)


@pytest.mark.parametrize(
    "words",
    [
        ("quantize", "--calibration", "synthetic"),
        ("compile", "--report", "r.html"),
        ("compile", "--max-drop", "1", "--evaluation", "synthetic", "--precision", "int8"),
    ],
    ids=lambda words: words[1],
)
def test_what_decides_by_one_target_takes_one(
    words: Sequence[str], refused: Refused, model: Path, tmp_path: Path
) -> None:
    more = ("--input-shape", "x=1x8", "--target", "haswell,zen4", "-o", tmp_path / "out")
    said = refused(words[0], model, *words[1:], *more)
    assert "one target is wanted, these are 2: haswell, zen4" in said


# names that a model may have


def test_names_that_could_command_a_terminal_are_spelled_out(say: Say, tmp_path: Path) -> None:
    model = network()
    model.graph.name = "evil \x1b[2J\x1b]0;title\x07"
    model.graph.node[0].name = "../../etc/passwd"
    onnx.save(model, tmp_path / "a.onnx")
    said = say("inspect", tmp_path / "a.onnx", "--plan", "--input-shape", "x=1x8")
    assert "\x1b" not in said.out
    assert "\x07" not in said.out


# demo, and the program itself


def test_the_demo(say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_main, "_RUNS", 3)
    answer = say("demo", "-o", tmp_path / "demo", "--json").json
    assert answer["int8"]["accuracy"] >= answer["float32"]["accuracy"] - 0.01  # type: ignore[index]
    for precision in ("float32", "int8"):
        assert Path(answer[precision]["artifact"]).is_file()  # type: ignore[index]
    assert json.loads(Path(str(answer["report"])).read_text())["isa"] == isa.host().isa.name


def test_the_demo_where_a_file_is_in_the_way(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    assert "cannot make the folder" in refused("demo", "-o", tmp_path / "demo")


def program(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qcompiler", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_program_ends_with_the_code(artifact: Path, tmp_path: Path) -> None:
    done = program("run", artifact)
    assert done.returncode == 0, done.stderr
    failed = program("run", tmp_path / "absent.qc")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")


def test_a_reader_that_leaves_is_no_error() -> None:
    words = f"{sys.executable} -m qcompiler targets --json"
    shell = subprocess.run(
        ["bash", "-c", f"{words} | true"], capture_output=True, text=True, timeout=300, check=False
    )
    assert shell.stderr == ""


@pytest.mark.parametrize("precision", ["bfloat16", "int8-dynamic"])
def test_the_rest_of_a_quantized_model_takes_the_precision_asked_for(precision: str) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        net (float[8, 16] x) => (float[8, 16] y)
        <float scale = {0.02}, uint8 zero = {128}> {
            bytes = QuantizeLinear(x, scale, zero)
            floats = DequantizeLinear(bytes, scale, zero)
            hidden = MatMul(floats, w)
            bent = Tanh(hidden)
            y = MatMul(bent, w)
        }
    """)
    w = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    options, watch = Options(precision=precision), Watch()
    steps = Compilation(model, options, watch).artifact.manifest.variants[0].steps
    assert steps == driver.compile(model, options, watch).manifest.variants[0].steps
    assert steps[-1].operands != "float32"
