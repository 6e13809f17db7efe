"""Lowering of operators and operands to the form that kernels take."""
