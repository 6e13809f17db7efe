"""An ONNX model -> a small native artifact that runs it fast, at the same accuracy.

    artifact = qcompiler.compile("model.onnx", precision="int8", calibration="samples.npz")
    artifact.save("model.qc")
    model = qcompiler.load("model.qc")
    y = model(x)

`load` and all it needs import numpy only; the compiler is imported by `compile`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler.artifact.artifact import Artifact
from qcompiler.errors import Error, compiler_missing
from qcompiler.options import Keywords, Watch, takes
from qcompiler.version import __version__

if TYPE_CHECKING:
    import onnx

    from qcompiler.runtime import Model

__all__ = ["Artifact", "Error", "__version__", "compile", "load"]


@takes(Keywords)
def compile(model: str | Path | onnx.ModelProto, keywords: Keywords) -> Artifact:
    """ONNX file or model, and keywords -> artifact, for one target and fixed input shapes.

    Raises Error for whatever is wrong with the model, the data or the options. The keywords:
    """
    try:
        from qcompiler.driver import compile as compiled
    except ImportError as e:
        if missing := compiler_missing(e):
            raise missing from e
        raise
    return compiled(model, keywords, Watch(progress=keywords.progress))


def load(artifact: str | Path | Artifact, *, threads: int = 0) -> Model:
    """Path or artifact -> a model ready to run; `threads` as compiled unless given. Its `close()`,
    or the end of a `with` block, gives its memory back at once.
    """
    from qcompiler.runtime import load as load_model

    return load_model(artifact, threads=threads)
