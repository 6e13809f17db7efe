"""What a report says is true, and a browser shows it without fetching anything."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from qcompiler import cli
from qcompiler.driver import Compilation
from qcompiler.options import Options
from qcompiler.quality.mixed_precision import Found, Layer, Trial
from qcompiler.quality.report import BINS, LayerReport, Report, Spread, examine
from qcompiler.quality.report_html import html

pytestmark = pytest.mark.usefixtures("weights_of_8_bits")

EVIL = '<script>alert("x")</script>'
CLASSES = 400
"""So many that weights are more than code."""


def network() -> onnx.ModelProto:
    """A convolution and a matrix product; the second has a name that a page must not take in."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((8, 3, 3, 3)), "v": rng.standard_normal((8, CLASSES))}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"], EVIL),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", 1, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", 1, [1, CLASSES])],
        [numpy_helper.from_array(w.astype("f"), n) for n, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def data(count: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 3, 8, 8)).astype("f")} for _ in range(count)]


@pytest.fixture(scope="module")
def report() -> Report:
    made = Compilation(network(), Options(precision="int8", calibration=data()))
    skips = [("rule", EVIL, "because"), ("rule", EVIL, "because")]
    trials = (
        Trial("minmax", (), 97.0, 0.1, 0.001, False),
        Trial("minmax", ("first",), 99.0, 0.01, 0.002, True),
    )
    layers = (Layer("first", "Conv", 2e-6, 1e-6, 0.5),)
    found = Found(made, "top1", 99.5, 98.5, layers, trials, trials[1])
    return examine("small.onnx", made, data(), skips=skips, found=found)


def test_layers_are_measured(report: Report) -> None:
    first, second = report.layers
    assert (first.name, first.op, first.dtype) == ("first", "Conv", "uint8 x int8")
    assert second.name == EVIL
    for layer in report.layers:
        assert 25 < layer.sqnr < 70
        assert 0.99 < layer.cosine < 1
        assert layer.bytes_before == 4 * layer.bytes_after
        assert layer.float_us > 0 < layer.int8_us
    weights = first.weights
    assert weights is not None
    assert sum(weights.before) == sum(weights.after) == 8 * 27
    whole, small = report.stages
    assert (whole.name, small.name) == ("float32", "static uint8 x int8, output")
    assert small.bytes < whole.bytes
    assert whole.ms > 0 < small.ms
    assert (whole.sqnr, whole.score) == (math.inf, 100.0)
    assert 25 < small.sqnr < 70
    assert report.skips == (("rule", EVIL, "because"),)


def test_a_histogram_holds_every_number() -> None:
    rng = np.random.default_rng(0)
    before = rng.standard_normal(1000)
    spread = Spread.of(before, np.rint(before))
    assert len(spread.before) == BINS
    assert sum(spread.before) == sum(spread.after) == 1000
    assert spread.low == min(before.min(), np.rint(before).min())
    assert sum(Spread.of(np.zeros(7), np.zeros(7)).before) == 7


def test_what_was_pruned_is_compared_with_the_original() -> None:
    options = Options(
        precision="int8",
        calibration=data(),
        prune=("channels:0.5",),
        passes=("prune_channels{exclude=[]}", "prune_weights{sparsity=0.5,elements=1}"),
    )
    made = Compilation(network(), options)
    calibration = made.calibration_of(made.float_graph)
    found = examine("small.onnx", made, data(), calibration=calibration)
    assert [s.name for s in found.stages] == [
        "float32",
        "pruned",
        "static uint8 x int8, output",
    ]
    assert found.stages[0].sqnr > found.stages[1].sqnr
    assert made.float_graph.nodes != made.calibrated.nodes
    first, second = found.layers
    assert first.sqnr_original is None, "it has fewer channels"
    assert second.sqnr_original is not None
    assert second.sqnr_original < second.sqnr
    assert first.bytes_before == 4 * 8 * 27
    curves = {s.name: s.lost for s in found.sensitivity}
    assert list(curves) == ["first", EVIL]
    for lost in curves.values():
        assert lost[0] == 0
        assert all(a <= b for a, b in pairwise(lost))
    page = Page(html(found))
    assert page.tags.count("polyline") == 2


class Page(HTMLParser):
    """Checks that elements nest, and gathers what is there."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_of_itself(report: Report) -> None:
    text = html(report)
    page = Page(text)
    assert "script" not in page.tags
    assert not {"src", "href", "onclick"} & {name for name, _ in page.attributes}
    assert "url(" not in text
    assert "http" not in text
    assert page.tags.count("circle") == len(report.found.trials)  # type: ignore[union-attr]
    for layer in report.layers:
        assert f"{layer.sqnr:.1f}" in text
    assert "not available" in text or "mJ" in text


def test_a_page_of_nothing() -> None:
    energy = {"float32": "no", "int8": "no"}
    empty = Report("m", "t", 1, "none", {}, 0, (), "", (), (), (), energy)
    Page(html(empty))
    flat = LayerReport("a", "Conv", "float32", math.inf, 1.0, None, 0.0, 0.0, 0, 0, None, None)
    Page(html(Report("m", "t", 1, "none", {}, 0, (), "", (flat,), (), (), energy)))


def test_a_browser_shows_it(report: Report, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    page = tmp_path / "report.html"
    page.write_text(html(report), encoding="utf-8")
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'p'}"]
    shown = subprocess.run(
        [browser, *words, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert shown.returncode == 0, shown.stderr
    assert "<script" not in shown.stdout
    assert shown.stdout.count("<tr>") == html(report).count("<tr>")
    assert len(re.findall(r"<svg", shown.stdout)) == html(report).count("<svg")


def test_compile_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, page = tmp_path / "m.onnx", tmp_path / "r.html"
    onnx.save(network(), model)
    np.savez(tmp_path / "d.npz", x=np.concatenate([d["x"] for d in data()]))
    words = ["compile", str(model), "--precision", "int8", "--calibration", str(tmp_path / "d.npz")]
    assert cli.main([*words, "--report", str(page)]) == 0
    facts = json.loads(page.with_suffix(".json").read_text())
    assert [x["name"] for x in facts["layers"]] == ["first", EVIL]
    assert facts["search"] is None
    Page(page.read_text(encoding="utf-8"))
    assert cli.main([*words, "--report", str(tmp_path / "absent" / "r.html")]) == 1
    assert "no folder" in capsys.readouterr().err
