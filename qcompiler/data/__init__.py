"""Samples, and what calibration learns from them."""
