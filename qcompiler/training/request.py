"""Options of retraining."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler.options import check, option

if TYPE_CHECKING:
    import onnx


def _kinds(text: str) -> tuple[str, ...]:
    return tuple(k for k in text.split(",") if k)


@dataclass(frozen=True)
class Training:
    """How to train. data: samples, in any form that calibration takes. rate: Adam's largest step,
    relative to a tensor's root mean square (as in Shazeer & Stern, "Adafactor", 2018: networks
    whose inputs are bytes have weights a hundred times smaller than others). augment: how to vary
    images [N,C,H,W] before teacher and student see them: "flip" left to right, "shift" by up to an
    eighth, "mix" two of a batch. Raises Error for a number that is too small.
    """

    data: object
    epochs: int = option(5, "number of passes over all batches", metavar="N", least=1)
    rate: float = option(1e-3, "Adam's step size, relative to the size of each tensor")
    count: int = option(
        2000, "use at most this many batches", flags=("--batches",), metavar="N", least=1
    )
    teacher: str | Path | onnx.ModelProto | None = option(
        None,
        "float model to learn from, with the same inputs and outputs (default: MODEL in float)",
        metavar="MODEL",
        read=Path,
    )
    seed: int = 0
    augment: tuple[str, ...] = option(
        (),
        "how to vary images: flip (left to right), shift, mix; several as flip,shift",
        metavar="KINDS",
        read=_kinds,
    )
    gradual: bool = option(
        False, "remove the weights of --prune little by little during training, not all before it"
    )

    def __post_init__(self) -> None:
        check(self)
