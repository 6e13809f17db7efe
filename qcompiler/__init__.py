"""An ONNX model -> a small, fast native artifact of the same accuracy.

    artifact = qcompiler.compile("model.onnx", precision="int8", calibration="samples.npz")
    artifact.save("model.qc")
    model = qcompiler.load("model.qc")
    y = model(x)

`load` needs only numpy; `compile` imports the compiler.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from qcompiler.artifact.artifact import Artifact
from qcompiler.errors import Error, compiler_needed
from qcompiler.export.request import Exporting
from qcompiler.options import Keywords, Watch, takes
from qcompiler.version import __version__

if TYPE_CHECKING:
    import onnx

    from qcompiler.export.c import Exported
    from qcompiler.runtime import Model
    from qcompiler.runtime.cuda import CudaModel
    from qcompiler.runtime.executor import Executor

__all__ = ["Artifact", "Error", "Executor", "__version__", "compile", "export_c", "load"]


def __getattr__(name: str) -> Any:
    """`Executor`, when it is first asked for."""
    if name == "Executor":
        from qcompiler.runtime.executor import Executor

        return Executor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@takes(Keywords)
def compile(model: str | Path | onnx.ModelProto, keywords: Keywords) -> Artifact:
    """ONNX file or model -> artifact for fixed input shapes, with a variant for each target.

    Raises Error if anything is wrong with the model, the data or the options. The keywords:
    """
    with compiler_needed():
        from qcompiler.driver import compile as compiled
    return compiled(model, keywords, Watch(progress=keywords.progress))


@takes(Exporting)
def export_c(
    model: str | Path | onnx.ModelProto | Artifact, folder: str | Path, keywords: Exporting
) -> Exported:
    """ONNX file or model, or an artifact -> a folder for C: NAME.h, NAME.hpp, NAME.o, and with
    weights="file" NAME.weights. The code runs in the calling thread; with `parallel` a second
    function shares the work among threads.

    Raises Error if anything is wrong with the model, the data or the options. The keywords:
    """
    with compiler_needed():
        from qcompiler.export.c import export_c as export
    return export(model, folder, keywords, Watch(progress=keywords.progress))


@overload
def load(artifact: str | Path | Artifact, *, threads: int = 0, variant: str = "") -> Model: ...


@overload
def load(
    artifact: str | Path | Artifact, *, threads: int = 0, variant: str = "", device: str
) -> Model | CudaModel: ...


def load(
    artifact: str | Path | Artifact, *, threads: int = 0, variant: str = "", device: str = "cpu"
) -> Model | CudaModel:
    """Path or artifact -> a model that is ready to run: the best variant for this CPU, or the one
    that `variant` names. `threads` defaults to the number it was compiled for. `device`: "cpu", or
    a GPU ("cuda", "cuda:1"). `close()`, or the end of a `with` block, frees its memory at once.
    """
    if device != "cpu":
        from qcompiler.runtime import cuda

        return cuda.load(artifact, variant=variant, device=device)
    from qcompiler.runtime import load as load_model

    return load_model(artifact, threads=threads, variant=variant)
