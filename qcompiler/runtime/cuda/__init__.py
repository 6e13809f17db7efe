"""Artifacts for GPUs -> models that run there, through NVIDIA's driver alone."""

from qcompiler.runtime.cuda.model import CudaModel, load

__all__ = ["CudaModel", "load"]
