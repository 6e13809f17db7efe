"""Artifact -> a model that runs. Needs numpy and the runtime half of TVM, never the compiler."""

from qcompiler.runtime.model import Model, load

__all__ = ["Model", "load"]
