"""Elementwise formulas, and the threads that run kernels written for tasks."""
