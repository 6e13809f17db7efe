"""Operators and operands as kernels want them."""
