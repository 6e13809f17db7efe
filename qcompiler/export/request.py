"""Options of the export."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from qcompiler.errors import Error
from qcompiler.options import Keywords, option

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def amount(text: str, where: str) -> int:
    """ "256K" -> 262144; K, M and G are powers of 1024. Raises Error for other text."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    value = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if not value:
        raise Error(f"{text!r} is not an amount of memory", where=where, hint="256K, 1M")
    return value


@dataclass(frozen=True)
class Exporting(Keywords):
    """The keywords of `qcompiler.export_c`: how to export, and how to compile a model."""

    name: str = option(
        "", "name of the files and of the function NAME_run (default: that of the model)"
    )
    weights: str = option(
        "object",
        "where to put the weights: in the object file as read-only data, or in a file to map",
        choices=("object", "file"),
    )
    ram: int = option(
        0,
        "refuse to export if more RAM is needed, in bytes; 0: no limit",
        metavar="256K",
        read=partial(amount, where="--ram"),
    )
    flash: int = option(
        0,
        "refuse to export if code and weights take more, in bytes; 0: no limit",
        metavar="1M",
        read=partial(amount, where="--flash"),
    )
    force: bool = option(False, "replace a folder that was exported before")
    variant: str = option(
        "", "instruction set of the variant to take from an artifact with several", metavar="ISA"
    )
    parallel: str = option(
        "",
        "export a second function that shares the work among threads: callback (a parallel-for of"
        " the caller's) or pthread (a pool of threads, NAME_pool.h)",
        choices=("callback", "pthread"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compress:
            raise Error("only artifacts are compressed: nothing unpacks weights in C")
        if self.threads > 1 and not self.parallel:
            hint = "parallel: callback or pthread"
            raise Error(f"{self.threads} threads, and no function that shares the work", hint=hint)
