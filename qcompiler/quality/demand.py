"""Options of the search for an artifact within a limit on the loss of accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qcompiler.options import check, option


@dataclass(frozen=True)
class Demand:
    """How much accuracy may be lost, and how to measure it.

    drop: points of the metric; relative: per cent of the float model's score instead. data:
    samples, in any form that calibration takes. labels: [samples, ...], a .npy file, or None.
    metric: see `metrics.metric`. state: a file that keeps measurements, so that an interrupted
    search continues where it stopped; it is removed at the end.
    """

    drop: float
    data: object
    relative: bool = False
    labels: object = option(None, "classes of the samples: a .npy or .npz file", metavar="FILE")
    metric: str = option("", "top1, top5, agreement, cosine, or FILE.py:function", metavar="METRIC")
    count: int = option(
        1000,
        "use at most this many samples of --evaluation",
        flags=("--evaluation-samples",),
        metavar="N",
        least=1,
    )
    state: Path | None = None

    def __post_init__(self) -> None:
        check(self)

    def floor(self, exact: float) -> float:
        """The lowest acceptable score."""
        return exact * (1 - self.drop / 100) if self.relative else exact - self.drop
