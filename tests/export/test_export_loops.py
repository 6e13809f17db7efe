"""Loops in code for C, alone and shared by the caller's threads: what the artifact computes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

import qcompiler
from qcompiler.onnx_io import rolled

NESTED = """<ir_version: 8, opset_import: ["": 17]>
g (float[96, 96] x, int64 count) => (float[96, 96] last, float[4, 96] rows)
<bool yes = {1}, int64 many = {4}> {
    last, rows = Loop <body = outer (int64 i, bool going, float[96, 96] now)
        => (bool on, float[96, 96] next, float[96] row) {
        next = Loop <body = inner (int64 j, bool go, float[96, 96] old)
            => (bool on2, float[96, 96] new) {
            m = MatMul(old, w)
            new = Softmax(m)
            on2 = Identity(go)
        }> (count, yes, now)
        row = ReduceMax <keepdims = 0, axes = [1]> (next)
        on = Identity(going)
    }> (many, yes, x)
}"""
MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include "net_pool.h"
_Alignas(64) static unsigned char workspace[NET_WORKSPACE_BYTES];
_Alignas(64) static float x[96 * 96], last[96 * 96], rows[4 * 96];
_Alignas(64) static int64_t count[8];
int main(int words, char **word) {
    FILE *file = fopen(word[1], "rb");
    if (words != 4 || !file || fread(x, sizeof x, 1, file) != 1) return 9;
    fclose(file);
    count[0] = atoi(word[2]);
    struct net_inputs in = {x, count};
    struct net_outputs out = {last, rows};
    struct net_pool pool;
    struct net_threads threads = {net_pool_for, &pool};
    if (net_pool_start(&pool, 3)) return 8;
    int shared = atoi(word[3]);
    if (shared ? net_run_threads(&in, &out, workspace, &threads) : net_run(&in, &out, workspace))
        return 7;
    net_pool_stop(&pool);
    return fwrite(last, sizeof last, 1, stdout) != 1 || fwrite(rows, 96 * 4, 4, stdout) != 4;
}
"""


def test_loops_in_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    monkeypatch.setattr(rolled, "UNROLLED", -1)
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(NESTED)
    w = rng.standard_normal((96, 96)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    artifact = qcompiler.compile(model, threads=1)
    assert len(artifact.manifest.variants[0].repeats) == 2
    folder, program = tmp_path / "net", tmp_path / "main"
    qcompiler.export_c(model, folder, name="net", parallel="pthread", threads=3)
    (tmp_path / "main.c").write_text(MAIN)
    words = ["gcc", "-std=gnu11", "-Wall", "-Werror", "-pthread", f"-I{folder}"]
    words += [str(tmp_path / "main.c"), str(folder / "net.o"), "-o", str(program)]
    subprocess.run(words, check=True)
    x = rng.standard_normal((96, 96)).astype(np.float32)
    x.tofile(tmp_path / "x.bin")
    made = qcompiler.load(artifact)
    for count in (2, 0, 5):
        want = made.run({"x": x, "count": np.array(count)})
        for shared in ("0", "1"):
            call = [str(program), str(tmp_path / "x.bin"), str(count), shared]
            found = np.frombuffer(subprocess.run(call, check=True, capture_output=True).stdout, "f")
            np.testing.assert_allclose(found[: 96 * 96], want["last"].ravel(), rtol=1e-5)
            np.testing.assert_allclose(found[96 * 96 :], want["rows"].ravel(), rtol=1e-5)
