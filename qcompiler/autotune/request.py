"""Options of `qcompiler tune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.errors import Error
from qcompiler.options import check, option

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "": 1.0}
MOST_SECONDS = 7 * 24 * 3600.0


def seconds(word: str) -> float:
    """ "60s", "5m", "1h" or "60" -> seconds. Raises Error for anything else."""
    number = word.rstrip("smihn")
    try:
        found = float(number) * _UNITS[word[len(number) :]]
    except (KeyError, ValueError):
        found = -1.0
    if not 0 < found <= MOST_SECONDS:
        raise Error(f"{word!r} is no time to spend", where="--time", hint="60s, 5m or 1h")
    return found


@dataclass(frozen=True)
class Tuning:
    """How to tune. Raises Error for an invalid value."""

    time: float = option(60.0, "how long to measure: 60s, 5m, 1h", metavar="TIME", read=seconds)
    only: Sequence[str] = option(
        (), "tune only the kernels of these steps: names, or regular expressions", metavar="STEP"
    )
    engine: str = option(
        "",
        "where to measure: ray is every node of a Ray cluster (the extra [ray]); empty: this"
        " machine, or the devices of --remote",
        choices=("ray",),
    )
    plans: bool = option(
        True, "also try fewer threads and other parts of a batch for whole models", flags=()
    )

    def __post_init__(self) -> None:
        check(self)
