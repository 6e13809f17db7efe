"""The embedded network -> float32 and int8 artifacts, checked on labelled digits and timed, and a
report file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from qcompiler.errors import Error
from qcompiler.files import write_text
from qcompiler.ir import Array
from qcompiler.runtime import Model, load

BATCH = 1
_RUNS = 200


@dataclass(frozen=True)
class DemoReport:
    """The demo's measurements, as text and as JSON facts."""

    text: str
    facts: dict[str, object]


def demo(
    folder: Path,
    *,
    target: str = "host",
    progress: Callable[[str, int, int, str], None] | None = None,
) -> DemoReport:
    """Compile the embedded network in float32 and in int8 into `folder`, and compare them on its
    test digits.
    """
    from qcompiler.driver import compile
    from qcompiler.options import Options, Watch

    here = resources.files("qcompiler.demo")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise Error(f"cannot make the folder: {e.strerror}", where=str(folder)) from e
    with (
        resources.as_file(here / "digits.onnx") as onnx_file,
        resources.as_file(here / "digits.npz") as data,
    ):
        with np.load(data, allow_pickle=False) as digits:
            images, labels = digits["test_images"], digits["test_labels"]
            calibration = digits["calibration"]
        rows = {}
        for precision in ("float32", "int8"):
            options = Options(
                target=target,
                precision=precision,
                calibration=[{"image": image[None]} for image in calibration],
                input_shapes={"image": (BATCH, *images.shape[1:])},
            )
            start = time.perf_counter()
            artifact = compile(onnx_file, options, Watch(progress=progress))
            seconds = time.perf_counter() - start
            path = artifact.save(folder / f"digits-{precision}.qc")
            rows[precision] = {
                "artifact": str(path),
                "bytes": path.stat().st_size,
                "compile_seconds": seconds,
            }
    models = {p: load(str(r["artifact"])) for p, r in rows.items()}
    latencies = _latencies(models, images[:1])
    for precision, row in rows.items():
        row["accuracy"] = _accuracy(models[precision], images, labels)
        row["latency_us"] = latencies[precision] * 1e6
    variant = models["int8"].variant
    facts: dict[str, object] = {
        "isa": variant.isa,
        "threads": variant.threads,
        "test_images": len(images),
    }
    facts.update(rows)
    report = folder / "report.json"
    write_text(report, json.dumps(facts, indent=2))
    return DemoReport(_text(facts, rows, report), {**facts, "report": str(report)})


def _accuracy(model: Model, images: Array, labels: Array) -> float:
    """The fraction of images whose largest output is their label."""
    hits = 0
    for image, label in zip(images, labels, strict=True):
        scores = model(image[None])
        assert isinstance(scores, np.ndarray)
        hits += int(scores.argmax()) == int(label)
    return hits / len(images)


def _latencies(models: dict[str, Model], image: Array) -> dict[str, float]:
    """Median seconds of each model; they are timed alternately."""
    times: dict[str, list[float]] = {p: [] for p in models}
    for _ in range(_RUNS):
        for precision, model in models.items():
            model(image)
            start = time.perf_counter()
            model(image)
            times[precision].append(time.perf_counter() - start)
    return {p: float(np.median(t)) for p, t in times.items()}


def _text(facts: dict[str, object], rows: dict[str, dict[str, object]], report: Path) -> str:
    lines = [
        "A convolutional network for 8x8 digits, read from ONNX, fused, quantized with its",
        f"calibration images, compiled for {facts['isa']}, saved, loaded, and checked on",
        f"{facts['test_images']} test images:",
        "",
        f"{'':10}{'accuracy':>10}{'file':>12}{'latency':>12}{'compiled in':>14}",
    ]
    for precision, row in rows.items():
        lines.append(
            f"{precision:10}{100 * float(str(row['accuracy'])):9.2f}%{int(str(row['bytes'])):10d} B"
            f"{float(str(row['latency_us'])):9.1f} us{float(str(row['compile_seconds'])):12.2f} s"
        )
    lines += ["", f"artifact  {rows['int8']['artifact']}", f"report    {report}"]
    return "\n".join(lines)
