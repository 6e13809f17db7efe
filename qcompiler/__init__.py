"""An ONNX model -> a small native artifact that runs it fast, at the same accuracy.

    artifact = qcompiler.compile("model.onnx", precision="int8", calibration="samples.npz")
    artifact.save("model.qc")
    model = qcompiler.load("model.qc")
    y = model(x)

`load` and all it needs import numpy only; the compiler is imported by `compile`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler.artifact import Artifact
from qcompiler.errors import Error, compiler_missing
from qcompiler.version import __version__

if TYPE_CHECKING:
    import onnx

    from qcompiler.runtime import Model

__all__ = ["Artifact", "Error", "__version__", "compile", "load"]


def compile(
    model: str | Path | onnx.ModelProto,
    *,
    target: str = "host",
    precision: str = "float32",
    calibration: object = None,
    calibration_method: str = "output",
    calibration_samples: int = 300,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int = 0,
    passes: Sequence[str] = (),
    disabled_passes: Sequence[str] = (),
    exclude: Sequence[str] = (),
    prune: Sequence[str] = (),
    prune_include: Sequence[str] = (),
    prune_exclude: Sequence[str] = (),
    compress: bool = False,
    progress: Callable[[str, int, int, str], None] | None = None,
) -> Artifact:
    """ONNX file or model -> artifact, for one target and fixed input shapes.

    target: "host", an instruction set (`qcompiler targets`), a device, or a .toml or .py file.
    precision: "float32", "bfloat16", "float16"; "int8" (static), "int4" (the same with weights of
        4 bits), which need `calibration`; "int8-dynamic" (matrix products only), or
        "int8-weights", "int4-weights" (activations stay float32), which need none.
    calibration: an .npz or .npy file, a folder, an iterable of {input name: array}, an onnxruntime
        CalibrationDataReader, or "synthetic" (random data, for speed trials; the artifact says so).
    input_shapes: {input name: shape}, for inputs whose shape the model leaves open; where that is
        the batch alone, it is 1 unless given, and the artifact's notes say so.
    threads: how many the artifact may use (0: all this process may use, or one where more save
        little).
    passes, disabled_passes: as the flags --pass and --disabled-pass.
    exclude: nodes kept in float: names, regular expressions, or operator types.
    prune: what to take away before quantizing: "channels:0.5", "magnitude:0.7", "2:4", "block:0.5";
        with `calibration` the weights that stay make up for the others.
    prune_include, prune_exclude: the only nodes that may be pruned, those that may not.
    compress: a small file, slower to open; float convolutions may run slower.
    progress: called with (what, done, all, item) during long work.

    Raises Error for whatever is wrong with the model, the data or the options.
    """
    try:
        from qcompiler import driver
    except ImportError as e:
        if missing := compiler_missing(e):
            raise missing from e
        raise

    options = driver.Options(
        target=target,
        precision=precision,
        calibration=calibration,
        calibration_method=calibration_method,
        calibration_samples=calibration_samples,
        input_shapes=dict(input_shapes or {}),
        threads=threads,
        passes=passes,
        disabled_passes=disabled_passes,
        exclude=exclude,
        prune=prune,
        prune_include=prune_include,
        prune_exclude=prune_exclude,
        compress=compress,
    )
    return driver.compile(model, options, driver.Watch(progress=progress))


def load(artifact: str | Path | Artifact, *, threads: int = 0) -> Model:
    """Path or artifact -> a model ready to run; `threads` as compiled unless given. Its `close()`,
    or the end of a `with` block, gives its memory back at once.
    """
    from qcompiler.runtime import load as load_model

    return load_model(artifact, threads=threads)
