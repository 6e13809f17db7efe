"""Artifact -> a model that runs. Needs numpy and the C library, never the compiler."""

from qcompiler.runtime.model import Model, load

__all__ = ["Model", "load"]
