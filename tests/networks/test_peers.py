"""The side-by-side benchmark: shapes are pinned, samples are in range, ratios pair rounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import parser
from oracles import session

from benchmarks.report import Row, table
from benchmarks.subjects import SAMPLES, prepare
from qcompiler import plugins
from qcompiler.quantization.scales import has_exact_product

ROOT = Path(__file__).parents[2]
LOOKUP = """
    <ir_version: 8, opset_import: ["": 17]>
    lookup (int64[N, S] ids, int64[N, S] mask) => (float[N, S, 4] y)
    <float[5, 4] words = {0,0,0,0, 0,0,0,0, 0,0,0,0, 0,0,0,0, 0,0,0,0}>
    {
        y = Gather(words, ids)
        unused = Identity(mask)
    }
"""


def test_symbols_become_numbers_and_ids_stay_within_their_table(tmp_path: Path) -> None:
    subject = prepare(
        parser.parse_model(LOOKUP), tmp_path / "lookup", batch=2, sizes={"S": 7}, given={}
    )
    assert subject.name == "lookup"
    assert subject.shapes() == {"ids": (2, 7), "mask": (2, 7)}
    samples = subject.samples()
    assert len(samples) == SAMPLES
    ids = np.stack([s["ids"] for s in samples])
    assert ids.dtype == np.int64
    assert (ids.min(), ids.max()) == (0, 4)
    assert all((s["mask"] == 1).all() for s in samples)


def test_given_samples_are_used_and_repeated_over_the_batch(tmp_path: Path) -> None:
    given = {"ids": np.array([[1, 2], [3, 4]]), "mask": np.zeros((2, 2), np.int64)}
    subject = prepare(
        parser.parse_model(LOOKUP), tmp_path / "lookup", batch=3, sizes={"S": 2}, given=given
    )
    assert [s["ids"].tolist() for s in subject.samples()] == [[[1, 2]] * 3, [[3, 4]] * 3]


def test_a_symbol_without_a_number_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--size S="):
        prepare(parser.parse_model(LOOKUP), tmp_path, batch=1, sizes={}, given={})


def test_a_ratio_pairs_rounds_and_so_outlives_a_slow_machine() -> None:
    quick = Row("net", "qcompiler", "int8", rounds=[[1.0, 1.1, 1.0], [4.0], [1.0]])
    steady = Row("net", "openvino", "int8", rounds=[[2.0], [8.0], [2.0]])
    assert quick.times_as_fast_as(steady) == 2.0
    assert steady.times_as_fast_as(quick) == 0.5


def test_a_table_compares_within_a_precision_and_tells_who_is_missing() -> None:
    rows = [
        Row("net", "qcompiler", "int8", rounds=[[0.001]]),
        Row("net", "onnxruntime", "int8", rounds=[[0.004]]),
        Row("net", "onnxruntime", "int8-dynamic", rounds=[[0.002]]),
        Row("net", "onnxruntime", "float32", rounds=[[0.003]]),
        Row("net", "openvino", "int8", reason="not installed"),
    ]
    lines = table(rows).splitlines()
    assert lines[2].startswith("| onnxruntime float32 | 3 |")
    assert lines[3].startswith("| qcompiler int8 | 1 | 1 to 1 | 2.00 |")
    assert "- openvino int8 is left out: not installed" in lines


def test_engines_are_measured_in_processes_of_their_own(tmp_path: Path) -> None:
    session(ROOT / "qcompiler/demo/digits.onnx")  # or a skip
    words = ["--networks", "--models-dir", str(ROOT / "qcompiler" / "demo")]
    words += ["--engines", "onnxruntime", "--rounds", "2", "--round-seconds", "0.01"]
    words += ["--out", str(tmp_path / "result")]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "| onnxruntime float32 |" in run.stdout
    rows = {r["precision"]: r for r in json.loads((tmp_path / "result.json").read_text())["rows"]}
    assert len(rows["float32"]["rounds"]) == len(rows["int8"]["rounds"]) == 2
    assert rows["float32"]["cosine"] == pytest.approx(1)
    assert rows["int8"]["cosine"] > (0.99 if has_exact_product(plugins.device("host", 1)) else 0.98)
    assert rows["int8"]["artifact_bytes"] < rows["float32"]["artifact_bytes"]
    assert rows["int8-dynamic"]["reason"] == "dynamic int8 is for transformers"
