"""Artifacts for GPUs -> models that run there, through NVIDIA's driver alone."""

from qcompiler.runtime.cuda.model import CudaModel, load, place_of

__all__ = ["CudaModel", "load", "place_of"]
