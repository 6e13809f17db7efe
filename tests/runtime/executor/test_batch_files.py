"""`run` of many files: each is made once, whole, and again only where something has changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from qcompiler.cli import main


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five files of 1 to 5 samples; each sample is a number of its own."""
    folder = tmp_path / "data"
    folder.mkdir()
    for count in range(1, 6):
        x = np.stack([np.full(8, 10 * count + i, np.float32) for i in range(count)])
        np.savez(folder / f"part{count}.npz", x=x)
    return folder


def job(
    capsys: pytest.CaptureFixture[str], artifact: Path, inputs: object, outputs: Path, *more: str
) -> Any:
    words = ["run", artifact, "--inputs", inputs, "--outputs", outputs, "--json", *more]
    assert main([str(w) for w in words]) == 0
    return json.loads(capsys.readouterr().out)


def check(data: Path, out: Path) -> None:
    for source in sorted(data.iterdir()):
        x = np.load(source)["x"]
        np.testing.assert_array_equal(np.load(out / source.name)["y"], 2 * x)
    assert len(list(out.iterdir())) == 10


def test_every_file_is_made_of_its_own_samples(
    doubling: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = data.parent / "out"
    told = job(capsys, doubling, data / "*.npz", out, "--streams", "2", "--threads", "1")
    assert (told["files"], told["finished_before"], told["samples"]) == (5, 0, 15)
    check(data, out)
    told = job(capsys, doubling, data, out, "--isolation", "processes")
    assert (told["finished_before"], told["samples"]) == (5, 0)


def test_only_what_has_changed_is_made_again(
    doubling: Path, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = data.parent / "out"
    words = ("--streams", "1", "--threads", "1")
    job(capsys, doubling, data / "*.npz", out, *words)
    np.savez(data / "part2.npz", x=np.full((3, 8), 7, np.float32))
    (out / "part3.npz").write_bytes((out / "part3.npz").read_bytes()[:-1])
    (out / "part4.npz.done").write_text("{")
    os.remove(out / "part5.npz")
    told = job(capsys, doubling, data / "*.npz", out, *words)
    assert (told["finished_before"], told["samples"]) == (1, 3 + 3 + 4 + 5)
    check(data, out)
    other = models.doubling().save(tmp_path / "other.qc", compress=True)
    told = job(capsys, other, data / "*.npz", out, *words)
    assert told["finished_before"] == 0


def test_a_job_that_stopped_goes_on(
    doubling: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = data.parent / "out"
    np.savez(data / "part4.npz", x=np.zeros((2, 3), np.float32))
    words = ["run", doubling, "--inputs", data / "*.npz", "--outputs", out, "--streams", "1"]
    assert main([str(w) for w in words]) == 1
    assert "part4.npz" in capsys.readouterr().err
    kept = {p.name for p in out.iterdir()}
    np.savez(data / "part4.npz", x=np.ones((2, 8), np.float32))
    told = job(capsys, doubling, data / "*.npz", out, "--streams", "1", "--threads", "1")
    assert told["finished_before"] == len(kept) // 2
    check(data, out)


def test_jobs_that_make_no_sense_are_refused(
    doubling: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: object) -> str:
        assert main(["run", str(doubling), *map(str, words)]) == 1
        return capsys.readouterr().err

    assert "no .npz" in refused("--inputs", data / "*.txt", "--outputs", data.parent / "out")
    assert "folder" in refused("--inputs", data / "*.npz")
    assert "overwrite" in refused("--inputs", data / "*.npz", "--outputs", data)
    assert "folder" in refused("--inputs", data / "*", "--outputs", doubling)
    np.save(data / "part1.npy", np.zeros((1, 8), np.float32))
    assert "same name" in refused("--inputs", data / "*", "--outputs", data.parent / "out")
