"""Output files: checked before any long work, replaced as a whole at its end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qcompiler.dtypes import Array
from qcompiler.errors import Error
from qcompiler.files import replacing


def demand_writable(output: Path, *sources: Path | str | None) -> None:
    """Refuse an output that cannot be written, or that is also an input, before any long work."""
    folder = output.parent
    if not folder.is_dir():
        raise Error(f"there is no folder {str(folder)!r}", where=str(output))
    if output.is_dir():
        raise Error("this is a folder", where=str(output), hint="name a file in it")
    if output.exists() and not output.is_file():
        raise Error("this is not a file that can be replaced", where=str(output))
    if not os.access(folder, os.W_OK):
        raise Error(f"the folder {str(folder)!r} cannot be written to", where=str(output))
    read = [Path(s) for s in sources if s]
    if output.exists() and any(s.exists() and output.samefile(s) for s in read):
        hint = "name another output (-o, --outputs)"
        raise Error("this would overwrite what is read", where=str(output), hint=hint)


def save_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Named arrays -> an .npz file."""
    with replacing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
