"""Elementwise formulas, and a fallback for other operators."""
