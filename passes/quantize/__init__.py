"""Quantization as explicit QDQ, in 16 bits, or of weights only."""
