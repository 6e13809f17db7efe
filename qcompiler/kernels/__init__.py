"""Kernels: TIR written by generators that take (region, device, knobs)."""
