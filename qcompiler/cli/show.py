"""Facts -> text for people (tables, progress bars) or programs (--json)."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from qcompiler.files import size

if TYPE_CHECKING:
    from qcompiler.artifact.artifact import Artifact

_BAR = 24


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows -> columns under their headings; numbers are right-aligned."""
    cells = [[*map(str, head)], *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    number = [all(_is_number(row[i]) for row in cells[1:]) for i in range(len(head))]
    lines = []
    for row in cells:
        columns = zip(row, widths, number)
        lines.append("  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in columns).rstrip())
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    return text.replace(".", "").replace("-", "").replace("%", "").replace(",", "").isdigit()


def facts(pairs: Mapping[str, object]) -> str:
    """{"size": "12 kB"} -> aligned lines."""
    width = max(map(len, pairs), default=0)
    return "\n".join(f"{k.ljust(width)}  {v}" for k, v in pairs.items())


def milliseconds(seconds: float) -> str:
    """Seconds -> "1.234 ms"."""
    return f"{seconds * 1e3:.3f} ms"


def plain(text: str) -> str:
    """Text that may contain a model's names -> the same without terminal control characters."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def sharing(artifact: Artifact) -> str:
    """How much of their weights variants have in common."""
    shared = artifact.shared_bytes
    every = shared + artifact.weights_bytes
    return (
        f"{len(artifact.binaries)} variants, {size(every)} of weights, of which {size(shared)} "
        f"({shared / max(every, 1):.0%}) are shared and kept once"
    )


def say(text: str) -> None:
    """Print an answer."""
    sys.stdout.write(plain(text) + "\n")


def say_json(value: object) -> None:
    """Print an answer as JSON; NaN and infinity become null."""
    say(json_text(value))


def json_text(value: object) -> str:
    """A value -> JSON; numbers that JSON cannot express become null."""
    return json.dumps(_finite(value), indent=2)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value


class ProgressBar:
    """`bar(what, done, count, item)` redraws one line if stderr is a terminal; else does nothing.

    A context manager: the line is cleared at the end, also after an error.
    """

    def __init__(self, stream: TextIO | None = None, enabled: bool = True) -> None:
        self.stream = stream or sys.stderr
        self.enabled = enabled and self.stream.isatty()
        self.drawn = False

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __call__(self, what: str, done: int, count: int, item: str) -> None:
        """Draw."""
        if not self.enabled:
            return
        filled = _BAR * done // max(count, 1)
        bar = "#" * filled + "." * (_BAR - filled)
        total = f"{done}/{count}" if count else str(done)
        self.stream.write(f"\r\x1b[K{what:<18} [{bar}] {total} {plain(item)[:40]}")
        self.stream.flush()
        self.drawn = True

    def close(self) -> None:
        """Clear the line."""
        if self.drawn:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
            self.drawn = False
