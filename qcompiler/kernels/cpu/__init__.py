"""Kernels for CPUs, a room for each family of operators."""
