"""Quantization written out -> operators on integers."""
