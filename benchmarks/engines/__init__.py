"""An engine's name -> how it prepares a model and how it runs one. One file a maker.

A file registers what it offers; nothing imports a maker's library before it is asked to work:

    @engine("onnxruntime", "float32", load=load_session)
    def build(job: Job) -> Path: ...        # prepare the subject once -> the artifact

    def load_session(artifact: Path, settings: Settings) -> Run: ...  # a feed -> the outputs
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from benchmarks.subjects import Array, Feed, Subject


class Unavailable(Exception):
    """Why an engine cannot take part: the machine or the model is not for it."""


@dataclass(frozen=True)
class Settings:
    """What all engines are told alike, and what one of them is told alone."""

    threads: int
    spin: bool = True
    """May onnxruntime's threads spin while they wait? It ships so."""
    target: str = "host"
    """qcompiler's target."""


@dataclass(frozen=True)
class Job:
    """One model for one engine to prepare, in a folder of its own."""

    subject: Subject
    folder: Path
    settings: Settings


Run: TypeAlias = Callable[[Feed], dict[str, Array]]
Build: TypeAlias = Callable[[Job], Path]
Load: TypeAlias = Callable[[Path, Settings], Run]


@dataclass(frozen=True)
class Engine:
    """One way of running a model."""

    maker: str
    precision: str
    build: Build
    load: Load
    slow: bool = False
    """Takes part only when asked to by name."""

    @property
    def name(self) -> str:
        """As the tables and --engines call it."""
        return f"{self.maker} {self.precision}"


ENGINES: dict[str, Engine] = {}


def engine(
    maker: str, precision: str, *, load: Load, slow: bool = False
) -> Callable[[Build], Build]:
    """Register a `build` function."""

    def register(build: Build) -> Build:
        made = Engine(maker, precision, build, load, slow)
        ENGINES[made.name] = made
        return build

    return register


for _module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")
