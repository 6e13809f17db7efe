"""Quantization: which values are low precision, with which scales and rounding."""
