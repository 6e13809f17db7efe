"""The command line with artifacts for GPUs: with a driver over the emulator, and without one."""

from __future__ import annotations

import ctypes
import gc
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from emulation import check, gpu, put_for_this_cpu
from kernel_harness import normal

import qcompiler
from qcompiler import cli
from qcompiler.emit import nvrtc
from qcompiler.errors import Error
from qcompiler.ir import Type, placeholder
from qcompiler.ops import make
from qcompiler.runtime.cuda import driver as drivers
from qcompiler.runtime.cuda import energy


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product and a Softmax."""
    path = tmp_path_factory.mktemp("tools") / "model.onnx"
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        small (float[6, 40] x, float[40, 8] w) => (float[6, 8] y) {
            h = MatMul(x, w)
            y = Softmax(h)
        }
    """
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    path = model.with_suffix(".qc")
    with pytest.MonkeyPatch.context() as patch:
        put_for_this_cpu(patch)
        qcompiler.compile(model, target="sm_80").save(path)
    return path


def say(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    """Words -> what the command says, or its error."""
    assert cli.main([*map(str, words)]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return err if code else out


def test_commands_run_what_is_for_gpus_on_the_first_of_them(
    artifact: Path,
    model: Path,
    installed: ctypes.CDLL,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran = json.loads(say(capsys, "run", artifact, "--json"))
    assert ran["outputs"]["y"]["shape"] == [6, 8]
    words = ("--iterations", 3, "--per-step", "--json", "--device", "cuda:0")
    timed = json.loads(say(capsys, "bench", artifact, *words))
    assert timed["runs"] == 3
    assert timed["variant"] == "sm_80"
    assert len(timed["steps"]) == 2
    assert all(s["ms"] > 0 for s in timed["steps"])
    same = json.loads(say(capsys, "compare", artifact, model, "--atol", 1e-4, "--json"))
    assert same["failures"] == []


def test_the_time_of_steps_is_asked_of_the_gpu(artifact: Path, installed: ctypes.CDLL) -> None:
    with qcompiler.load(artifact, device="cuda") as loaded:
        inputs = {v.name: np.zeros(v.shape, np.float32) for v in loaded.inputs}
        seconds = loaded.profile(inputs, repeat=2)
    assert len(seconds) == len(loaded.variant.steps)
    assert min(seconds) > 0


def test_without_a_driver_every_command_says_so(
    artifact: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drivers, "LIBRARY", "libno_such_driver.so.1")
    for words in (("run", artifact), ("bench", artifact), ("compare", artifact, model)):
        told = say(capsys, *words, code=1)
        assert "there is no driver for NVIDIA's GPUs" in told
    told = say(capsys, "run", artifact, "--device", "cpu", code=1)
    assert "--device cuda" in told
    told = say(capsys, "run", artifact, "--device", "gpu", code=1)
    assert "there is no device 'gpu'" in told


def test_what_is_for_cpus_is_for_no_gpu(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cpu.qc"
    qcompiler.compile(model).save(path)
    told = say(capsys, "run", path, "--device", "cuda", code=1)
    assert "it is for no GPU" in told
    assert "qcompiler targets" in told


def test_kernels_of_gpus_cannot_be_tuned_yet(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("tune", model, "--target", "sm_80", "--time", "1s", "-o", tmp_path / "r.jsonl")
    assert "kernels of GPUs cannot be tuned" in say(capsys, *words, code=1)


def test_an_artifact_s_plan_says_what_its_kernels_take(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = say(capsys, "inspect", artifact, "--plan")
    head = next(line for line in told.splitlines() if line.startswith("step"))
    for word in ("grid", "registers", "shared", "spilled", "occupancy", "us", "bound"):
        assert word in head.split()
    assert "us a run" in told
    assert "GPUs later than sm_80: their driver compiles it" in told
    kernels = json.loads(say(capsys, "inspect", artifact, "--plan", "--json"))["kernels"]["sm_80"]
    assert [k["bound"] for k in kernels] == ["launch", "launch"]
    assert all(k["seconds"] > 0 for k in kernels)
    assert kernels[0]["shared_bytes"] > 0


def test_a_model_s_plan_has_the_compiler_s_own_numbers(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason := nvrtc.available():
        pytest.skip(reason)
    told = json.loads(say(capsys, "inspect", model, "--plan", "--target", "a100", "--json"))
    product, softmax = told["kernels"]
    assert 16 < product["registers"] <= 255
    assert product["spilled_bytes"] == softmax["spilled_bytes"] == 0
    assert 0 < product["occupancy"] <= 1
    text = say(capsys, "inspect", model, "--plan", "--target", "a100")
    assert f" {product['registers']} " in text


def test_bench_tells_the_energy_of_a_run_where_the_driver_does(
    artifact: Path,
    installed: ctypes.CDLL,
    library: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("bench", artifact, "--iterations", 3, "--warmup", 1, "--json")
    monkeypatch.setattr(energy, "LIBRARY", "libno_such_library.so.1")
    assert "millijoules" not in json.loads(say(capsys, *words))
    monkeypatch.setattr(energy, "LIBRARY", library)
    told = json.loads(say(capsys, *words))
    assert told["millijoules"] == 5 * 2  # of the launches of a run


def test_an_executor_s_streams_run_on_a_gpu(artifact: Path, installed: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    given = [
        {
            "x": rng.standard_normal((6, 40), np.float32),
            "w": rng.standard_normal((40, 8), np.float32),
        }
        for _ in range(6)
    ]
    with qcompiler.load(artifact, device="cuda") as model:
        want = [model.run(one)["y"] for one in given]
    del model
    gc.collect()
    before = (ctypes.c_int64 * 8)()
    installed.fake_counts(before)
    with qcompiler.Executor(artifact, device="cuda:0", streams=3) as executor:
        assert (executor.choice.streams, executor.choice.threads) == (3, 1)
        for made, array in zip(executor.map(given), want, strict=True):
            np.testing.assert_array_equal(made["y"], array)
        during = (ctypes.c_int64 * 8)()
        installed.fake_counts(during)
        assert during[2] - before[2] == 3  # streams
    with qcompiler.Executor(artifact, hint="throughput") as executor:  # it is for GPUs alone
        assert executor.choice.streams == 2
        np.testing.assert_array_equal(executor.run(given[0])["y"], want[0])


def test_streams_on_a_gpu_are_threads_of_this_process(
    artifact: Path, installed: ctypes.CDLL
) -> None:
    with pytest.raises(Error, match="streams on cuda are threads of this process"):
        qcompiler.Executor(artifact, isolation="processes")


def test_what_checks_kernels_on_a_gpu_runs_them_by_the_driver(
    installed: ctypes.CDLL, for_this_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QCOMPILER_ON_GPU", "1")
    x = placeholder("x", Type("float32", (3, 50)))
    y = make("Softmax", x, axis=-1)
    before = (ctypes.c_int64 * 8)()
    installed.fake_counts(before)
    check(y, y, [normal((3, 50))], (x,), gpu(), rtol=1e-5, atol=1e-6)
    after = (ctypes.c_int64 * 8)()
    installed.fake_counts(after)
    assert after[4] > before[4]  # launches


def test_the_script_for_a_day_with_a_gpu_runs_all_tests_of_kernels() -> None:
    folder = Path(__file__).parent
    script = (folder.parents[1] / "benchmarks" / "gpu.sh").read_text()
    named = re.search(r"test_cuda_\{(.*?)\}\.py", script)
    assert named is not None
    checking = {
        f.stem.removeprefix("test_cuda_")
        for f in folder.glob("test_cuda_*.py")
        if re.search(r"^from emulation import .*\b(check|check_all|run)\b", f.read_text(), re.M)
    }
    assert set(named[1].split(",")) == checking - {"tools"}
    subprocess.run(["bash", "-n", folder.parents[1] / "benchmarks" / "gpu.sh"], check=True)


def test_several_launches_of_a_kernel_go_through_the_driver_too(
    installed: ctypes.CDLL, for_this_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QCOMPILER_ON_GPU", "1")
    x = placeholder("x", Type("float32", (70,)))
    y = make("item", make("DynamicQuantizeLinear", x), index=0)
    assert check(y, y, [normal((70,))], (x,), gpu()).after
