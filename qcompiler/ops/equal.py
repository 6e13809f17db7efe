"""Sizes that must be equal for a model to have a meaning, though nobody knows yet that they are.

Type rules take an open size for equal to any other until the contrary is proven, and for as large
as is needed. What they take so is noted here, while somebody listens: a run in which it is not so
has no meaning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from qcompiler.ir import Dim


@dataclass
class Equal:
    """Pairs of sizes that must be equal, and the node that needs it."""

    pairs: dict[tuple[Dim, Dim], str] = field(default_factory=dict)
    broadcast: dict[tuple[Dim, Dim], str] = field(default_factory=dict)
    """Those of which either may be 1 instead."""
    least: dict[tuple[Dim, Dim], str] = field(default_factory=dict)
    """Pairs of which the first must not be above the second, and the node that needs it."""
    inputs: frozenset[str] = frozenset()
    """Symbols that are sizes of inputs as they are: no run need solve for them."""
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """The least and the largest number of open sizes."""
    where: str = ""
    """The node at hand."""


_listening: ContextVar[Equal | None] = ContextVar("listening", default=None)


@contextmanager
def noted(found: Equal | None) -> Iterator[None]:
    """What is found to be equal inside is added to `found`; None: to nothing."""
    token = _listening.set(found)
    try:
        yield
    finally:
        _listening.reset(token)


def ranges() -> Mapping[str, tuple[int, int]]:
    """The least and the largest number of those open sizes of which they are known."""
    found = _listening.get()
    return {} if found is None else found.ranges


def note(a: Dim, b: Dim) -> None:
    """Two sizes must be equal."""
    found = _listening.get()
    if found is not None and a != b:
        found.pairs.setdefault((a, b), found.where)


def note_broadcast(a: Dim, b: Dim) -> None:
    """Two sizes must be equal, unless one of them is 1."""
    found = _listening.get()
    if found is not None and a != b:
        found.broadcast.setdefault((a, b), found.where)


def note_least(least: Dim, size: Dim) -> None:
    """A size must be at least another."""
    found = _listening.get()
    if found is not None:
        found.least.setdefault((least, size), found.where)
