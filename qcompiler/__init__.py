"""An ONNX model -> a small, fast native artifact of the same accuracy.

    artifact = qcompiler.compile("model.onnx", precision="int8", calibration="samples.npz")
    artifact.save("model.qc")
    model = qcompiler.load("model.qc")
    y = model(x)

`load` needs only numpy; `compile` imports the compiler.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler.artifact.artifact import Artifact
from qcompiler.errors import Error, compiler_missing
from qcompiler.options import Keywords, Options, Progress, Watch, takes
from qcompiler.version import __version__

if TYPE_CHECKING:
    import onnx

    from qcompiler.export.c import Exported
    from qcompiler.runtime import Model

__all__ = ["Artifact", "Error", "__version__", "compile", "export_c", "load"]


@takes(Keywords)
def compile(model: str | Path | onnx.ModelProto, keywords: Keywords) -> Artifact:
    """ONNX file or model -> artifact for fixed input shapes, with a variant for each target.

    Raises Error if anything is wrong with the model, the data or the options. The keywords:
    """
    try:
        from qcompiler.driver import compile as compiled
    except ImportError as e:
        if missing := compiler_missing(e):
            raise missing from e
        raise
    return compiled(model, keywords, Watch(progress=keywords.progress))


def export_c(
    model: str | Path | onnx.ModelProto | Artifact,
    folder: str | Path,
    *,
    name: str = "",
    weights: str = "object",
    ram: int = 0,
    flash: int = 0,
    force: bool = False,
    variant: str = "",
    parallel: str = "",
    progress: Progress | None = None,
    **options: object,
) -> Exported:
    """ONNX file or model, or an artifact -> a folder for C: NAME.h, NAME.hpp, NAME.o.

    name: of the function NAME_run and the files (left out: the model's file).
    weights: "object" (read-only data), or "file" (NAME.weights, to be mapped).
    ram, flash: budgets in bytes; 0 for none. Error, with the numbers, where one is not kept.
    force: a folder that was exported before is replaced; without, one that is there is an Error.
    variant: the instruction set of the one to take from an artifact that has several.
    parallel: "callback": also NAME_run_threads, by threads of the caller's; "pthread": and a pool
        of them, NAME_pool.h. Without, it runs in the calling thread.
    options: as those of `compile`, for a model; `threads` may share work where `parallel` is given.

    Raises Error for whatever is wrong with the model, the data or the options.
    """
    try:
        from qcompiler.export.c import Request
        from qcompiler.export.c import export_c as export
    except ImportError as e:
        if missing := compiler_missing(e):
            raise missing from e
        raise

    request = Request(name, weights, ram, flash, force, variant, parallel)
    chosen = Options(**options)  # type: ignore[arg-type]  # an unknown one is a TypeError
    return export(model, folder, request, chosen, Watch(progress=progress))


def load(artifact: str | Path | Artifact, *, threads: int = 0, variant: str = "") -> Model:
    """Path or artifact -> a model that is ready to run: the best variant for this CPU, or the one
    that `variant` names. `threads` defaults to the number it was compiled for. `close()`, or the
    end of a `with` block, frees its memory at once.
    """
    from qcompiler.runtime import load as load_model

    return load_model(artifact, threads=threads, variant=variant)
