"""Instruction sets of ARM, 64 bits."""
