"""Kernels: TIR made by generators from (region, device, knobs)."""
