"""Elementwise formulas, and what no faster kernel takes."""
