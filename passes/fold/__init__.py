"""Constant folding and simplification."""
