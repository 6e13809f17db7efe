"""What `bench` of an executor found -> one self-contained HTML page: figures, a histogram of the
latencies, and the share of requests answered within each of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; } body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 60rem; padding: 0 1rem; } h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; }
td { padding: .1rem 1rem .1rem 0; font-variant-numeric: tabular-nums; }
svg { display: block; } text { font: 11px system-ui, sans-serif; fill: currentColor; }
.bar { fill: #1f6feb; } .axis { stroke: #8888; } .curve { fill: none; stroke: #d9480f; }
.mark { stroke: #d9480f; stroke-dasharray: 2 3; }
"""
_WIDTH, _HEIGHT, _LEFT, _FOOT = 640, 220, 44, 36
_BARS = 60
_LEAST_MS = 1e-3


def page(name: str, answer: Mapping[str, Any], times_ms: Sequence[float]) -> str:
    """A model's name, the answer of `bench`, and all latencies -> the page."""
    shown = {k: v for k, v in answer.items() if k not in ("histogram", "measured")}
    rows = "".join(f"<tr><td>{escape(k)}<td>{escape(_said(v))}" for k, v in shown.items())
    marks = {k[:-3]: v for k, v in answer.items() if k.startswith("p") and k.endswith("_ms")}
    measured = "".join(
        f"<tr><td>{streams} x {threads}<td>{stages} stages<td>{value:.4g}"
        for streams, threads, stages, value in answer["measured"]
    )
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(name)}</title>'
        f"<style>{_STYLE}</style>\n<h1>{escape(name)}: requests under load</h1>\n"
        f"<table>{rows}</table>\n<h2>Latencies</h2>\n{_plot(times_ms, marks)}\n"
        + (f"<h2>Measured for the hint</h2>\n<table>{measured}</table>\n" if measured else "")
        + "</html>\n"
    )


def _said(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class _Scale:
    """Where a latency and a share of the requests lie; latencies by their logarithm."""

    low: float
    high: float

    def x(self, ms: float) -> float:
        """From the left, in pixels."""
        return _LEFT + self.share(ms) * _WIDTH

    def y(self, share: float) -> float:
        """From the top, in pixels."""
        return _HEIGHT * (1 - share)

    def share(self, ms: float) -> float:
        """0 at the lowest, 1 at the highest."""
        return (math.log10(max(ms, _LEAST_MS)) - self.low) / (self.high - self.low)


def _plot(times_ms: Sequence[float], marks: Mapping[str, float]) -> str:
    """Bars by equal steps of the logarithm, the cumulative share, and percentiles as lines."""
    times = sorted(max(t, _LEAST_MS) for t in times_ms)
    at = _Scale(math.log10(times[0]) - 0.02, math.log10(times[-1]) + 0.02)
    made = "".join((_bars(at, times), _curve(at, times), _lines(at, marks), _axes(at)))
    return f'<svg width="{_LEFT + _WIDTH + 10}" height="{_HEIGHT + _FOOT}">{made}</svg>'


def _bars(at: _Scale, times: Sequence[float]) -> str:
    counts, wide = [0] * _BARS, _WIDTH / _BARS
    for t in times:
        counts[min(_BARS - 1, int(at.share(t) * _BARS))] += 1
    heights = [_HEIGHT * count / max(counts) for count in counts]
    return "".join(
        f'<rect class="bar" x="{_LEFT + i * wide:.1f}" width="{wide - 1:.1f}"'
        f' y="{_HEIGHT - height:.1f}" height="{height:.1f}"/>'
        for i, height in enumerate(heights)
        if height
    )


def _curve(at: _Scale, times: Sequence[float]) -> str:
    some = range(0, len(times), max(1, len(times) // 400))
    points = " ".join(f"{at.x(times[i]):.1f},{at.y((i + 1) / len(times)):.1f}" for i in some)
    return f'<polyline class="curve" points="{points}"/>'


def _lines(at: _Scale, marks: Mapping[str, float]) -> str:
    return "".join(
        f'<line class="mark" x1="{at.x(ms):.1f}" x2="{at.x(ms):.1f}" y1="0" y2="{_HEIGHT}"/>'
        f'<text x="{at.x(ms) + 2:.1f}" y="{10 + 12 * (i % 4)}">{escape(name)}</text>'
        for i, (name, ms) in enumerate(marks.items())
    )


def _axes(at: _Scale) -> str:
    shares = "".join(
        f'<text x="0" y="{max(10.0, at.y(share)):.1f}">{share:.0%}</text>' for share in (0, 0.5, 1)
    )
    ticks = "".join(
        f'<text x="{at.x(ms):.1f}" y="{_HEIGHT + 14}" text-anchor="middle">{ms:g}</text>'
        for ms in _ticks(at.low, at.high)
    )
    right, foot = _LEFT + _WIDTH, _HEIGHT + 30
    line = f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>'
    return f'{shares}{ticks}{line}<text x="{_LEFT}" y="{foot}">milliseconds</text>'


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... between two logarithms; the ends, where there are none."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    every = [m * 10.0**e for e in powers for m in (1, 2, 5)]
    found = [ms for ms in every if low <= math.log10(ms) <= high]
    return found or [round(10**low, 3), round(10**high, 3)]
