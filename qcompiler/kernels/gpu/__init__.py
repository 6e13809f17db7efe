"""Kernels for GPUs, a room for each family of operators."""
